"""Warnings that point at the user's line, and can be left out without a filter, which would hold for all threads."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import joblib
import sklearn

#: Code of these is not the user's: skexit, and what calls skexit on the user's behalf.
_LIBRARIES = (
    pickle.__file__,
    *(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], *sklearn.__path__, *joblib.__path__)),
)


_silenced: ContextVar[bool] = ContextVar("silenced", default=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Leave out the warnings of skexit, in this thread only."""
    token = _silenced.set(True)
    try:
        yield
    finally:
        _silenced.reset(token)


def warn(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest line of a caller outside skexit, scikit-learn and joblib."""
    if not _silenced.get():
        warnings.warn(message, category, stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """The `stacklevel` with which `warn` points at the user's line."""
    # Python 3.12 has skip_file_prefixes for this.
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        level, frame = level + 1, frame.f_back
    return level
