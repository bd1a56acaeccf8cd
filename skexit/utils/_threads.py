"""One thread for computations that are too small for several.

The number of threads belongs to the process. If each of two threads that fit at the same time put back what it found,
the last to leave would put back the limit that the first has set. So the first keeps what it found for all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits


class _Limit:
    """How many are inside a limit, and what the first of them found."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_inside = 0
        self.found: Any = None


_BLAS, _TORCH = _Limit(), _Limit()
_depth = threading.local()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Linear algebra of NumPy and SciPy in one thread, until the last has left."""
    with _BLAS.lock:
        if _BLAS.n_inside == 0:
            _BLAS.found = threadpool_limits(1, user_api="blas")
        _BLAS.n_inside += 1
    try:
        yield
    finally:
        with _BLAS.lock:
            _BLAS.n_inside -= 1
            if _BLAS.n_inside == 0:
                _BLAS.found.restore_original_limits()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Small steps gain nothing from threads, and the result then does not depend on their number.

    Each thread puts the number back when it leaves, as OpenMP keeps one for every thread.
    """
    import torch

    depth = getattr(_depth, "torch", 0)
    with _TORCH.lock:
        if _TORCH.n_inside == 0:
            _TORCH.found = torch.get_num_threads()
        _TORCH.n_inside += 1
        _depth.torch = depth + 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _TORCH.lock:
            _TORCH.n_inside -= 1
            _depth.torch = depth
            if depth == 0:
                torch.set_num_threads(_TORCH.found)
