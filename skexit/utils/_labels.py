"""Indices of labels among classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def index_of_labels(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.intp]:
    """Index of each label among the classes, which are distinct, in any order, and contain every label."""
    order = np.argsort(classes)
    return order[np.searchsorted(classes, labels, sorter=order)]
