"""The column of each class in a table of probabilities or sets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, column_or_1d

from skexit.utils._labels import check_is_given, classes_in, has_label, index_of_labels


def column_of_labels(
    y_true: ArrayLike, labels: ArrayLike | None, table: NDArray[Any], name: str
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows that have a label, and the column of their true class in a table, whose name in errors is `name`.

    The table has the shape (n_samples, n_classes). `labels` are the classes of the columns; None means the sorted
    classes of y_true. Raises a ValueError if the shapes do not agree, no row has a label, y_true has a class that is
    not in labels, or labels has a class twice.
    """
    check_is_given(y_true, "y_true is None.")
    true_labels = column_or_1d(y_true)
    check_consistent_length(true_labels, table)
    classes = classes_in(true_labels) if labels is None else column_or_1d(labels)
    if len(classes) != table.shape[1]:
        source = "y_true" if labels is None else "labels"
        raise ValueError(
            f"{source} has {len(classes)} classes, but {name} has {table.shape[1]} columns. Pass the class of each "
            "column: labels=policy.classes_. Rows without a label, -1, are then left out."
        )
    labelled = np.flatnonzero(has_label(true_labels, classes))
    return labelled, index_of_true_labels(true_labels[labelled], classes)


def check_indices_of_classes(labels: ArrayLike, table: NDArray[Any]) -> NDArray[np.int64]:
    """Labels, checked to be indices of classes, which are the last axis of a table with one row per sample."""
    check_is_given(labels, "labels is None.")
    indices = column_or_1d(labels)
    check_consistent_length(table, indices)
    n_classes = table.shape[-1]
    if len(indices) and (indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= n_classes):
        raise ValueError(
            f"labels must be the indices of classes: integers from 0 to {n_classes - 1}. For sorted classes "
            "with names, pass numpy.searchsorted(classes, y). Leave out rows without a label."
        )
    return indices


def index_of_true_labels(y_true: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.intp]:
    """Index of each row's true class among the classes.

    Raises a ValueError if y_true has a class that is not in classes, or classes has a class twice.
    """
    in_order = np.sort(classes)
    if (in_order[1:] == in_order[:-1]).any():
        raise ValueError(f"labels={classes.tolist()} has a class twice; pass a different label for each column.")
    unknown = np.setdiff1d(y_true, classes)
    if len(unknown):
        raise ValueError(
            f"y_true has the class {unknown.tolist()[0]!r}, which is not in labels={classes.tolist()}. Leave such "
            "rows out, or pass all classes."
        )
    return index_of_labels(y_true, classes)
