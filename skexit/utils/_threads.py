"""One thread for computations that are too small for several.

The number of threads is a setting of the process. If two threads that fit at the same time each restored the number
that it found, the last would restore the limit that the first has set. So only the number that the first found is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

from sklearn.utils.parallel import Parallel, delayed
from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")


class _Limit:
    """Number of callers inside a limit, and the setting that the first of them found."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_inside = 0
        self.found: Any = None


_BLAS, _TORCH = _Limit(), _Limit()
_depth = threading.local()
_recorder = threading.RLock()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run linear algebra of NumPy and SciPy in one thread, until the last caller has left."""
    with _BLAS.lock:
        if _BLAS.n_inside == 0:
            _BLAS.found = _controller().limit(limits=1, user_api="blas")
        _BLAS.n_inside += 1
    try:
        yield
    finally:
        with _BLAS.lock:
            _BLAS.n_inside -= 1
            if _BLAS.n_inside == 0:
                _BLAS.found.restore_original_limits()


@cache
def _controller() -> ThreadpoolController:
    """The libraries of NumPy and SciPy. To find them takes as long as to fit a small head."""
    import scipy.linalg  # noqa: F401 - loads the library of SciPy

    return ThreadpoolController()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run torch in one thread: small steps gain nothing from more, and results do not depend on their number.

    Each thread restores the number when it leaves, because OpenMP has one number for every thread.
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


@contextmanager
def one_recording() -> Iterator[None]:
    """Record networks with torch in one thread at a time: torch's recorder fails in several."""
    with _recorder:
        yield


def run_side_by_side(tasks: Sequence[Callable[[], Result]], at_most: int = 2**31) -> list[Result]:
    """Results of tasks that each run torch in one thread.

    As many tasks run at a time as torch has threads, and no more than `at_most`. They run one after another inside of
    `one_torch_thread`, in a thread of joblib, and without torch.
    """
    n_threads = min(_threads_of_torch(), len(tasks), at_most)
    if n_threads < 2:
        return [task() for task in tasks]
    with one_torch_thread():
        # A thread has its own context, such as whether warnings are silenced, unless it gets one.
        calls = (delayed(copy_context().run)(task) for task in tasks)
        results: list[Result] = Parallel(n_threads, require="sharedmem")(calls)
    return results


def _threads_of_torch() -> int:
    """Number of threads that torch may use here."""
    if getattr(_depth, "torch", 0):
        return 1
    try:
        import torch
    except ImportError:
        return 1
    return int(torch.get_num_threads())
