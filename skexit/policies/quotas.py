"""Thresholds that send given shares of the samples to each exit, within a budget."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax

Floats = NDArray[np.float64]

#: A threshold lies up to this far below the score of the last sample to leave, so that a score
#: which is computed again, with another rounding, still passes it.
_ROUNDING = 1e-9


def tilted_distribution(log_prior: Floats, direction: Floats, costs: Floats, budget: float) -> Floats:
    """The distribution ``p_k ∝ exp(log_prior_k + t direction_k)`` whose mean cost is `budget`.

    Parameters
    ----------
    log_prior : ndarray of shape (n_exits,)
        ``-inf`` for an exit that must not be used.
    direction : ndarray of shape (n_exits,)
        Increases with the exits, so that a larger t means later exits. ``arange(n_exits)`` and a
        flat prior give the geometric distribution of MSDNet.
    costs : ndarray of shape (n_exits,)
        Cumulative costs, increasing.
    budget : float
        Mean cost to meet, in the unit of `costs`.

    Returns
    -------
    ndarray of shape (n_exits,)
        Sums to one. A budget outside the costs of the usable exits gives the nearest of them.
    """
    usable = np.flatnonzero(np.isfinite(log_prior))
    distribution = np.zeros(len(costs))
    costs, direction, log_prior = costs[usable], direction[usable], log_prior[usable]
    if budget <= costs[0]:
        distribution[usable[0]] = 1
    elif budget >= costs[-1]:
        distribution[usable[-1]] = 1
    else:
        bound = _tilt_bound(log_prior, direction)
        tilt = brentq(lambda t: softmax(log_prior + t * direction) @ costs - budget, -bound, bound, xtol=1e-13)
        distribution[usable] = softmax(log_prior + tilt * direction)
    return distribution


def quota_thresholds(
    scores: Floats,
    costs: Floats,
    budget: float,
    *,
    log_prior: Floats | None = None,
    direction: Floats | None = None,
    sample_weight: Floats | None = None,
    warn: bool = True,
) -> Floats:
    """One threshold an exit such that the mean cost on these samples is the budget.

    At each exit, the samples with the highest scores among those still running leave, until the
    quota of the exit is full (EENet, Algorithm 1). The quotas follow a tilted distribution that is
    solved again at each exit for the samples and the budget that are left: what rounding or tied
    scores make one exit miss, later exits make good.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_exits)
        Larger scores leave first.
    costs : ndarray of shape (n_exits,)
        Cumulative costs as fractions of the last exit's.
    budget : float
        Mean cost to meet, a fraction of the last exit's cost.
    log_prior : ndarray of shape (n_exits,), default=None
        Logarithm of the distribution to tilt (see `tilted_distribution`); flat by default.
    direction : ndarray of shape (n_exits,), default=None
        Direction of the tilt; ``arange(n_exits)`` by default.
    sample_weight : ndarray of shape (n_samples,), default=None
    warn : bool, default=True
        Warn where tied scores leave some of the budget unspent.

    Returns
    -------
    thresholds : ndarray of shape (n_exits,)
        A sample leaves where its score is at least the threshold. ``inf`` where nobody leaves,
        ``-inf`` at the last exit. The mean cost never exceeds the budget, and without ties falls
        short of it by less than one sample's cost. Samples with tied scores leave together; a
        warning says how much of the budget that leaves unspent.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.array([[0.9, 0.8], [0.2, 0.7], [0.4, 0.6], [0.1, 0.5]])
    >>> quota_thresholds(scores, costs=np.array([0.5, 1.0]), budget=0.75).round(6)
    array([ 0.4, -inf])
    """
    n_samples, n_exits = scores.shape
    log_prior = np.zeros(n_exits) if log_prior is None else log_prior
    direction = np.arange(n_exits, dtype=np.float64) if direction is None else direction
    weight = np.ones(n_samples) if sample_weight is None else sample_weight
    thresholds = np.full(n_exits, np.inf)
    thresholds[-1] = -np.inf
    running = np.arange(n_samples)
    left_to_spend = budget * weight.sum()
    usable = np.isfinite(log_prior)
    for k in np.flatnonzero(usable[:-1]):
        mass = weight[running].sum()
        if len(running) == 0:
            break
        next_cost = next((costs[j] for j in range(k + 1, n_exits) if usable[j]), costs[-1])
        distribution = tilted_distribution(log_prior[k:], direction[k:], costs[k:], left_to_spend / mass)
        thresholds[k], mass_leaving = _fill_quota(
            scores[running, k],
            weight[running],
            quota=distribution[0] * mass,
            # Those who stay need at least the cost of the next exit that is used.
            smallest=(mass * next_cost - left_to_spend) / (next_cost - costs[k]),
        )
        left_to_spend -= mass_leaving * costs[k]
        running = running[scores[running, k] < thresholds[k]]
    unspent = left_to_spend - weight[running].sum() * costs[-1]
    if warn:
        _warn_if_missed(unspent / weight.sum(), budget, costs, weight)
    return thresholds


def shared_threshold(scores: Floats, costs: Floats, budget: float, sample_weight: Floats | None = None) -> Floats:
    """The same threshold at every exit, such that the mean cost on these samples is the budget.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_exits)
    costs : ndarray of shape (n_exits,)
    budget : float
    sample_weight : ndarray of shape (n_samples,), default=None

    Returns
    -------
    thresholds : ndarray of shape (n_exits,)
        The largest mean cost within the budget that one threshold can reach; a warning says when
        tied scores keep it from the budget.
    """
    weight = np.ones(len(scores)) if sample_weight is None else sample_weight
    candidates = np.unique(scores[:, :-1])

    def thresholds_at(index: int) -> Floats:
        return equal_thresholds(candidates[index] - _ROUNDING if index < len(candidates) else np.inf, len(costs))

    def cost_at(index: int) -> float:
        return float(np.average(costs[exits_from_scores(scores, thresholds_at(index))], weights=weight))

    # The mean cost rises with the threshold: find the last candidate within the budget.
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost_at(middle) <= budget + 1e-12 else (low, middle - 1)
    _warn_if_missed(budget - cost_at(low), budget, costs, weight)
    return thresholds_at(low)


def equal_thresholds(value: float, n_exits: int) -> Floats:
    """The same threshold at every exit but the last, where all that are left leave.

    Parameters
    ----------
    value : float
    n_exits : int

    Returns
    -------
    ndarray of shape (n_exits,)
    """
    return np.append(np.full(n_exits - 1, float(value)), -np.inf)


def exits_from_scores(scores: Floats, thresholds: Floats) -> NDArray[np.int64]:
    """The first exit at which each sample's score is at least the threshold.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_exits)
    thresholds : ndarray of shape (n_exits,)
        The last is ``-inf``.

    Returns
    -------
    ndarray of shape (n_samples,) of int
    """
    return np.argmax(scores >= thresholds, axis=1)


def threshold_between(scores: Floats, n_passing: int) -> float:
    """A threshold that the first scores pass, and the others do not.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Falling; that at `n_passing` is smaller than that before it.
    n_passing : int

    Returns
    -------
    float
        ``inf`` where none pass, ``-inf`` where all do.
    """
    if n_passing == 0:
        return np.inf
    if n_passing == len(scores):
        return -np.inf
    last, following = scores[n_passing - 1], scores[n_passing]
    threshold = max((last + following) / 2, last - _ROUNDING)
    return float(threshold if threshold > following else last)


def _tilt_bound(log_prior: Floats, direction: Floats) -> float:
    """A tilt at which all but the outermost exits have vanished."""
    return float((np.ptp(log_prior) + 50.0) / np.diff(direction).min())


def _fill_quota(scores: Floats, weight: Floats, *, quota: float, smallest: float) -> tuple[float, float]:
    """Threshold that lets about `quota` of the weight leave, but no less than `smallest`.

    Returns the threshold and the weight that leaves.
    """
    values, group = np.unique(-scores, return_inverse=True)
    mass = np.concatenate([[0.0], np.cumsum(np.bincount(group, weights=weight))])
    n_groups = int(np.argmin(np.abs(mass - quota)))
    slack = 1e-9 * mass[-1]
    n_groups = max(n_groups, int(np.searchsorted(mass, smallest - slack)))
    n_groups = min(n_groups, len(values))
    return threshold_between(-values, n_groups), float(mass[n_groups])


def _warn_if_missed(missing: float, budget: float, costs: Floats, weight: Floats) -> None:
    one_sample = costs[-1] * weight.max() / weight.sum()
    if missing > one_sample + 1e-9:
        warnings.warn(
            f"the mean cost on the fitting data is {budget - missing:.4f}, below the budget {budget:.4f}: samples "
            "with tied scores leave together. A score with fewer ties meets the budget.",
            UserWarning,
            stacklevel=4,
        )
