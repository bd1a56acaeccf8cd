"""Thresholds that send given shares of the samples to each exit, within a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax

from skexit.policies._gain import exceeds_error
from skexit.utils._warnings import warn

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

#: Scores are tied if they differ by less than this, or by less relative to their size: sums in another order differ by
#: so much. A larger number would tie confident samples if scores are probabilities, and leave some budget unspent.
_ROUNDING = 8 * np.finfo(np.float64).eps


def tilted_distribution(log_prior: Floats, direction: Floats, costs: Floats, budget: float) -> Floats:
    """The distribution ``p_k ∝ exp(log_prior_k + t direction_k)`` whose mean cost is `budget`.

    An exit with a `log_prior` of ``-inf`` is not used. For a budget outside the costs of the others, only the nearest
    of them is used. `direction` increases with the exits, so that a larger t means later exits; ``arange(n_exits)`` and
    a flat prior give MSDNet's geometric distribution. Cumulative `costs` increase, and have the unit of the budget.
    """
    usable = np.flatnonzero(np.isfinite(log_prior))
    distribution = np.zeros(len(costs))
    costs, direction, log_prior = costs[usable], direction[usable], log_prior[usable]
    if budget <= costs[0]:
        distribution[usable[0]] = 1
    elif budget >= costs[-1]:
        distribution[usable[-1]] = 1
    else:
        # With a tilt of this size, the first or the last exit gets almost all samples.
        bound = float((np.ptp(log_prior) + 50.0) / np.diff(direction).min())
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
    """One threshold per exit such that the mean cost on these samples is the budget.

    At each exit, the running samples with the highest scores leave, until the quota of the exit is full (EENet,
    Algorithm 1). The threshold is halfway between the lowest score that leaves and the highest score that stays.
    The quotas follow a tilted distribution, which is computed again at each exit for the remaining samples and budget.
    Later exits thereby correct for rounding and tied scores at earlier exits.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_exits)
        Samples with larger scores leave first. No sample leaves at an early exit where all scores are ``-inf``.
    costs : ndarray of shape (n_exits,)
        Cumulative costs, in the unit of the budget.
    budget : float
        Mean cost to meet; a budget above the cost of the last exit is not spent completely.
    log_prior : ndarray of shape (n_exits,), default=None
        Logarithm of the distribution to tilt (see `tilted_distribution`); flat by default.
    direction : ndarray of shape (n_exits,), default=None
        Direction of the tilt; ``arange(n_exits)`` by default.
    sample_weight : ndarray of shape (n_samples,), default=None
        Weight of each sample; equal by default.
    warn : bool, default=True
        Whether to warn if tied scores leave some of the budget unspent.

    Returns
    -------
    thresholds : ndarray of shape (n_exits,)
        A sample leaves if its score is at least the threshold. ``inf`` if no sample leaves, ``-inf`` at the last exit.
        The mean cost never exceeds the budget. Without ties, it is below the budget by less than one sample's cost.
        Samples with tied scores leave together; a warning tells the mean cost if some of the budget is left unspent.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.array([[0.9, 0.8], [0.2, 0.7], [0.4, 0.6], [0.1, 0.5]])
    >>> quota_thresholds(scores, costs=np.array([0.5, 1.0]), budget=0.75).round(6)
    array([ 0.3, -inf])
    """
    n_exits = scores.shape[1]
    log_prior = np.zeros(n_exits) if log_prior is None else log_prior
    direction = np.arange(n_exits, dtype=np.float64) if direction is None else direction
    weight = np.ones(len(scores)) if sample_weight is None else sample_weight
    thresholds = np.full(n_exits, np.inf)
    thresholds[-1] = -np.inf
    running = np.flatnonzero(weight > 0)
    left_to_spend = budget * weight.sum()
    switched_off = np.append(np.isneginf(scores[:, :-1]).all(axis=0), False)
    log_prior = np.where(switched_off, -np.inf, log_prior)
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
            # Samples that stay cost at least as much as the next exit that is used.
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
        Samples with larger scores leave first.
    costs : ndarray of shape (n_exits,)
        Cumulative costs, in the unit of the budget.
    budget : float
        Mean cost to meet; a budget above the cost of the last exit is not spent completely.
    sample_weight : ndarray of shape (n_samples,), default=None
        Weight of each sample; equal by default.

    Returns
    -------
    thresholds : ndarray of shape (n_exits,)
        The thresholds with the largest mean cost within the budget; a warning is raised if tied scores keep
        it below the budget.
    """
    weight = np.ones(len(scores)) if sample_weight is None else sample_weight
    if len(costs) == 1:
        return np.array([-np.inf])
    scores, weight = scores[weight > 0], weight[weight > 0]
    departures = _departures(scores)
    n_leaving = _numbers_passing(departures.levels)
    spent = departures.means(np.broadcast_to(costs, scores.shape), weight)[n_leaving]
    # The mean cost falls as samples leave: take the first one within the budget.
    first = min(int(np.argmax(spent <= budget + 1e-9)), len(spent) - 1)
    _warn_if_missed(budget - spent[first], budget, costs, weight)
    return equal_thresholds(threshold_between(departures.levels, int(n_leaving[first])), len(costs))


