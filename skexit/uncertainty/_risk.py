"""P-values for tests of whether a risk is below a level, valid for any number of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

Floats = NDArray[np.float64]


def binomial_p_value(losses: ArrayLike, alpha: float) -> float:
    """P-value of the hypothesis that a loss, which is 0 or 1, is 1 with a probability above `alpha`.

    It is the binomial probability of at most as many losses of 1 as in `losses`, if the probability of each were
    `alpha`. The test is exact.

    Parameters
    ----------
    losses : array-like of shape (n_samples,)
        0 or 1, independent of each other.
    alpha : float
        The bound in the hypothesis, between 0 and 1.

    Returns
    -------
    float
        The p-value, between 0 and 1.

    Examples
    --------
    >>> round(binomial_p_value([0] * 100, alpha=0.05), 4)
    0.0059
    """
    values = np.asarray(losses)
    return float(binom.cdf(values.sum(), len(values), alpha))


def betting_p_value(losses: ArrayLike, alpha: float, delta: float = 0.1) -> float:
    """P-value of the hypothesis that the expected loss is above `alpha`, for losses in [0, 1].

    A player starts with a capital of 1 and bets, for one loss after another, that it is below alpha. The stake depends
    on earlier losses only. If the expected loss is alpha or more, the largest capital over time exceeds 1 / p with a
    probability of at most p [1]_ [2]_. The p-value is one over the largest capital. If losses vary little, it is
    smaller than p-values from bounds that do not use the variance.

    Parameters
    ----------
    losses : array-like of shape (n_samples,)
        Losses in [0, 1], in an order that does not depend on their values.
    alpha : float
        The bound in the hypothesis, between 0 and 1.
    delta : float, default=0.1
        The level with which the p-value will be compared. Stakes are optimised for this level; the p-value is valid for
        any level.

    Returns
    -------
    float
        The p-value, between 0 and 1.

    References
    ----------
    .. [1] Waudby-Smith and Ramdas. "Estimating means of bounded random variables by betting."
       Journal of the Royal Statistical Society B 86 (2024).
    .. [2] Bates et al. "Distribution-free, risk-controlling prediction sets." Journal of the ACM
       68 (2021), 3.1.3.

    Examples
    --------
    >>> round(betting_p_value([0.0] * 100, alpha=0.05), 4)
    0.0748
    >>> betting_p_value([0.5] * 100, alpha=0.05)
    1.0
    """
    values = np.asarray(losses, dtype=np.float64)
    n_samples = len(values)
    counts = np.arange(1, n_samples + 1)
    means = (0.5 + np.cumsum(values)) / (1 + counts)
    variances = (0.25 + np.cumsum((values - means) ** 2)) / (1 + counts)
    before = np.concatenate([[0.25], variances[:-1]])
    # At most half of the capital: with a stake of all capital, a single loss of 1 would end the game.
    stakes = np.minimum(np.sqrt(2 * np.log(1 / delta) / (n_samples * before)), 0.5 / (1 - alpha))
    log_capital = np.cumsum(np.log1p(stakes * (alpha - values)))
    return float(min(1.0, np.exp(-log_capital.max(initial=0.0))))
