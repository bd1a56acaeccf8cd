"""Labels that a cache accepts: those that it can return unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Labels of one kind can be joined without a change to any of them.
_KINDS = {"U": "strings", "f": "floats", "b": "integers", "i": "integers", "u": "integers"}
#: How to make labels of arrays of other kinds.
_CURES = {"S": "numpy.asarray(labels).astype(str) of bytes"}


def check_labels(y: Any) -> NDArray[Any]:
    """The labels as an array. Raises a ValueError if they are not one number or string per row.

    A column of labels, of shape (n_samples, 1), is accepted, because losses for two classes take such labels.
    """
    try:
        labels = np.asarray(y)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"labels are no array ({error}); give one number or string for each row.") from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
        y = [label for (label,) in y] if isinstance(y, list) else labels
    if labels.ndim == 1 and labels.dtype.kind in "OT" and all(isinstance(label, str) for label in labels):
        labels = labels.astype(str)  # as pandas gives strings
    if labels.ndim != 1 or labels.dtype.kind not in _KINDS:
        raise ValueError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; give one number or string for each row, "
            f"such as {_CURES.get(labels.dtype.kind, 'labels.argmax(1) if the rows are one-hot')}."
        )
    if labels.dtype == np.uint64:  # joined with int64, these would become floats
        if (labels >= 2**63).any():
            raise ValueError(f"labels have the value {labels.max()}; give integers below 2**63, or strings.")
        labels = labels.astype(np.int64)
    if not isinstance(y, np.ndarray) and labels.dtype.kind in "Uf":
        _check_kept(labels, y)
    return labels


def check_same_kind(found: np.dtype | None, labels: NDArray[Any] | None) -> None:
    """Raise a ValueError if labels are of another kind than those before, whose dtype is given, or None."""
    if (found is None) != (labels is None):
        raise ValueError("some batches have labels and others none; give labels for all rows or for none.")
    if found is not None and labels is not None and _KINDS[found.kind] != _KINDS[labels.dtype.kind]:
        raise ValueError(
            f"labels are {_KINDS[labels.dtype.kind]}, but those of the rows before are {_KINDS[found.kind]}; give one "
            "kind for all rows."
        )


def _check_kept(labels: NDArray[Any], y: Any) -> None:
    """Check the conversion: NumPy turns numbers into strings, rounds large integers, and cuts strings at zeros."""
    for label, given in zip(labels.tolist(), y, strict=True):
        if label != given and given == given:
            raise ValueError(f"labels have the value {given!r}, which is kept as {label!r}; give labels of one type.")
