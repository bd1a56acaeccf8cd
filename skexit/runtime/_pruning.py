"""Policies without the exits that cost more time than they save."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skexit.exceptions import UnprofitableExitsWarning
from skexit.policies._access import steps_of, with_last_step
from skexit.policies._budgeted import BudgetedPolicy
from skexit.policies._steps import NetworkDecision
from skexit.runtime._exit_latency import ExitLatency
from skexit.utils._warnings import warn


def pruned(policy: Any, latency: ExitLatency, batch_size: int = 1, *, heads: Any = None) -> Any:
    """A policy that does not use exits whose decisions take longer than they save.

    One exit after the other is switched off, each time the one without which the expected time is the least, as long as
    that lowers it: with the other thresholds as they are, the samples that would leave there go on. Then the thresholds
    of the exits that are left are set anew for the same budget. Both are repeated until every exit pays. The expected
    time is that of each stage, and of each decision, for as many samples of a batch as reach it, of the rows that the
    policy was fitted on.

    If the costs of the policy are milliseconds, ``latency.layout``, then those of the copy, ``costs_``, leave out the
    decisions that it does not make, and what these took is spent on later exits: the copy meets the budget.

    Parameters
    ----------
    policy : fitted policy, or Pipeline that ends with one
        With ``with_budget`` and what that needs of the rows, ``fit_state_``.
    latency : ExitLatency
        What :func:`measure_latency` measured with this policy.
    batch_size : int, default=1
        Number of samples that arrive together.
    heads : fitted ExitHeads or ExitEnsemble, default=None
        As in :class:`EarlyExitModel`.

    Returns
    -------
    policy or Pipeline
        A fitted copy, in which the thresholds of exits that are switched off, or were not in use before, are ``inf``,
        also after ``with_budget``. It is not calibrated. Where every exit pays, `policy` as it is.

    Raises
    ------
    ValueError
        If the policy has no ``with_budget``, was shipped without ``fit_state_``, or has another number of exits than
        were measured, or `batch_size` is not positive.

    See Also
    --------
    measure_latency : What stages and decisions take.

    Notes
    -----
    An exit on whose notes a later decision depends is looked at also where nobody leaves. To switch it off saves no
    time unless the later one is off, too.

    Examples
    --------
    The decision at the second exit takes longer than the stage after it.

    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> from skexit.runtime import ExitLatency, pruned
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = ThresholdPolicy(budget=0.6, layout=4).fit(X, y)
    >>> stages, decisions = np.array([[5.0, 5.0, 1.0, 5.0]]), np.array([[0.1, 2.0, 0.1, 0.1]])
    >>> latency = ExitLatency(np.array([1]), stages, decisions, 0 * stages, 0 * stages, np.array([16.0]))
    >>> pruned(policy, latency).thresholds_.round(2)
    array([0.18,  inf, 0.64, -inf])
    """
    check_is_fitted(policy)
    own = steps_of(policy)[-1]
    n_measured = latency.stage_ms.shape[1]
    if not isinstance(own, BudgetedPolicy):
        raise ValueError(f"{own!r} has no budget for which thresholds can be set anew. Pass a policy with with_budget.")
    if own.fit_state_ is None:
        raise ValueError(
            f"this {type(own).__name__} has no fit_state_, by which its thresholds are set anew: it was shipped "
            "without it. Call pruned on the policy that was fitted, and ship the copy that it gives."
        )
    if len(own.thresholds_) != n_measured:
        raise ValueError(
            f"the policy has {len(own.thresholds_)} exits, but latency was measured at {n_measured}. Pass what "
            "measure_latency gives for a live network with this policy."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    before = [*([] if heads is None else [heads]), *steps_of(policy)[:-1]]
    found = own
    while (without := _exits_that_do_not_pay(before, found, latency, batch_size)) != _unused(found):
        found = _without(before, found, without, latency, batch_size)
    return policy if found is own else with_last_step(policy, found)


def warn_of_exits_that_do_not_pay(steps: Sequence[Any], latency: ExitLatency, names: Sequence[str]) -> None:
    """Warn of exits whose decisions take longer than they save, whatever the batch size that was measured.

    `steps` are what gives logits, and the policy. `names` are those of the exits.
    """
    *before, policy = steps
    if not isinstance(policy, BudgetedPolicy) or policy.fit_state_ is None:
        return
    sizes = [int(size) for size in latency.batch_sizes]
    do_not_pay = [{*_exits_that_do_not_pay(before, policy, latency, size)} - {*_unused(policy)} for size in sizes]
    exits = sorted(set.intersection(*do_not_pay)) if do_not_pay else []
    if exits:
        warn(UnprofitableExitsWarning([names[k] for k in exits], sizes))


def _unused(policy: BudgetedPolicy) -> list[int]:
    return np.flatnonzero(np.isposinf(policy.thresholds_)).tolist()


def _without(
    before: Sequence[Any], policy: BudgetedPolicy, exits: Sequence[int], latency: ExitLatency, batch_size: int
) -> BudgetedPolicy:
    """A copy without these exits, for the same budget."""
    other = copy.copy(policy)
    if policy.layout_.cost_unit == "ms":
        other.thresholds_ = _with_inf(policy.thresholds_, exits)
        is_observed = NetworkDecision([*before, other]).is_observed
        n_exits = len(is_observed)
        saved = np.zeros(len(other.thresholds_))
        saved[:n_exits] = np.where(is_observed, 0, latency._at(latency.exit_ms, batch_size)[:n_exits])
        other.costs_ = policy.layout_.cost_fractions - saved.cumsum() / batch_size / policy.layout_.network_cost
    return other._without_exits(exits)


def _with_inf(thresholds: NDArray[np.float64], exits: Sequence[int]) -> NDArray[np.float64]:
    changed = thresholds.copy()
    changed[list(exits)] = np.inf
    return changed


def _exits_that_do_not_pay(
    before: Sequence[Any], policy: BudgetedPolicy, latency: ExitLatency, batch_size: int
) -> list[int]:
    """These exits, after those that are not used."""
    scores, weight = policy._fitted_scores()

    def time_without(exits: Sequence[int]) -> float:
        other = copy.copy(policy)
        other.thresholds_ = _with_inf(policy.thresholds_, exits)
        other.record_distribution(scores, weight)
        return expected_ms([*before, other], latency, batch_size)

    without = _unused(policy)
    least = time_without(without)
    while True:
        used = [k for k in range(len(policy.thresholds_) - 1) if k not in without and _pays_for(policy, {*without, k})]
        times = [time_without([*without, k]) for k in used]
        if not times or min(times) >= least:
            return without
        least = min(times)
        without.append(used[int(np.argmin(times))])


def _pays_for(policy: BudgetedPolicy, without: set[int]) -> bool:
    """Whether the budget pays for the first of the other exits."""
    first = next(k for k in range(len(policy.thresholds_)) if k not in without)
    return policy.budget is None or policy.costs_[first] <= policy.budget


def expected_ms(steps: Sequence[Any], latency: ExitLatency, batch_size: int) -> float:
    """Milliseconds of a batch in a live network whose samples leave as those on which the policy was fitted.

    `steps` are what gives logits, and the policy.
    """
    decision = NetworkDecision(steps)
    reaching = batch_size * (1 - np.append(0, np.cumsum(decision.policy.exit_distribution_)[:-1]))
    return sum(
        _ms(latency, latency.stage_ms[:, k], reaching[k])
        + decision.is_observed[k] * _ms(latency, latency.exit_ms[:, k], reaching[k])
        for k in range(decision.n_exits)
    )


def _ms(latency: ExitLatency, times: NDArray[np.float64], n_samples: float) -> float:
    """Expected time for so many samples on average; fewer than one: for one, as often as there is one."""
    return float(latency._at(times, max(n_samples, 1.0)) * min(n_samples, 1.0))
