"""What trials on held-out rows share: the rows that they use, and when a gain is more than chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skexit.data._labels import UNLABELLED

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def some_rows(labels: Integers, most: int) -> NDArray[np.intp]:
    """At most so many of the rows with labels, and of the others, at random."""
    mixed = np.random.RandomState(0).permutation(len(labels))
    labelled = labels[mixed] != UNLABELLED
    return np.sort(np.concatenate([mixed[labelled][:most], mixed[~labelled][:most]]))


def numbered(groups: Integers) -> Integers:
    """The same groups, with numbers from 0 without gaps."""
    return np.unique(groups, return_inverse=True)[1]


def exceeds_zero(values: Floats, weight: Floats, groups: Integers, n_errors: float) -> bool:
    """Whether the weighted mean exceeds zero by so many standard errors, if groups are independent."""
    share = weight / weight.sum()
    mean = share @ values
    deviations = np.bincount(groups, share * (values - mean))
    return bool(mean > n_errors * np.sqrt((deviations**2).sum()))
