"""P-values that say whether a risk is below a level, valid for any number of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

Floats = NDArray[np.float64]


def binomial_p_value(losses: ArrayLike, alpha: float) -> float:
    """P-value of the hypothesis that losses of zero or one are one with a probability above `alpha`.

    The probability of no more losses than were seen, if their probability were `alpha`: exact.

    Parameters
    ----------
    losses : array-like of shape (n_samples,)
        Zero or one; independent, or in an exchangeable order.
    alpha : float
        The probability of the hypothesis.

    Returns
    -------
    float
        Between 0 and 1.

    Examples
    --------
    >>> round(binomial_p_value([0] * 100, alpha=0.05), 4)
    0.0059
    """
    values = np.asarray(losses)
    return float(binom.cdf(values.sum(), len(values), alpha))


def betting_p_value(losses: ArrayLike, alpha: float, delta: float = 0.1) -> float:
    """P-value of the hypothesis that the mean of losses in [0, 1] is above `alpha`.

    A player bets on each loss to be below alpha, with stakes that depend on the losses before it
    only. If the mean is alpha or more, his capital, from one on, exceeds 1 / p at any time with a
    probability of at most p [1]_ [2]_. Losses that vary little give small p-values.

    Parameters
    ----------
    losses : array-like of shape (n_samples,)
        In [0, 1], in an order that does not depend on them.
    alpha : float
        The mean of the hypothesis.
    delta : float, default=0.1
        The level at which the p-value will be compared; stakes are largest for this one.

    Returns
    -------
    float
        Between 0 and 1.

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
    # Half of the capital at most: a stake of all would lose it with the first loss of one.
    stakes = np.minimum(np.sqrt(2 * np.log(1 / delta) / (n_samples * before)), 0.5 / (1 - alpha))
    log_capital = np.cumsum(np.log1p(stakes * (alpha - values)))
    return float(min(1.0, np.exp(-log_capital.max(initial=0.0))))
