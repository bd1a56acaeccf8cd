"""Check thresholds that a user sets while a network runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_thresholds(thresholds: ArrayLike, n_exits: int) -> NDArray[np.float64]:
    """The thresholds as an array; a ValueError if they are not one number per exit."""
    values = np.asarray(thresholds, dtype=np.float64)
    if values.shape != (n_exits,) or np.isnan(values).any():
        raise ValueError(
            f"thresholds={thresholds!r} must be one number for each of the {n_exits} exits, such as policy.thresholds_ "
            "or the thresholds of a BudgetController."
        )
    return values
