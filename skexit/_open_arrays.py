"""Arrays of a cache that are open at the moment."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Any

from numpy.typing import NDArray


class OpenArrays:
    """Mapped arrays by key; the ones not used for longest are let go when there are too many.

    A mapped array holds a file open, of which the system allows a process about a thousand. Where the files were
    fetched from elsewhere, it also holds a place on this machine's disk.

    Parameters
    ----------
    max_arrays : int
        How many are kept.
    max_bytes : int
        How many bytes they have together at most; the one used last is kept in any case.
    """

    def __init__(self, max_arrays: int, max_bytes: int) -> None:
        self.max_arrays = max_arrays
        self.max_bytes = max_bytes
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._n_bytes = 0
        self._lock = Lock()  # threads may share a cache

    def get(self, key: Hashable) -> NDArray[Any] | None:
        """The array, None if it is not open."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def add(self, key: Hashable, array: NDArray[Any]) -> None:
        """Keep an array, and let others go for it."""
        with self._lock:
            self._drop(key)
            self._arrays[key] = array
            self._n_bytes += array.nbytes
            while len(self._arrays) > 1 and (len(self._arrays) > self.max_arrays or self._n_bytes > self.max_bytes):
                self._drop(next(iter(self._arrays)))

    def drop(self, key: Hashable) -> None:
        """Let an array go, if it is open."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        array = self._arrays.pop(key, None)
        if array is not None:
            self._n_bytes -= array.nbytes
