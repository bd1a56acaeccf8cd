"""What y says: the classes, the index of each label among them, and the rows without a label.

It marks these by -1, as for scikit-learn's semi-supervised estimators.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import _safe_indexing, check_consistent_length, column_or_1d

from skexit.data._arrays import ExitArray, enough_rows
from skexit.data._layout import ExitLayout
from skexit.utils._labels import UNLABELLED as UNLABELLED
from skexit.utils._labels import UNLABELLED_ROWS as UNLABELLED_ROWS
from skexit.utils._labels import check_is_given, has_label, index_of_labels, may_be_unlabelled

#: What errors advise if nothing tells which logit is which class.
NAME_THE_LOGITS = (
    "Give the label of each logit: stack_exits(..., classes=[...]), or X.with_layout(X.layout.replace(classes=[...])) "
    "of an ExitArray."
)


def is_labelled(y: NDArray[Any], layout: ExitLayout) -> NDArray[np.bool_]:
    """Whether each row has a label: -1 marks one that has none, unless it is a class.

    Among strings, in an array of objects, -1 is never a class. Among numbers it is one where the layout has it among
    its classes, where nothing tells the classes, and where y has as many different numbers, -1 counted, as there are
    logits without names.
    """
    labelled = ~may_be_unlabelled(y)
    if labelled.all() or y.dtype.kind == "O":
        return labelled
    if layout.classes is not None:
        is_class = UNLABELLED in layout.classes.tolist()
    else:
        is_class = layout.n_classes is None or len(np.unique(y)) == layout.n_classes
    return labelled | is_class


def labelled_rows(X: Any, y: Any, classes: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
    """The rows of X that have a label, and their labels; a ValueError says if there is none."""
    check_is_given(y, "y is None.")
    y = column_or_1d(y)
    check_consistent_length(X, y)
    labelled = has_label(y, classes)
    return (X, y) if labelled.all() else (_safe_indexing(X, np.flatnonzero(labelled)), y[labelled])


def encode_labelled(
    y: NDArray[Any], layout: ExitLayout, cure: str | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Classes in the order of the logits, and the index of each label among them, -1 where there is none."""
    labelled = is_labelled(y, layout)
    labels = np.full(len(y), UNLABELLED)
    classes, labels[labelled] = encode_labels(y[labelled], layout, cure)
    return classes, labels


#: What an error adds if names are expected and y has numbers.
_NUMBERED_BY_OTHERS = (
    " Some estimators of scikit-learn, such as StackingClassifier, number the sorted classes themselves. For these, "
    "order the logits by the sorted classes, and pass X.with_layout(X.layout.replace(classes=None))."
)


def encode_labels(y: Any, layout: ExitLayout, cure: str | None = None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Classes in the order of the logits, and the index of each label among them.

    `cure` is what errors say of labels of other classes.
    """
    y = column_or_1d(y)
    present = np.unique(y)
    if layout.classes is not None:
        classes = layout.classes
    elif layout.n_classes is None:
        classes = present
    elif present.dtype.kind in "iu" and present[0] >= 0 and present[-1] < layout.n_classes:
        classes = np.arange(layout.n_classes)
    elif present.dtype.kind not in "iu" and len(present) == layout.n_classes and not _numbered_otherwise(present):
        classes = present
    else:
        # Integers 1 to C are refused, too: on rows that lack class C they would pass for 0 to C - 1.
        in_y = f"y has {len(present)} classes, {present.tolist()[0]!r} to {present.tolist()[-1]!r}, and X logits for "
        if len(present) > layout.n_classes:
            raise ValueError(f"{in_y}only {layout.n_classes}. Pass logits for all, or leave out the rows of others.")
        raise ValueError(
            f"{in_y}{layout.n_classes}, so that it is unclear which logit is which class. {NAME_THE_LOGITS}"
        )
    unknown = np.setdiff1d(present, classes)
    if len(unknown):
        cure = cure or "Correct y, leave out such rows, or correct the classes of the layout of X."
        if present.dtype.kind in "iu" and classes.dtype.kind not in "iu":
            cure += _NUMBERED_BY_OTHERS
        raise ValueError(
            f"y has the class {unknown.tolist()[0]!r}, which is none of those known, {classes.tolist()}. {cure}"
        )
    return classes, index_of_labels(y, classes)


def _numbered_otherwise(labels: NDArray[Any]) -> bool:
    """Whether sorted labels are numbered strings, as "2" and "10", or "class2" and "class10", in another order."""
    matches = [re.fullmatch(r"(\D*)(\d+)", label) if isinstance(label, str) else None for label in labels.tolist()]
    if not all(matches) or len({match[1] for match in matches if match}) > 1:
        return False
    numbers = [int(match[2]) for match in matches if match]
    return numbers != sorted(numbers)


def restore_labels(classes: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[Any]:
    """The y of these indices of classes."""
    y = classes[labels]
    unlabelled = labels == UNLABELLED
    if unlabelled.any():
        y = y.astype(np.int64 if y.dtype.kind in "biu" else object if y.dtype.kind == "U" else y.dtype)
        y[unlabelled] = UNLABELLED
    return y


def only_labelled(
    X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64], groups: NDArray[np.int64] | None = None
) -> tuple[ExitArray, NDArray[np.int64], NDArray[np.float64], NDArray[np.int64] | None]:
    """X, labels, weights of mean 1 and numbers of groups, of the rows that have a label."""
    rows = np.flatnonzero(labels != UNLABELLED)
    if len(rows) == len(labels):
        return X, labels, weight, groups
    groups = None if groups is None else np.unique(groups[rows], return_inverse=True)[1]
    return X[rows], labels[rows], weight[rows] / weight[rows].mean(), groups


def enough_labelled_rows(labels: NDArray[np.int64], n_numbers: int) -> NDArray[np.intp]:
    """Rows with a label, with `n_numbers` numbers each, that are enough to learn a few parameters from."""
    rows = np.flatnonzero(labels != UNLABELLED)
    return rows[enough_rows(len(rows), n_numbers)]
