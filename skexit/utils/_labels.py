"""Where labels stand among classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def index_of_labels(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.intp]:
    """Index of each label among the classes.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        Each is one of the classes.
    classes : ndarray of shape (n_classes,)
        In any order, none twice.

    Returns
    -------
    ndarray of shape (n_samples,)
    """
    order = np.argsort(classes)
    return order[np.searchsorted(classes, labels, sorter=order)]
