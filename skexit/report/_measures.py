"""What a report measures: accuracy and cost of each policy at each budget, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data._network_logits import network_logits
from skexit.metrics import OracleRegret, bootstrap_interval, oracle_regret
from skexit.policies import ExitPolicy, OracleResult
from skexit.policies._access import check_fits, policy_and_data


@dataclass(frozen=True)
class Measured:
    """Answers at certain exits, and how good they are.

    `budget` is the one that was set, if any. `exits` and `correct` have one entry per sample. The cost is a fraction of
    the network's, of which `head_cost` is for heads; the intervals are of 95 %.
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
    """A policy at a budget, with X as the policy sees it and the answers of every exit, of shape (n_samples, n_exits).

    `source` is the name of the policy that was given.
    """

    policy: ExitPolicy
    source: str
    X: Any
    answers: NDArray[Any]
    measured: Measured

    def oracle(self, y: NDArray[Any]) -> OracleResult:
        """What perfect knowledge of the labels would reach at these exits."""
        return OracleResult._from_correct(self.answers == y[:, None], self.policy.costs_)


def measure_policies(
    policies: Mapping[str, Any], X: Any, y: NDArray[Any], budgets: Sequence[float], **resampling: Any
) -> list[Candidate]:
    """Every policy at every budget, or as it is where its budget cannot be changed.

    `resampling` are parameters of `bootstrap_interval`.
    """
    candidates = []
    for name, estimator in policies.items():
        try:
            check_fits(estimator, X, y)
        except ValueError as error:
            raise ValueError(f"the policy {name!r} does not fit the rows: {error}") from error
        given, data = policy_and_data(estimator, X)
        for policy in _at_budgets(given, budgets):
            budget = getattr(policy, "budget", None)
            label = name if budget is None or not budgets else f"{name} at {100 * budget:.4g} %"
            answers = policy.predict_at_exits(data)
            measured = _measure(label, budget, y, answers, policy.predict_exit(data), policy, **resampling)
            candidates.append(Candidate(policy, name, data, answers, measured))
    return candidates


def measure_exits(best: Candidate, y: NDArray[Any], **resampling: Any) -> list[Measured]:
    """Every exit of a candidate, as if all samples stopped there."""
    return [
        _measure(f"all at exit {k}", None, y, best.answers, np.full(len(y), k), best.policy, **resampling)
        for k in range(best.answers.shape[1])
    ]


def measure_network(X: Any, y: NDArray[Any], best: Candidate, **resampling: Any) -> Measured | None:
    """The network without exits, where the rows have its answers: as logits of a last exit without added heads."""
    logits = network_logits(X)
    if logits is None:
        return None
    correct = best.policy.classes_[np.argmax(logits, axis=1)] == y
    bound, exits = best.oracle(y), np.full(len(y), best.answers.shape[1] - 1)
    regret = OracleRegret(bound.accuracy - float(correct.mean()), 1 - bound.mean_cost)
    interval = bootstrap_interval(np.mean, correct, **resampling)
    return Measured("the network", None, exits, correct, float(correct.mean()), 1.0, interval, (1.0, 1.0), regret)


def best_within(candidates: Sequence[Candidate], budget: float | None) -> Candidate | None:
    """The most accurate candidate within a budget, of equals the cheapest; None if there is none.

    Without a budget, every candidate is within.
    """
    within = [candidate for candidate in candidates if budget is None or is_within(candidate.measured, budget)]
    return min(within, key=lambda each: (-each.measured.accuracy, each.measured.cost), default=None)


def is_within(measured: Measured, budget: float) -> bool:
    """Whether the cost is at most the budget; above it by chance counts for a policy that was set to it."""
    limit = budget + 1e-9  # costs are means of many numbers
    was_set = measured.budget is not None and measured.budget <= limit
    return measured.cost <= limit or (was_set and measured.cost_interval[0] <= limit)


def difference_interval(first: Measured, second: Measured, **resampling: Any) -> tuple[float, float]:
    """95 % interval of how much more accurate the first is than the second, on the same rows."""
    return bootstrap_interval(
        lambda a, b: float(a.mean() - b.mean()), first.correct, second.correct, method="difference", **resampling
    )


def _at_budgets(policy: ExitPolicy, budgets: Sequence[float]) -> list[Any]:
    if not budgets or not hasattr(policy, "with_budget"):
        return [policy]
    # A policy that has the budget already keeps its calibration.
    own = getattr(policy, "budget", None)
    return [policy if budget == own else policy.with_budget(budget) for budget in budgets]


def _measure(
    name: str,
    budget: float | None,
    y: NDArray[Any],
    answers: NDArray[Any],
    exits: NDArray[np.int64],
    policy: ExitPolicy,
    **resampling: Any,
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
        accuracy_interval=bootstrap_interval(np.mean, correct, method="share", **resampling),
        cost_interval=bootstrap_interval(np.mean, sample_costs, method="percentile", **resampling),
        regret=oracle_regret(y, answers, exits, costs),
        head_cost=float(policy.layout_.head_fractions[exits].mean()),
    )
