"""The one walk over the exits: read an exit, answer, let samples leave, go on with those that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from skexit.data._arrays import ExitArray
from skexit.data._validation import read_features, read_logits


class Memory(dict[str, Any]):
    """Notes of earlier exits, one array with a row for each sample that is still running."""

    def keep(self, rows: Any) -> Memory:
        """Notes of some of the samples only."""
        return self.map(lambda noted: noted[rows])

    def map(self, function: Callable[[Any], Any]) -> Memory:
        """Notes of which a function has changed each array."""
        return Memory({name: function(noted) for name, noted in self.items()})


class Memories(list[Memory]):
    """The notes of several steps, which do not see each other's."""

    def keep(self, rows: Any) -> Memories:
        """Notes of some of the samples only."""
        return Memories(memory.keep(rows) for memory in self)

    def map(self, function: Callable[[Any], Any]) -> Memories:
        """Notes of which a function has changed each array."""
        return Memories(memory.map(function) for memory in self)


class ExitReader(Protocol):
    """Source of the logits and features of an exit, for the samples that have not exited."""

    rows: Any

    def read(self, k: int) -> tuple[Any, Any]:
        """Logits and features of exit `k`; None if there are none or nothing uses them."""

    def keep(self, stays: NDArray[np.bool_]) -> None:
        """Continue with the samples that stay."""


class RowReader:
    """Reads some rows of an ExitArray; `uses_features` takes an exit and says whether to read its features."""

    def __init__(self, X: ExitArray, rows: Any, uses_features: Callable[[int], bool] | None = None) -> None:
        self.X, self.rows, self._uses_features = X, rows, uses_features

    def read(self, k: int) -> tuple[Any, Any]:
        reads_features = self._uses_features is None or self._uses_features(k)
        return read_logits(self.X, k, self.rows), read_features(self.X, k, self.rows) if reads_features else None

    def keep(self, stays: NDArray[np.bool_]) -> None:
        self.rows = row_numbers(self.rows)[stays]


def row_numbers(rows: slice | NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of rows that a slice with a start and a stop, or an array, names."""
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


#: A computation at an exit. It takes the exit, its logits, its features and the notes of earlier exits, which it may
#: change in place.
Step = Callable[[int, Any, Any, Any], Any]


def walk(
    answer: Step,
    reader: ExitReader,
    exits: Iterable[int],
    *,
    leaves: Step | None = None,
    memory: Memory | Memories | None = None,
) -> Iterator[tuple[int, Any, Any, Any]]:
    """Go from exit to exit, in forward order, with the samples that have not exited.

    Yields each exit, the rows of the samples that reach it, the result of `answer`, and the result of `leaves`. Both
    are steps. `leaves` takes the result of `answer` instead of the logits, and returns which samples exit, or None if
    none can. By default no sample exits. `memory` holds notes from before the first exit.
    """
    memory = Memory() if memory is None else memory
    for k in exits:
        logits, features = reader.read(k)
        answered = answer(k, logits, features, memory)
        leaving = None if leaves is None else leaves(k, answered, features, memory)
        yield k, reader.rows, answered, leaving
        if leaving is None or not leaving.any():
            continue
        stays = ~leaving
        if not stays.any():
            return
        reader.keep(stays)
        memory = memory.keep(stays)


def walk_batches(
    answer: Step,
    X: ExitArray,
    exits: Iterable[int] | None = None,
    *,
    uses_features: Callable[[int], bool] | None = None,
    start: Callable[[], Memory | Memories] = Memory,
) -> Iterator[tuple[int, slice, Any]]:
    """Go from exit to exit with every row of X, in batches, and yield exit, rows and result; no sample exits.

    `exits` are by default all, and `start` gives the notes before the first one; for the rest see `walk`.
    """
    looked_at = list(range(X.layout.n_exits) if exits is None else exits)
    for batch in X.batches():
        for k, rows, answered, _ in walk(answer, RowReader(X, batch, uses_features), looked_at, memory=start()):
            yield k, rows, answered


def collect(
    answer: Step,
    X: ExitArray,
    exits: Iterable[int] | None = None,
    *,
    uses_features: Callable[[int], bool] | None = None,
    start: Callable[[], Memory | Memories] = Memory,
) -> dict[int, NDArray[Any]]:
    """Results of a step at each exit, by exit, for all rows of X: arrays with one row per sample.

    The parameters are those of `walk_batches`.
    """
    collected: dict[int, NDArray[Any]] = {}
    for k, rows, answered in walk_batches(answer, X, exits, uses_features=uses_features, start=start):
        if k not in collected:
            collected[k] = np.empty((len(X), *answered.shape[1:]), dtype=answered.dtype)
        collected[k][rows] = answered
    return collected


def no_features(k: int) -> bool:
    """Tells a reader to read no features."""
    return False


def own_logits(k: int, logits: Any, features: Any, memory: Memory) -> Any:
    """A step that answers with the exit's own logits."""
    return logits


def correct_exits(X: ExitArray, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each exit predicts the class of each sample, of shape (n_samples, n_exits); `labels` are indices."""
    for k in range(X.layout.n_exits):
        if not X.layout.has_logits(k):
            raise ValueError(f"exit {k} has no logits; add them with ExitHeads().fit_transform(X, y).")
    correct = np.empty((len(X), X.layout.n_exits), dtype=bool)
    for k, rows, logits in walk_batches(own_logits, X, uses_features=no_features):
        correct[rows, k] = np.argmax(logits, axis=1) == labels[rows]
    return correct
