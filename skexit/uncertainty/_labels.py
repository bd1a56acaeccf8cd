"""Which column of probabilities or sets is which class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, column_or_1d

from skexit.utils._labels import index_of_labels


def column_of_labels(y_true: ArrayLike, labels: ArrayLike | None, table: NDArray[Any], name: str) -> NDArray[np.intp]:
    """Column of each row's true class in a table of shape (n_samples, n_classes), which errors call `name`.

    `labels` are the classes of the columns; None means the sorted classes of y_true. A ValueError says if the shapes do
    not agree, y_true has a class that labels lacks, or labels has one twice.
    """
    true_labels = column_or_1d(y_true)
    check_consistent_length(true_labels, table)
    classes = np.unique(true_labels) if labels is None else column_or_1d(labels)
    if len(classes) != table.shape[1]:
        source = "y_true" if labels is None else "labels"
        raise ValueError(
            f"{source} has {len(classes)} classes, and {name} {table.shape[1]} columns. Give the class of each column: "
            "labels=policy.classes_."
        )
    return index_of_true_labels(true_labels, classes)


def index_of_true_labels(y_true: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.intp]:
    """Index of each row's true class among the classes.

    A ValueError says if y_true has a class that classes lacks, or classes has one twice.
    """
    in_order = np.sort(classes)
    if (in_order[1:] == in_order[:-1]).any():
        raise ValueError(f"labels={classes.tolist()} names a class twice; give one label for each column.")
    unknown = np.setdiff1d(y_true, classes)
    if len(unknown):
        raise ValueError(
            f"y_true has the class {unknown.tolist()[0]!r}, which labels={classes.tolist()} lacks. Leave such rows "
            "out, or give all classes."
        )
    return index_of_labels(y_true, classes)
