"""Thresholds of all exits chosen together: what each is worth at a price of compute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skexit.policies.quotas import equal_thresholds, exits_from_scores, threshold_between

Floats = NDArray[np.float64]

#: Prices on a path. The last of them is zero.
_N_PRICES = 60
#: The smallest positive price, as a fraction of the largest.
_SMALLEST_PRICE = 1e-5
#: Sweeps over the exits at one price; a fixed point is reached long before.
_MOST_SWEEPS = 50


@dataclass(frozen=True)
class ThresholdPath:
    """Thresholds from the cheapest to the most accurate that compute can buy.

    Parameters
    ----------
    thresholds : ndarray of shape (n_points, n_exits)
    costs : ndarray of shape (n_points,)
        Mean cost on the rows that were fitted, increasing.
    rewards : ndarray of shape (n_points,)
        Mean reward on the same rows: a concave function of `costs`.
    """

    thresholds: Floats
    costs: Floats
    rewards: Floats

    def around(self, budget: float) -> tuple[Floats, Floats, float, float]:
        """The two points between which a budget lies.

        Parameters
        ----------
        budget : float
            Mean cost, at least that of the first point.

        Returns
        -------
        cheap, dear : ndarray of shape (n_exits,)
            Thresholds of the two; of the last point both, where the budget is beyond it.
        share : float
            Of the rows that must follow the dear ones, in [0, 1].
        price : float
            Reward that a unit of cost brings there.
        """
        right = min(int(np.searchsorted(self.costs, budget, side="right")), len(self.costs))
        if right == len(self.costs):
            return self.thresholds[-1], self.thresholds[-1], 0.0, 0.0
        left = max(right - 1, 0)
        run = self.costs[right] - self.costs[left]
        if run <= 0:
            return self.thresholds[left], self.thresholds[left], 0.0, 0.0
        price = (self.rewards[right] - self.rewards[left]) / run
        return self.thresholds[left], self.thresholds[right], float((budget - self.costs[left]) / run), float(price)


class ThresholdSearch:
    """Search for the thresholds that bring the most, for a price of compute.

    A row stops at the first exit where its score is at least the threshold. The value of a stop at
    exit k is its reward minus the price times the cost of the exit. With all thresholds but that of
    one exit given, the best for that exit is found exactly: in the order of the scores, the gain of
    leaving there over what happens else is summed up, and the largest sum says who leaves.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_exits)
        Larger scores leave first.
    rewards : ndarray of shape (n_samples, n_exits)
        What the answer of each exit is worth, as the probability that it is right.
    costs : ndarray of shape (n_exits,)
        Cumulative costs as fractions of the last exit's.
    weight : ndarray of shape (n_samples,)
    """

    def __init__(self, scores: Floats, rewards: Floats, costs: Floats, weight: Floats) -> None:
        self.scores, self.rewards, self.costs = scores, rewards, costs
        self.share = weight / weight.sum()
        self.n_exits = scores.shape[1]
        self._orders = [np.argsort(-scores[:, k], kind="stable") for k in range(self.n_exits - 1)]
        self._sorted = [scores[order, k] for k, order in enumerate(self._orders)]
        # Rows with equal scores leave together.
        self._inseparable = [np.flatnonzero(values[:-1] == values[1:]) for values in self._sorted]

    def best(self, price: float, thresholds: Floats) -> Floats:
        """Thresholds that no change of a single one improves.

        Parameters
        ----------
        price : float
            Reward that the cost of the last exit must bring.
        thresholds : ndarray of shape (n_exits,)
            Where to start.

        Returns
        -------
        ndarray of shape (n_exits,)
        """
        values = self.rewards - price * self.costs
        thresholds = thresholds.copy()
        for _ in range(_MOST_SWEEPS):
            if not self._sweep(values, thresholds):
                break
        return thresholds

    def _sweep(self, values: Floats, thresholds: Floats) -> bool:
        """Improve one threshold after another, from the last exit backwards; whether any changed."""
        leaves = self.scores >= thresholds
        reached = np.empty_like(leaves)
        reached[:, 0] = True
        np.logical_and.accumulate(~leaves[:, :-1], axis=1, out=reached[:, 1:])
        later = values[:, -1].copy()
        changed = False
        for k in reversed(range(self.n_exits - 1)):
            gain = (values[:, k] - later) * self.share * reached[:, k]
            order = self._orders[k]
            total = np.concatenate([[0.0], np.cumsum(gain[order])])
            current = total[np.count_nonzero(leaves[:, k])]
            total[self._inseparable[k] + 1] = -np.inf
            n_leaving = int(np.argmax(total))
            if total[n_leaving] > current + 1e-12:
                thresholds[k] = threshold_between(self._sorted[k], n_leaving)
                changed = True
                leaves[:, k] = self.scores[:, k] >= thresholds[k]
            later[leaves[:, k]] = values[leaves[:, k], k]
        return changed

    def objective(self, price: float, thresholds: Floats) -> float:
        """Mean reward minus the price of the mean cost."""
        cost, reward = self.outcome(thresholds)
        return reward - price * cost

    def outcome(self, thresholds: Floats) -> tuple[float, float]:
        """Mean cost and mean reward."""
        stops = exits_from_scores(self.scores, thresholds)
        reward = self.share @ self.rewards[np.arange(len(stops)), stops]
        return float(self.share @ self.costs[stops]), float(reward)

    def path(self) -> ThresholdPath:
        """The upper hull of what thresholds reach over a path of prices.

        Each price starts from what the price before it found, once from the highest price down and
        once from zero up, as a search that changes one threshold at a time may stop short.

        Returns
        -------
        ThresholdPath
        """
        found = []
        cheapest, dearest = (equal_thresholds(value, self.n_exits) for value in (-np.inf, np.inf))
        prices = self._prices()
        for ordered, thresholds in ((prices, cheapest), (prices[::-1], dearest)):
            for price in ordered:
                thresholds = self.best(price, thresholds)
                found.append(thresholds)
        candidates = np.stack([cheapest, dearest, *found])
        outcomes = np.array([self.outcome(thresholds) for thresholds in candidates])
        hull = upper_hull(outcomes[:, 0], outcomes[:, 1])
        return ThresholdPath(candidates[hull], outcomes[hull, 0], outcomes[hull, 1])

    def _prices(self) -> Floats:
        """From a price at which nobody should go on to zero."""
        gains = (self.rewards[:, 1:] - self.rewards[:, :1]) / (self.costs[1:] - self.costs[0])
        highest = max(float(gains.max(initial=0.0)), np.finfo(np.float64).tiny / _SMALLEST_PRICE)
        return np.append(np.geomspace(highest, highest * _SMALLEST_PRICE, _N_PRICES - 1), 0.0)


def upper_hull(costs: Floats, rewards: Floats) -> NDArray[np.intp]:
    """Points of the upper concave hull, from the cheapest to that with the highest reward.

    Parameters
    ----------
    costs, rewards : ndarray of shape (n_points,)

    Returns
    -------
    ndarray of shape (n_hull,) of int
        In the order of increasing costs, and of increasing rewards.
    """
    hull: list[int] = []
    for point in np.lexsort((-rewards, costs)).tolist():
        if hull and rewards[point] <= rewards[hull[-1]]:
            continue
        while len(hull) > 1 and _is_below(costs, rewards, hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.array(hull)


def _is_below(costs: Floats, rewards: Floats, left: int, middle: int, right: int) -> bool:
    """Whether a point is on or below the line between two others."""
    rise, run = rewards[right] - rewards[left], costs[right] - costs[left]
    return bool((rewards[middle] - rewards[left]) * run <= rise * (costs[middle] - costs[left]))
