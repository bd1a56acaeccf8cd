"""Thresholds for a budget from a path of prices, or by quotas where these are as good."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skexit.policies.lagrangian import ThresholdPath, ThresholdSearch
from skexit.policies.quotas import exits_from_scores, quota_thresholds
from skexit.policies.randomized import RandomizedThresholds

Floats = NDArray[np.float64]

#: Steps of the bisection between two sets of thresholds.
_N_BISECTIONS = 40


@dataclass(frozen=True)
class LagrangianSchedule:
    """A path of thresholds, and what it takes to know whether it is worth more than quotas.

    A path that is fitted on few rows follows their chances. So each half of the rows also has a
    path of its own, and the other half says how right these are.

    Parameters
    ----------
    path : ThresholdPath
        Of all rows.
    path_of_halves : tuple of ThresholdPath
        Of the rows outside each half; empty where a half has no rows.
    in_second_half : ndarray of shape (n_samples,) of bool
    correct : ndarray of shape (n_samples, n_exits) of bool
        Which exits are right for which rows.
    draws : ndarray of shape (n_samples,)
        From [0, 1), which decide which rows follow which thresholds.
    costs : ndarray of shape (n_exits,)
        Cumulative costs as fractions of the last exit's.
    weight : ndarray of shape (n_samples,)
    """

    path: ThresholdPath
    path_of_halves: tuple[ThresholdPath, ...]
    in_second_half: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    draws: Floats
    costs: Floats
    weight: Floats

    @classmethod
    def fit(
        cls,
        scores: Floats,
        rewards: Floats,
        correct: NDArray[np.bool_],
        draws: Floats,
        in_second_half: NDArray[np.bool_],
        costs: Floats,
        weight: Floats,
    ) -> LagrangianSchedule:
        """Search the paths.

        Parameters
        ----------
        scores : ndarray of shape (n_samples, n_exits)
            Larger scores leave first.
        rewards : ndarray of shape (n_samples, n_exits)
            How likely each exit is to be right.
        correct, draws, in_second_half, costs, weight
            As of the class.

        Returns
        -------
        LagrangianSchedule
        """

        def path_of(rows: NDArray[np.bool_]) -> ThresholdPath:
            return ThresholdSearch(scores[rows], rewards[rows], costs, weight[rows]).path()

        halves = (in_second_half, ~in_second_half)
        path_of_halves = tuple(path_of(~half) for half in halves) if all(half.any() for half in halves) else ()
        return cls(
            path_of(np.ones(len(scores), dtype=bool)), path_of_halves, in_second_half, correct, draws, costs, weight
        )

    def pays(self, scores: Floats, budget: float) -> bool:
        """Whether the path is right more often than geometric quotas, by more than the standard error.

        Parameters
        ----------
        scores : ndarray of shape (n_samples, n_exits)
            As fitted.
        budget : float
            A fraction of the last exit's cost.

        Returns
        -------
        bool
            On rows that had no part in the thresholds that they are put to.
        """
        if not self.path_of_halves:
            return False
        rows = np.arange(len(scores))
        gain = np.empty(len(scores))
        for half, path in zip((self.in_second_half, ~self.in_second_half), self.path_of_halves, strict=True):
            cheap, dear, share, price = path.around(budget)
            follows_dear = self.draws >= 1 - share
            stops = np.where(follows_dear, exits_from_scores(scores, dear), exits_from_scores(scores, cheap))
            quotas = quota_thresholds(scores[~half], self.costs, budget, sample_weight=self.weight[~half], warn=False)
            quota_stops = exits_from_scores(scores, quotas)
            more_right = self.correct[rows, stops].astype(np.float64) - self.correct[rows, quota_stops]
            # Neither meets the budget exactly on other rows: what one spends more must pay.
            more_spent = self.costs[stops] - self.costs[quota_stops]
            gain[half] = (more_right - price * more_spent)[half]
        mean = np.average(gain, weights=self.weight)
        standard_error = np.sqrt(np.sum((self.weight * (gain - mean)) ** 2)) / self.weight.sum()
        return bool(mean > standard_error)

    def randomized(self, scores: Floats, budget: float) -> RandomizedThresholds:
        """Neighbouring points of the path, mixed so that these rows cost the budget.

        Parameters
        ----------
        scores : ndarray of shape (n_samples, n_exits)
            As fitted.
        budget : float

        Returns
        -------
        RandomizedThresholds
        """
        cheap, dear, _, _ = self.path.around(budget)
        return RandomizedThresholds.for_budget(cheap, dear, scores, self.draws, self.costs, self.weight, budget)

    def between(self, scores: Floats, rewards: Floats, budget: float) -> Floats:
        """The better of two sets of thresholds within the budget: the cheaper point of the path, or between two.

        Parameters
        ----------
        scores, rewards : ndarray of shape (n_samples, n_exits)
            As fitted.
        budget : float

        Returns
        -------
        ndarray of shape (n_exits,)
        """
        cheap, dear, _, _ = self.path.around(budget)
        start, end = _finite(cheap, scores), _finite(dear, scores)

        def outcome(thresholds: Floats) -> tuple[float, float]:
            stops = exits_from_scores(scores, thresholds)
            reward = np.average(rewards[np.arange(len(stops)), stops], weights=self.weight)
            return float(np.average(self.costs[stops], weights=self.weight)), float(reward)

        low, high = 0.0, 1.0
        for _ in range(_N_BISECTIONS):
            middle = (low + high) / 2
            is_within = outcome(start + middle * (end - start))[0] <= budget + 1e-12
            low, high = (middle, high) if is_within else (low, middle)
        between = start + low * (end - start)
        between[-1] = -np.inf
        return between if outcome(between)[1] > outcome(cheap)[1] else cheap


def _finite(thresholds: Floats, scores: Floats) -> Floats:
    """Thresholds that do the same on these rows, none of them infinite."""
    margin = 1e-9 + np.ptp(scores, axis=0)
    return np.clip(thresholds, scores.min(axis=0) - 1e-3 * margin, scores.max(axis=0) + 1e-3 * margin)
