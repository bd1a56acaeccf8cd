"""Rows that a teacher learns from, and the rows that it then teaches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skexit.data._labels import UNLABELLED
from skexit.data._validation import cross_validation_splits

#: Parts of the rows; the logits for each come from a head of the others.
_FOLDS = 3

Splits = list[tuple[NDArray[np.intp], NDArray[np.intp]]]


def teacher_splits(labels: NDArray[np.int64], groups: NDArray[np.int64] | None, n_folds: int = _FOLDS) -> Splits:
    """Rows that a teacher learns from, all with labels, and the rows that it then teaches; none where rows are too few.

    Rows of a group are in the same fold.
    """
    labelled = labels != UNLABELLED
    n_separate = labelled.sum() if groups is None else len(np.unique(groups[labelled]))
    if n_separate < n_folds:
        return []
    splits = cross_validation_splits(n_folds, labels, 0, groups)
    splits = [(train[labelled[train]], test) for train, test in splits]
    return splits if all(len(train) for train, _ in splits) else []
