"""Evidence that means have left their reference, valid at any time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Stakes, as shares of the largest that cannot lose everything.
_STAKES = np.array([1 / 32, 1 / 8, 1 / 2])
_LARGEST = 1e300


class DriftEvidence:
    r"""E-values against means in [0, 1] that stay between `low` and `high`.

    For each mean there are two players. One bets that values are above `high`, the other that they are below `low`: the
    first multiplies his money by :math:`1 + \lambda (x - h)`, which does not gain on average while the mean is at most
    h. So that a late change is found as soon as an early one, a share :math:`1 / (t (t + 1))` of the first money is
    played from sample t on. The money never exceeds :math:`1 / \alpha` with a probability above :math:`\alpha`
    (Ville), however often one looks. Memory does not grow with the number of samples.
    """

    def __init__(self, low: Floats, high: Floats) -> None:
        self.low, self.high = low, high
        with np.errstate(divide="ignore"):
            self._up = np.minimum(1 / high, _LARGEST)[:, None] * _STAKES
            self._down = np.minimum(1 / (1 - low), _LARGEST)[:, None] * _STAKES
        self._money = np.zeros((2, len(low), len(_STAKES)))
        self._n = np.zeros(len(low), dtype=np.int64)

    def update(self, values: Floats) -> None:
        """Take one sample, of shape (n_means,); NaN where it has no value."""
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
        self._money[:, seen] = np.minimum((self._money[:, seen] + share) * factors, _LARGEST)

    def e_values(self) -> Floats:
        """The e-values of rises and falls, of shape (2, n_means): one before the first sample."""
        kept: Floats = 1 / (self._n + 1.0)
        values: Floats = self._money.mean(axis=2) + kept
        return values