def rewarding_threshold(scores: Floats, rewards: Floats, sample_weight: Floats | None = None) -> float:
    """The shared threshold with the largest mean reward on these samples.

    It is ``inf`` unless the mean reward exceeds that of the last exit by more than two standard errors of the
    difference. The rewards, of shape (n_samples, n_exits), are the values of the predictions of the exits.
    """
    weight = np.ones(len(scores)) if sample_weight is None else sample_weight
    if scores.shape[1] == 1:
        return np.inf
    scores, rewards, weight = scores[weight > 0], rewards[weight > 0], weight[weight > 0]
    departures = _departures(scores)
    n_leaving = _numbers_passing(departures.levels)
    best = int(np.argmax(departures.means(rewards, weight)[n_leaving]))
    threshold = threshold_between(departures.levels, int(n_leaving[best]))
    stops = exits_from_scores(scores, equal_thresholds(threshold, scores.shape[1]))
    harm = rewards[np.arange(len(scores)), stops] - rewards[:, -1]
    return threshold if exceeds_error(harm, weight, n_errors=2) else np.inf


def equal_thresholds(value: float, n_exits: int) -> Floats:
    """The same threshold at every exit but the last, and ``-inf`` at the last exit."""
    return np.append(np.full(n_exits - 1, float(value)), -np.inf)


def exits_from_scores(scores: Floats, thresholds: Floats) -> NDArray[np.int64]:
    """The first exit at which each sample's score is at least the threshold, which is ``-inf`` at the last."""
    return np.argmax(scores >= thresholds, axis=1)


def threshold_between(scores: Floats, n_passing: int) -> float:
    """The threshold halfway between the first `n_passing` scores, which reach it, and the others, which do not.

    Scores are in falling order, and tied scores are on the same side. ``inf`` if no score reaches it, ``-inf`` if all
    do.
    """
    if n_passing == 0:
        return np.inf
    if n_passing == len(scores):
        return -np.inf
    last, following = scores[n_passing - 1], scores[n_passing]
    threshold = (last + following) / 2
    return float(threshold if threshold > following else last)


def _fill_quota(scores: Floats, weight: Floats, *, quota: float, smallest: float) -> tuple[float, float]:
    """Threshold at which about `quota` of the weight leaves, but at least `smallest`.

    Returns the threshold and the weight that leaves.
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    n_passing = _numbers_passing(falling)
    mass = np.concatenate([[0.0], np.cumsum(weight[order])])[n_passing]
    slack = 1e-9 * mass[-1]  # rounding must not decide between equal distances, nor exclude the smallest
    distance = np.abs(mass - quota)
    chosen = int(np.argmax(distance <= distance.min() + slack))
    chosen = max(chosen, int(np.searchsorted(mass, smallest - slack)))
    chosen = min(chosen, len(mass) - 1)
    return threshold_between(falling, int(n_passing[chosen])), float(mass[chosen])


def _numbers_passing(falling: Floats) -> Indices:
    """Numbers of scores that can reach a threshold, for scores in falling order: tied scores reach it together."""
    tied = np.isclose(falling[1:], falling[:-1], rtol=_ROUNDING, atol=_ROUNDING)
    return np.concatenate([[0], np.flatnonzero(~tied) + 1, [len(falling)]])


@dataclass
class _Departures:
    """Changes of the exits of samples, one by one, while the threshold that all exits share falls."""

    levels: Floats
    """Threshold from which a sample stops earlier, from the highest to the lowest."""
    rows: Indices
    stops: Indices
    """Exit where the sample then stops."""
    stopped_before: Indices

    def means(self, values: Floats, weight: Floats) -> Floats:
        """Weighted mean of `values` at the exits where samples stop: all at the last exit, then after each change."""
        steps = weight[self.rows] * (values[self.rows, self.stops] - values[self.rows, self.stopped_before])
        return np.cumsum(np.append(weight @ values[:, -1], steps)) / weight.sum()


def _departures(scores: Floats) -> _Departures:
    n_samples, n_exits = scores.shape
    # One row per exit, so that steps from exit to exit read memory in order.
    highest = np.array(scores[:, :-1].T, order="C")
    for k in range(1, n_exits - 1):
        np.maximum(highest[k - 1], highest[k], out=highest[k])
    # A sample never stops first at an exit whose score is not above the scores of all earlier exits.
    rises = np.concatenate([highest[:1] > -np.inf, highest[1:] > highest[:-1]])
    next_rise = np.full((n_exits - 1, n_samples), n_exits - 1, dtype=np.int16)
    for k in reversed(range(n_exits - 2)):
        next_rise[k] = np.where(rises[k + 1], k + 1, next_rise[k + 1])
    stops, rows = np.nonzero(rises)
    levels = highest[rises]
    order = np.argsort(-levels)
    return _Departures(levels[order], rows[order], stops[order], next_rise[rises][order])


def _warn_if_missed(missing: float, budget: float, costs: Floats, weight: Floats) -> None:
    one_sample = costs[-1] * weight.max() / weight.sum()
    beyond_last_exit = max(budget - costs[-1], 0)
    if missing - beyond_last_exit > one_sample + 1e-9:
        warn(
            f"the mean cost on the fitting data is {budget - missing:.4f}, below the budget {budget:.4f}: samples "
            "with tied scores leave together. Use scores with fewer ties, such as criterion='max_prob' instead of "
            "'vote'. Equal samples always have tied scores."
        )
