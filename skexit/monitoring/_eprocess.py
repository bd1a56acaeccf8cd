"""Evidence that means have changed, valid at any time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Stakes of the bets, as shares of the largest stake that cannot lose all wealth.
_STAKES = np.array([1 / 32, 1 / 8, 1 / 2])
_LARGEST = 1e300


class DriftEvidence:
    r"""E-values for the hypothesis that means of values in [0, 1] stay between `low` and `high`.

    For each mean there are two tests by betting. One bets that values are above `high`, the other that they are below
    `low`. A value x multiplies the wealth of the first test by :math:`1 + \lambda (x - h)`, with h for `high`. If the
    mean is at most h, the wealth does not grow on average. A share :math:`1 / (t (t + 1))` of the initial wealth bets
    from sample t on, so that a late change is found as soon as an early one. By Ville's inequality, the probability
    that the wealth ever exceeds :math:`1 / \alpha` is at most :math:`\alpha`, even if it is checked after every sample.
    Memory does not grow with the number of samples.
    """

    def __init__(self, low: Floats, high: Floats) -> None:
        self.low, self.high = low, high
        with np.errstate(divide="ignore"):
            self._up = np.minimum(1 / high, _LARGEST)[:, None] * _STAKES
            self._down = np.minimum(1 / (1 - low), _LARGEST)[:, None] * _STAKES
        self._wealth = np.zeros((2, len(low), len(_STAKES)))
        self._n = np.zeros(len(low), dtype=np.int64)

    def update(self, values: Floats) -> None:
        """Add the values of one sample, of shape (n_means,). NaN stands for a missing value."""
        seen = ~np.isnan(values)
        self._n[seen] += 1
        share = 1 / (self._n[seen] * (self._n[seen] + 1.0))[:, None]
        given = values[seen][:, None]
        factors = np.stack(
            [
                1 + self._up[seen] * (given - self.high[seen][:, None]),
                1 + self._down[seen] * (self.low[seen][:, None] - given),
            ]
        )
        self._wealth[:, seen] = np.minimum((self._wealth[:, seen] + share) * factors, _LARGEST)

    def e_values(self) -> Floats:
        """The e-values of rises and falls, of shape (2, n_means). All are 1 before the first sample."""
        not_yet_bet: Floats = 1 / (self._n + 1.0)
        values: Floats = self._wealth.mean(axis=2) + not_yet_bet
        return values
