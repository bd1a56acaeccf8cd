"""Logits that are computed when they are read, for arrays whose logits would not fit into memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from skexit.data._arrays import ExitArray
from skexit.data._overlays import LogitsSource, OverlaidSource
from skexit.data._walk import RowReader, collect, no_features, walk

#: Up to this many bytes of logits are computed at once and kept.
LARGEST_BYTES = 2**29


class GivesLogits(Protocol):
    """What a transformer must tell, for its logits to be computed later."""

    def exit_logits(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        """Logits of exit `k`, from what the exit shows and what earlier exits noted."""

    def new_logits(self) -> Iterable[int]:
        """Exits whose logits are not those of X."""

    def earlier_exits(self, k: int) -> range:
        """Exits before `k` on which its logits depend."""

    def uses_features(self, k: int) -> bool:
        """Whether the logits of exit `k`, or of a later one, depend on its features."""


def fit_in_memory(n_rows: int, n_exits: int, n_classes: int) -> bool:
    """Whether logits of so many rows and exits are few enough to be kept."""
    return 8 * n_rows * n_exits * n_classes <= LARGEST_BYTES


def saves_unread_rows(X: ExitArray) -> bool:
    """Whether models run for the rows that are read, as those of a cascade, and keep what they answered."""
    return getattr(X.source, "saves_unread_rows", False)


class TransformedLogits(OverlaidSource):
    """The columns of an ExitArray, with the logits of a transformer."""

    def __init__(self, base: ExitArray, transformer: GivesLogits) -> None:
        super().__init__(base, np.dtype(np.float64))
        self.transformer = copy.copy(transformer)  # a later fit must not change these logits

    def read_logits(self, k: int, rows: Any) -> NDArray[Any]:
        if k not in self.transformer.new_logits():
            return super().read_logits(k, rows)
        reader = RowReader(self.base, rows, self.transformer.uses_features)
        *_, (_, _, logits, _) = walk(self.transformer.exit_logits, reader, (*self.transformer.earlier_exits(k), k))
        return logits


class MergedLogits(OverlaidSource):
    """The columns of an ExitArray, with the logits of each row from one of several sources.

    `source_of_row` says which source has the logits of each row, and `position` where the row is in that source.
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


@dataclass(frozen=True)
class _AnswersOfAllExits:
    """A transformer that changes the logits of every exit, from those of the exits up to it."""

    answer: Callable[[int, Any, dict[str, Any]], Any]
    n_exits: int

    def exit_logits(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        return self.answer(k, logits, memory)

    def new_logits(self) -> range:
        return range(self.n_exits)

    def earlier_exits(self, k: int) -> range:
        return range(k)

    def uses_features(self, k: int) -> bool:
        return False


def answer_from_exits(
    X: ExitArray, n_classes: int, answer: Callable[[int, Any, dict[str, Any]], Any]
) -> LogitsSource | TransformedLogits:
    """Logits that follow from those of the exits up to each: computed now, if few, or when they are read.

    `X` has logits at every exit. `answer` takes an exit, its logits and the notes of earlier exits, which it may change
    in place; it gives the new logits of the exit.
    """
    answers = _AnswersOfAllExits(answer, X.layout.n_exits)
    if not fit_in_memory(len(X), X.layout.n_exits, n_classes):
        return TransformedLogits(X, answers)
    return LogitsSource(X, collect(answers.exit_logits, X, uses_features=no_features))
