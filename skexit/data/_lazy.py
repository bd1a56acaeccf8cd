"""Logits that are computed when they are read, for arrays whose logits would not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from skexit.data._arrays import ExitArray, LogitsSource, OverlaidSource
from skexit.data._validation import read_features, read_logits

#: Up to this many bytes of logits are computed at once and kept.
LARGEST_BYTES = 2**29


class GivesLogits(Protocol):
    """What a transformer must tell, for its logits to be computed later."""

    def exit_logits(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        """Logits of exit `k`, from what the exit shows and what earlier exits noted."""

    def _new_logits(self) -> Any:
        """Exits whose logits are not those of X."""

    def _earlier_exits(self, k: int) -> range:
        """Exits before `k` on which its logits depend."""


def fit_in_memory(n_rows: int, n_exits: int, n_classes: int) -> bool:
    """Whether logits of so many rows and exits are few enough to be kept."""
    return 8 * n_rows * n_exits * n_classes <= LARGEST_BYTES


class TransformedLogits(OverlaidSource):
    """The columns of an ExitArray, with the logits of a transformer."""

    def __init__(self, base: ExitArray, transformer: GivesLogits) -> None:
        super().__init__(base, np.dtype(np.float64))
        self.transformer = transformer

    def read_logits(self, k: int, rows: Any) -> NDArray[Any]:
        if k not in self.transformer._new_logits():
            return super().read_logits(k, rows)
        memory: dict[str, Any] = {}
        for j in (*self.transformer._earlier_exits(k), k):
            own = read_logits(self.base, j, rows)
            logits = self.transformer.exit_logits(j, own, read_features(self.base, j, rows), memory)
        return logits


class MergedLogits(OverlaidSource):
    """The columns of an ExitArray, with the logits of each row from one of several sources.

    Parameters
    ----------
    base : ExitArray of shape (n_samples, n_columns)
    sources : sequence of OverlaidSource
    source_of_row : ndarray of shape (n_samples,) of int
        Which source has the logits of each row.
    position : ndarray of shape (n_samples,) of int
        Where the row is in that source.
    """

    def __init__(
        self,
        base: ExitArray,
        sources: Sequence[OverlaidSource],
        source_of_row: NDArray[np.intp],
        position: NDArray[np.intp],
    ) -> None:
        super().__init__(base, np.dtype(np.float64))
        self.sources, self.source_of_row, self.position = sources, source_of_row, position

    def read_logits(self, k: int, rows: Any) -> NDArray[Any]:
        of_row, position = self.source_of_row[rows], self.position[rows]
        logits = self.sources[0].read_logits(k, position[of_row == 0])
        merged = np.empty((len(of_row), logits.shape[1]))
        merged[of_row == 0] = logits
        for number in np.unique(of_row[of_row > 0]):
            merged[of_row == number] = self.sources[number].read_logits(k, position[of_row == number])
        return merged


class LogitsFromExits(OverlaidSource):
    """The columns of an ExitArray, with logits that follow from those of the exits up to each."""

    def __init__(self, base: ExitArray, answer: Callable[[int, Any, dict[str, Any]], Any]) -> None:
        super().__init__(base, np.dtype(np.float64))
        self.answer = answer

    def read_logits(self, k: int, rows: Any) -> NDArray[Any]:
        memory: dict[str, Any] = {}
        for j in range(k + 1):
            logits = self.answer(j, read_logits(self.base, j, rows), memory)
        return logits


def answer_from_exits(
    X: ExitArray, n_classes: int, answer: Callable[[int, Any, dict[str, Any]], Any]
) -> LogitsSource | LogitsFromExits:
    """Logits that follow from those of the exits up to each: computed now, if few, or when they are read.

    Parameters
    ----------
    X : ExitArray of shape (n_samples, n_columns)
        With logits at every exit.
    n_classes : int
    answer : callable
        Takes an exit, its logits and the notes of earlier exits, which it may change in place; gives
        the new logits of the exit.

    Returns
    -------
    OverlaidSource
    """
    n_exits = X.layout.n_exits
    if not fit_in_memory(len(X), n_exits, n_classes):
        return LogitsFromExits(X, answer)
    logits = {k: np.empty((len(X), n_classes)) for k in range(n_exits)}
    for batch in X.batches():
        memory: dict[str, Any] = {}
        for k, values in logits.items():
            values[batch] = answer(k, read_logits(X, k, batch), memory)
    return LogitsSource(X, logits)
