"""What a report measures: accuracy and cost of each policy at each budget, with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from scipy.stats import t as student_t

from skexit.data._network_logits import network_logits
from skexit.metrics import OracleRegret, oracle_regret
from skexit.policies import ExitPolicy, OracleResult
from skexit.policies._access import check_fits, policy_and_data

#: Budgets that a reader can select, as fractions of the plain network's cost.
SELECTABLE = tuple(step / 20 for step in range(1, 21))


@dataclass(frozen=True)
class Measured:
    """Accuracy and cost of predictions at certain exits.

    `budget` is the budget that was set, if any. `exits` and `correct` have one entry per sample. `cost` is a fraction
    of the network's cost, and `head_cost` is the part of the heads. The intervals are 95 % intervals.
    """

    name: str
    budget: float | None
    exits: NDArray[np.int64]
    correct: NDArray[np.bool_]
    accuracy: float
    cost: float
    accuracy_interval: tuple[float, float]
    cost_interval: tuple[float, float]
    regret: OracleRegret
    head_cost: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """A policy at a budget, with its X, and the predictions of every exit, of shape (n_samples, n_exits).

    `source` is the name of the policy in the report. `set_to` is the budget that was set for the report, None if the
    policy is as it was fitted. `is_fixed` says that no other budget can be set.
    """

    policy: ExitPolicy
    source: str
    set_to: float | None
    is_fixed: bool
    X: Any
    answers: NDArray[Any]
    measured: Measured

    def oracle(self, y: NDArray[Any]) -> OracleResult:
        """The first correct exit of each sample."""
        return OracleResult._from_correct(self.answers == y[:, None], self.policy.costs_)


def measure_policies(policies: Mapping[str, Any], X: Any, y: NDArray[Any], asked: Sequence[float]) -> list[Candidate]:
    """Every policy at every budget in `asked` and every selectable budget; without `asked`, also as it was fitted."""
    candidates = []
    for name, estimator in policies.items():
        try:
            check_fits(estimator, X, y)
        except ValueError as error:
            raise ValueError(f"the policy {name!r} does not fit the rows: {error}") from error
        given, data = policy_and_data(estimator, X)
        versions = dict(_at_budgets(given, asked))
        is_fixed = not versions
        if is_fixed or not asked:
            versions = {None: given, **versions}
        for set_to, policy in versions.items():
            label = name if set_to is None else f"{name} at {100 * set_to:.4g} %"
            answers = policy.predict_at_exits(data)
            measured = _measure(label, getattr(policy, "budget", None), y, answers, policy.predict_exit(data), policy)
            candidates.append(Candidate(policy, name, set_to, is_fixed, data, answers, measured))
    return candidates


def measure_exits(best: Candidate, y: NDArray[Any]) -> list[Measured]:
    """For each exit of a candidate, the results if all samples stop there."""
    return [
        _measure(f"all at exit {k}", None, y, best.answers, np.full(len(y), k), best.policy)
        for k in range(best.answers.shape[1])
    ]


def measure_network(X: Any, y: NDArray[Any], best: Candidate) -> Measured | None:
    """The network without exits; None if X does not have its logits, at a last exit without an added head."""
    logits = network_logits(X)
    if logits is None:
        return None
    correct = best.policy.classes_[np.argmax(logits, axis=1)] == y
    bound, exits = best.oracle(y), np.full(len(y), best.answers.shape[1] - 1)
    accuracy = float(correct.mean())
    regret = OracleRegret(bound.accuracy - accuracy, 1 - bound.mean_cost)
    return Measured(
        "the plain network", None, exits, correct, accuracy, 1.0, share_interval(correct), (1.0, 1.0), regret
    )


def candidates_at(candidates: Sequence[Candidate], budget: float | None) -> list[Candidate]:
    """The candidates that were set to this budget, and those whose budget is fixed; None means as fitted."""
    return [each for each in candidates if each.is_fixed or each.set_to == budget]


def best_within(candidates: Sequence[Candidate], budget: float | None) -> Candidate | None:
    """The most accurate candidate within a budget, and the cheapest among equals; None if no candidate is within it.

    If the budget is None, every candidate counts.
    """
    within = [candidate for candidate in candidates if budget is None or is_within(candidate.measured, budget)]
    return min(within, key=lambda each: (-each.measured.accuracy, each.measured.cost), default=None)


def is_within(measured: Measured, budget: float) -> bool:
    """Whether the cost is at most the budget, or the budget was set and the cost is above it by no more than chance."""
    limit = budget + 1e-9  # costs are means of many numbers
    was_set = measured.budget is not None and measured.budget <= limit
    return measured.cost <= limit or (was_set and measured.cost_interval[0] <= limit)


def difference_interval(first: Measured, second: Measured) -> tuple[float, float]:
    """95 % interval of the accuracy of the first minus that of the second, on the same rows.

    It is the normal interval with one more difference of each sign (Bonett and Price 2012), as in `bootstrap_interval`.
    """
    n_rows = len(first.correct) + 2
    gained = ((first.correct & ~second.correct).sum() + 1) / n_rows
    lost = ((second.correct & ~first.correct).sum() + 1) / n_rows
    difference = gained - lost
    half = norm.ppf(0.975) * np.sqrt((gained + lost - difference**2) / n_rows)
    return float(max(difference - half, -1)), float(min(difference + half, 1))


def share_interval(correct: NDArray[np.bool_]) -> tuple[float, float]:
    """Exact binomial 95 % interval of an accuracy."""
    low, high = binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, method="exact")
    return float(low), float(high)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Student's 95 % interval of a mean; for a single value, both ends are the value."""
    mean, n_rows = float(values.mean()), len(values)
    if n_rows == 1:
        return mean, mean
    half = float(student_t.ppf(0.975, n_rows - 1) * values.std(ddof=1) / np.sqrt(n_rows))
    return mean - half, mean + half


def _at_budgets(policy: Any, asked: Sequence[float]) -> Iterator[tuple[float | None, Any]]:
    """A policy at the budgets in `asked`, and at the selectable budgets that it can meet."""
    if not hasattr(policy, "with_budget"):
        return
    # A policy that has the budget already keeps its calibration.
    own = getattr(policy, "budget", None)
    for budget in asked:
        yield budget, policy if budget == own else policy.with_budget(budget)
    for budget in SELECTABLE:
        if budget in asked:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user did not pass this budget
            try:
                other = policy.with_budget(budget)
            except ValueError:  # below the cost of the first exit, or the policy has no fit_state_
                continue
        yield budget, policy if budget == own else other


def _measure(
    name: str,
    budget: float | None,
    y: NDArray[Any],
    answers: NDArray[Any],
    exits: NDArray[np.int64],
    policy: ExitPolicy,
) -> Measured:
    costs = policy.costs_
    correct = answers[np.arange(len(y)), exits] == y
    sample_costs = costs[exits]
    return Measured(
        name,
        budget,
        exits,
        correct,
        accuracy=float(correct.mean()),
        cost=float(sample_costs.mean()),
        accuracy_interval=share_interval(correct),
        cost_interval=mean_interval(sample_costs),
        regret=oracle_regret(y, answers, exits, costs),
        head_cost=float(policy.layout_.head_fractions[exits].mean()),
    )
