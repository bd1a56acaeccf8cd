"""What checks see of a fitted policy: its scores, exit by exit, and what it holds."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitArray
from skexit.data._walk import Memory, RowReader, walk
from skexit.policies._decision import ExitDecision

AsArray = Callable[[Any], Any]


def score_exits(policy: Any, X: ExitArray, as_array: AsArray = np.asarray) -> Iterator[tuple[int, Any, Memory]]:
    """Number and scores of every exit, with all features and notes of earlier exits, and the memory after it.

    `X` has logits at every exit; `as_array` makes arrays of another kind of its arrays.
    """
    reader, memory = RowReader(policy._check_new(X), slice(0, len(X))), Memory()
    for k in range(X.layout.n_exits):
        logits, features = map(as_array, reader.read(k))
        yield k, policy.score_exit(k, logits, features, memory), memory


def honest_scores(policy: Any, X: ExitArray, k: int) -> Any:
    """Scores of exit `k` from those exits and features only that the policy says it depends on.

    `X` has logits at every exit.
    """
    needed = {k}
    for j in range(k, -1, -1):
        if j in needed:
            needed.update(policy.earlier_exits(j))
    reader, memory = RowReader(policy._check_new(X), slice(0, len(X)), policy.uses_features), Memory()
    return [policy.score_exit(j, *reader.read(j), memory) for j in sorted(needed)][-1]


class _BatchReader:
    """Reads the rows of a batch of which all is there, as arrays of some kind."""

    def __init__(self, X: ExitArray, uses_features: Callable[[int], bool], as_array: AsArray) -> None:
        self._whole = RowReader(X, slice(0, len(X)), uses_features)
        self._as_array = as_array
        self.rows: Any = as_array(np.arange(len(X)))

    def read(self, k: int) -> tuple[Any, Any]:
        blocks = (None if block is None else self._as_array(block)[self.rows] for block in self._whole.read(k))
        logits, features = blocks
        return logits, features

    def keep(self, stays: Any) -> None:
        self.rows = self.rows[stays]


def exits_one_by_one(policy: Any, X: ExitArray, as_array: AsArray) -> NDArray[np.int64]:
    """Exit at which each sample stops, decided as a live network does, on arrays that `as_array` makes."""
    decision = ExitDecision(policy)
    reader = _BatchReader(policy._check_new(X), decision.uses_features, as_array)
    exits = np.full(len(X), decision.n_exits - 1)
    observed = np.flatnonzero(decision.is_observed).tolist()
    for k, rows, _, leaves in walk(decision.answer, reader, observed, leaves=decision.leaves, memory=decision.start()):
        if leaves is not None:
            exits[np.asarray(rows[leaves])] = k
    return exits


class _Lengths(pickle.Pickler):
    """Notes how long the arrays and containers are that it pickles."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.found: set[int] = set()

    def persistent_id(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            self.found.update(value.shape)
        elif isinstance(value, list | tuple | dict | set):
            self.found.add(len(value))


def lengths_in(value: Any) -> set[int]:
    """Lengths of everything that an object holds: axes of arrays, lists, tuples, dicts and sets."""
    pickler = _Lengths()
    pickler.dump(value)
    return pickler.found
