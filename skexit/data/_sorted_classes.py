"""Logits in the order of the sorted classes, as in scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data._arrays import ExitArray
from skexit.data._overlays import OverlaidSource


def sort_classes(X: ExitArray) -> ExitArray:
    """X with its logits in the order of the sorted classes, as in scikit-learn."""
    classes = X.layout.classes
    order = order_of_classes(classes)
    if classes is None or order is None:
        return X
    return ExitArray(_ReorderedLogits(X, order), X.layout.replace(classes=classes[order]))


def order_of_classes(classes: NDArray[Any] | None) -> NDArray[np.intp] | None:
    """The order that sorts the classes, None if they are sorted or unknown."""
    if classes is None or (classes[:-1] < classes[1:]).all():
        return None
    return np.argsort(classes)


class _ReorderedLogits(OverlaidSource):
    """The columns of an ExitArray, with the logits of each exit in another order."""

    def __init__(self, base: ExitArray, order: NDArray[np.intp]) -> None:
        super().__init__(base, base.dtype)
        self.order = order

    def read_logits(self, k: int, rows: Any) -> NDArray[Any]:
        return super().read_logits(k, rows)[:, self.order]
