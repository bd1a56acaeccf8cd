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
from skexit.utils._checks import check_positive
from skexit.utils._warnings import warn


def pruned(policy: Any, latency: ExitLatency, batch_size: int = 1, *, heads: Any = None) -> Any:
    """A copy of a policy that does not use exits whose decisions take longer than they save.

    The function first switches off exits one by one, each time the exit without which the expected time is shortest, as
    long as this lowers the expected time. The other thresholds do not change in this step, so samples that would leave
    at the exit continue. Then it computes the thresholds of the remaining exits again, for the same budget. It repeats
    both steps until every exit saves time. The expected time is the sum over stages and decisions, each for the part of
    a batch that reaches it. These parts are those of the rows that the policy was fitted on.

    If the costs of the policy are milliseconds (``latency.layout``), the ``costs_`` of the copy leave out the decisions
    that it no longer makes. The copy spends this time on later exits and still meets the budget.

    Parameters
    ----------
    policy : fitted policy, or Pipeline that ends with one
        It must have ``with_budget`` and ``fit_state_``.
    latency : ExitLatency
        Result of :func:`measure_latency` with this policy.
    batch_size : int, default=1
        Number of samples that arrive together.
    heads : fitted ExitHeads or ExitEnsemble, default=None
        As in :class:`EarlyExitModel`.

    Returns
    -------
    policy or Pipeline
        A fitted copy. The thresholds of exits that are switched off, or were not in use before, are ``inf``, and stay
        ``inf`` after ``with_budget``. The copy is not calibrated. If every exit saves time, `policy` itself is
        returned.

    Raises
    ------
    ValueError
        If the policy has no ``with_budget`` or no ``fit_state_``, its number of exits differs from that in `latency`,
        or `batch_size` is not positive.

    See Also
    --------
    measure_latency : Measures the times of stages and decisions.
    ExitLatency.expected : The expected time of the live network.

    Notes
    -----
    If a later decision needs the notes of an exit, the exit is computed even if no sample leaves there. To switch off
    such an exit saves time only if the later exit is switched off, too.

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
    if not isinstance(own, BudgetedPolicy):
        raise ValueError(f"policy={own!r} has no budget. Pass a policy with with_budget, such as ThresholdPolicy.")
    if own.fit_state_ is None:
        raise ValueError(
            f"policy={own!r} has no fit_state_, from which thresholds are computed. Call pruned on the policy that was "
            "fitted, before without_fit_state()."
        )
    latency._check_exits(own)
    check_positive("batch_size", batch_size)
    before = [*([] if heads is None else [heads]), *steps_of(policy)[:-1]]
    found = own
    while (without := _exits_that_do_not_pay(before, found, latency, batch_size)) != _unused(found):
        found = _without(before, found, without, latency, batch_size)
    return policy if found is own else with_last_step(policy, found)


def warn_of_exits_that_do_not_pay(steps: Sequence[Any], latency: ExitLatency, names: Sequence[str]) -> None:
    """Warn of exits whose decisions take longer than they save at all batch sizes that were measured.

    `steps` are the steps that compute logits, and the policy. `names` are the names of the exits.
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
    """A copy of the policy without some exits, for the same budget."""
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
    """The unused exits, and then the exits whose decisions take longer than they save."""
    scores, weight = policy._fitted_scores()

    def time_without(exits: Sequence[int]) -> float:
        other = copy.copy(policy)
        other.thresholds_ = _with_inf(policy.thresholds_, exits)
        other.record_distribution(scores, weight)
        return latency._expected_ms(NetworkDecision([*before, other]), other.exit_distribution_, batch_size)

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
    """Whether the budget is at least the cost of the first remaining exit."""
    first = next(k for k in range(len(policy.thresholds_)) if k not in without)
    return policy.budget is None or policy.costs_[first] <= policy.budget
