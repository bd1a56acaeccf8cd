"""Warnings that point at the user's line, and can be silenced in one thread; a filter would act on all threads."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Packages whose code is not the user's: skexit, and packages that call skexit for the user. contextlib is among the
#: callers if a context manager decorates a function.
_LIBRARIES = {"skexit", "sklearn", "joblib", "skops", "torch", "imblearn", "mapie", "contextlib", "copy", "pickle"}


_silenced: ContextVar[bool] = ContextVar("silenced", default=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Silence the warnings of skexit in this thread only."""
    token = _silenced.set(True)
    try:
        yield
    finally:
        _silenced.reset(token)


def warn(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest line of a caller outside skexit and the libraries that call it, such as scikit-learn."""
    if not _silenced.get():
        warnings.warn(message, category, stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """The `stacklevel` with which `warn` points at the user's line."""
    # Python 3.12 has skip_file_prefixes, which misses code without a file, such as methods of a dataclass.
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    return level
