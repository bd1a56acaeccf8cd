"""Indices of labels among classes, and which rows have a label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What y has for a row without a label, as for scikit-learn's semi-supervised estimators.
UNLABELLED = -1
#: What errors say of a y without labels.
UNLABELLED_ROWS = "y is -1 in every row, which marks rows without a label."
#: What errors advise if there are no labels at all, as in a cache whose loader gave none.
_GIVE_LABELS = (
    "A cache has no labels if its loader gave none: pass your own, one for each row of X, in the order of the loader. "
    "Or extract into another folder, with a loader that yields (inputs, labels)."
)


def check_is_given(y: Any, fault: str) -> None:
    """Raise a ValueError with this first sentence if there are no labels."""
    if y is None:
        raise ValueError(f"{fault} {_GIVE_LABELS}")


def may_be_unlabelled(y: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each entry of y is -1, which marks a row without a label unless it is a class."""
    return np.asarray(y == UNLABELLED, dtype=bool) if y.dtype.kind in "iufO" else np.zeros(len(y), dtype=bool)


def classes_in(y: NDArray[Any]) -> NDArray[Any]:
    """The sorted classes of y. Among names, -1 marks a row without a label; among numbers, it is a class."""
    return np.unique(y[~may_be_unlabelled(y)].tolist() if y.dtype.kind == "O" else y)


def has_label(y: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row has a label, where the classes are known: -1 marks one that has none, unless it is a class.

    A ValueError says if no row has one.
    """
    labelled = ~may_be_unlabelled(y)
    if y.dtype.kind != "O" and UNLABELLED in classes.tolist():
        labelled[:] = True
    if len(y) and not labelled.any():
        raise ValueError(UNLABELLED_ROWS + " Give the labels of some rows.")
    return labelled


def has_label_among_answers(y_true: NDArray[Any], answers: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row has a label, where answers alone tell the classes.

    Among numbers, -1 marks a row without one where there is a class 0 and no answer is -1; {-1, 1} are two classes.
    """
    unlabelled = may_be_unlabelled(y_true)
    if not unlabelled.any():
        return ~unlabelled
    if y_true.dtype.kind != "O":
        has_zero = bool(np.any(y_true == 0)) or bool(np.any(answers == 0))
        if not has_zero or np.any(answers == UNLABELLED):
            return np.ones(len(y_true), dtype=bool)
    if unlabelled.all():
        raise ValueError(UNLABELLED_ROWS + " Give the labels of some rows.")
    return ~unlabelled


def index_of_labels(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.intp]:
    """Index of each label among the classes, which are distinct, in any order, and contain every label."""
    order = np.argsort(classes)
    return order[np.searchsorted(classes, labels, sorter=order)]
