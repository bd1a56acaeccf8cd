"""Read a fitted policy for the checks: its scores, exit by exit, and the lengths of its arrays."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitArray
from skexit.data._walk import Memory, RowReader

AsArray = Callable[[Any], Any]


def score_exits(policy: Any, X: ExitArray, as_array: AsArray = np.asarray) -> Iterator[tuple[int, Any, Memory]]:
    """Number of each exit, its scores from all features and notes of earlier exits, and the memory after it.

    `X` has logits at every exit; `as_array` converts its arrays to those of another library.
    """
    reader, memory = RowReader(policy._check_new(X), slice(0, len(X))), Memory()
    for k in range(X.layout.n_exits):
        logits, features = map(as_array, reader.read(k))
        yield k, policy.score_exit(k, logits, features, memory), memory


def declared_scores(policy: Any, X: ExitArray, k: int) -> Any:
    """Scores of exit `k` from those exits and features only that the policy declares to need.

    `X` has logits at every exit.
    """
    needed = {k}
    for j in range(k, -1, -1):
        if j in needed:
            needed.update(policy.earlier_exits(j))
    reader, memory = RowReader(policy._check_new(X), slice(0, len(X)), policy.uses_features), Memory()
    return [policy.score_exit(j, *reader.read(j), memory) for j in sorted(needed)][-1]


def exits_one_by_one(policy: Any, X: ExitArray, as_array: AsArray) -> NDArray[np.int64]:
    """Exit at which each sample stops, by `decide`, on arrays that `as_array` makes."""
    exits, running, state = np.empty(len(X), dtype=np.int64), np.arange(len(X)), None
    for k in range(X.layout.n_exits):
        logits, features = (
            None if block is None else as_array(block) for block in (X.logits(k, running), X.features(k, running))
        )
        leaves, state = policy.decide(k, logits, features, state)
        leaves = np.asarray(leaves)
        exits[running[leaves]] = k
        running = running[~leaves]
    return exits


class _Lengths(pickle.Pickler):
    """Collects the lengths of the arrays and containers that it pickles."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.found: set[int] = set()

    def persistent_id(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            self.found.update(value.shape)
        elif isinstance(value, list | tuple | dict | set):
            self.found.add(len(value))


def lengths_in(value: Any) -> set[int]:
    """Lengths of the axes of arrays, and of the lists, tuples, dicts and sets, in an object."""
    pickler = _Lengths()
    pickler.dump(value)
    return pickler.found
