"""Where an ExitArray reads its columns."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from skexit.data._layout import ExitLayout


class ColumnSource(Protocol):
    """Where an ExitArray reads its columns."""

    dtype: np.dtype

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    def read(self, layout: ExitLayout, k: int, part: str, rows: Any) -> NDArray[Any]:
        """The ``"logits"`` or ``"features"`` of exit `k`; `rows` is an index array or slice."""


class ArraySource:
    """The columns of a two-dimensional array in memory."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.n_rows = len(array)
        self.dtype = array.dtype

    def read(self, layout: ExitLayout, k: int, part: str, rows: Any) -> NDArray[Any]:
        columns = layout.logit_columns(k) if part == "logits" else layout.feature_columns(k)
        return self.array[rows, columns]
