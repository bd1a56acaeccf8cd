"""Comparison of a gain with its standard error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def exceeds_error(gain: NDArray[np.float64], weight: NDArray[np.float64], n_errors: float = 1.0) -> bool:
    """Whether a mean gain is more than `n_errors` of its standard errors above zero."""
    mean = np.average(gain, weights=weight)
    standard_error = np.sqrt(weight**2 @ (gain - mean) ** 2) / weight.sum()
    return bool(mean > n_errors * standard_error)
