"""Two sets of thresholds, of which each sample follows one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit._array_api import array_namespace
from skexit.policies.quotas import exits_from_scores, threshold_between

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RandomizedThresholds:
    """Thresholds whose mean cost lies anywhere between those of a cheap and of a dear set.

    Parameters
    ----------
    cheap, dear : ndarray of shape (n_exits,)
        A sample stops at the first exit where its score is at least the threshold.
    cut : float
        Samples whose draw is at least `cut` follow the dear ones.
    """

    cheap: Floats
    dear: Floats
    cut: float

    @classmethod
    def for_budget(
        cls, cheap: Floats, dear: Floats, scores: Floats, draws: Floats, costs: Floats, weight: Floats, budget: float
    ) -> RandomizedThresholds:
        """The cut at which the given rows cost the budget, or less by at most one of them.

        Parameters
        ----------
        cheap, dear : ndarray of shape (n_exits,)
            Whose mean costs lie below and above the budget.
        scores : ndarray of shape (n_samples, n_exits)
        draws : ndarray of shape (n_samples,)
            From [0, 1).
        costs : ndarray of shape (n_exits,)
        weight : ndarray of shape (n_samples,)
        budget : float
            Mean cost.

        Returns
        -------
        RandomizedThresholds
        """
        order = np.argsort(-draws, kind="stable")
        cheap_cost, dear_cost = (costs[exits_from_scores(scores, thresholds)] for thresholds in (cheap, dear))
        left = budget * weight.sum() - weight @ cheap_cost
        spent = np.concatenate([[0.0], np.cumsum((weight * (dear_cost - cheap_cost))[order])])
        sorted_draws = draws[order]
        separable = np.concatenate([[True], sorted_draws[:-1] > sorted_draws[1:], [True]])
        n_dear = int(np.flatnonzero(separable & (spent <= left + 1e-9 * weight.sum()))[-1])
        return cls(cheap, dear, threshold_between(sorted_draws, n_dear))

    @property
    def thresholds(self) -> Floats:
        """One set of thresholds, for scores that `shifted` gave."""
        known = np.where(np.isfinite(self.cheap), self.cheap, self.dear)
        return np.where(np.isfinite(known) | (self.cheap == self.dear), known, 0.0)

    def shifted(self, k: int, scores: Any, draws: Any) -> Any:
        """Scores of exit `k` that pass ``thresholds`` where the sample's own threshold is passed.

        Parameters
        ----------
        k : int
        scores : array of shape (n_samples,)
        draws : array of shape (n_samples,)

        Returns
        -------
        array of shape (n_samples,)
            Infinite where an exit is switched off for a sample, or keeps all.
        """
        xp = array_namespace(scores)
        common = float(self.thresholds[k])
        return xp.where(draws >= self.cut, _shift(scores, self.dear[k], common), _shift(scores, self.cheap[k], common))


def _shift(scores: Any, threshold: float, common: float) -> Any:
    if threshold == common:
        return scores
    if np.isfinite(threshold):
        return scores + (common - float(threshold))
    return array_namespace(scores).full_like(scores, -float(threshold))
