"""Intervals of means on reference rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import beta

from skexit.uncertainty import betting_p_value

Floats = NDArray[np.float64]


def mean_interval(values: Floats, level: float) -> tuple[float, float]:
    """A confidence interval of the mean of values in [0, 1]: the probability of missing it is at most `level`.

    If all values are 0 or 1, this is the interval of Clopper and Pearson, otherwise an interval from tests by betting.
    """
    n, total = len(values), float(values.sum())
    if np.isin(values, [0, 1]).all():
        low = 0.0 if total == 0 else float(beta.ppf(level / 2, total, n - total + 1))
        high = 1.0 if total == n else float(beta.ppf(1 - level / 2, total + 1, n - total))
        return low, high
    return 1 - _highest_mean(1 - values, level / 2), _highest_mean(values, level / 2)


def _highest_mean(values: Floats, level: float) -> float:
    """Upper end of the one-sided confidence interval of the mean."""
    mean = float(values.mean())

    def excess(alpha: float) -> float:
        return float(np.log(max(betting_p_value(values, alpha, level), 1e-300)) - np.log(level))

    top = 1 - 1e-9
    return 1.0 if mean >= top or excess(top) > 0 else float(brentq(excess, mean, top, xtol=1e-6))
