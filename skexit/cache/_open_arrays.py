"""Arrays of a cache that are open."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What reading a single row may bring into memory: systems map the pages around it, too. Linux was seen to map 300 kB.
_FAULT_BYTES = 2**18

#: Threads may share a cache. One lock serves all caches, and no thread holds it while a process forks: a child that
#: inherited a held lock would wait for ever for a thread that it does not have.
_LOCK = Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class OpenArrays:
    """Mapped arrays by key. If there are too many, the least recently used ones are closed.

    A mapped array holds a file open, of which the system allows a process about a thousand. Where the files were
    fetched from elsewhere, it also holds a place on this machine's disk: together they have at most `max_bytes`, but
    the one used last is always kept. Pages that were read of it are in the memory of the process until they are given
    back: after about `max_resident` bytes, all are. The system keeps them, and gives them again.
    """

    def __init__(self, max_arrays: int, max_bytes: int, max_resident: int = 2**28) -> None:
        self.max_arrays = max_arrays
        self.max_bytes = max_bytes
        self.max_resident = max_resident
        self._n_resident = 0
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._n_bytes = 0

    def get(self, key: Hashable) -> NDArray[Any] | None:
        """The array, None if it is not open."""
        with _LOCK:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def add(self, key: Hashable, array: NDArray[Any]) -> None:
        """Store an array, and close others to make room for it."""
        with _LOCK:
            self._drop(key)
            self._arrays[key] = array
            self._n_bytes += array.nbytes
            while len(self._arrays) > 1 and (len(self._arrays) > self.max_arrays or self._n_bytes > self.max_bytes):
                self._drop(next(iter(self._arrays)))
        self.count(array.nbytes)  # compared with its checksum, it has been read

    def count_rows(self, array: NDArray[Any], rows: NDArray[np.integer]) -> None:
        """Count rows of an array as read."""
        if len(rows):
            row_bytes = array.nbytes // len(array)
            span = (int(rows.max()) - int(rows.min()) + 1) * row_bytes + _FAULT_BYTES
            self.count(min(span, len(rows) * (row_bytes + _FAULT_BYTES)))

    def count(self, n_bytes: int) -> None:
        """Count bytes as read, and release all pages if there are too many."""
        with _LOCK:
            self._n_resident = min(self._n_resident + n_bytes, self._n_bytes)
            if self._n_resident > self.max_resident and hasattr(mmap, "MADV_DONTNEED"):
                self._n_resident = 0
                for array in self._arrays.values():
                    if isinstance(array.base, mmap.mmap):
                        array.base.madvise(mmap.MADV_DONTNEED)

    def drop(self, key: Hashable) -> None:
        """Close an array, if it is open."""
        with _LOCK:
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        array = self._arrays.pop(key, None)
        if array is not None:
            self._n_bytes -= array.nbytes
