"""Logits laid over those of another ExitArray."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data._arrays import ExitArray
from skexit.data._layout import ExitLayout


class OverlaidSource:
    """The columns of another ExitArray; a subclass lays logits over its own by `read_logits`."""

    def __init__(self, base: ExitArray, dtype: np.dtype) -> None:
        self.base = base
        self.n_rows = len(base)
        self.dtype = dtype

    @property
    def saves_unread_rows(self) -> bool:
        """Whether the base runs models for the rows that are read."""
        return getattr(self.base.source, "saves_unread_rows", False)

    def read(self, layout: ExitLayout, k: int, part: str, rows: Any) -> NDArray[Any]:
        return self.base.features(k, rows) if part == "features" else self.read_logits(k, rows)

    def read_logits(self, k: int, rows: Any) -> NDArray[Any]:
        """Logits of exit `k`; here those of the base."""
        logits = self.base.logits(k, rows)
        assert logits is not None  # a layout has logits where the base or what is laid over it has them
        return logits


class LogitsSource(OverlaidSource):
    """The columns of another ExitArray, with given logits of some exits."""

    def __init__(self, base: ExitArray, logits: dict[int, NDArray[Any]]) -> None:
        super().__init__(base, np.result_type(base.dtype, *logits.values()))
        self.logits = logits

    def read_logits(self, k: int, rows: Any) -> NDArray[Any]:
        return self.logits[k][rows] if k in self.logits else super().read_logits(k, rows)
