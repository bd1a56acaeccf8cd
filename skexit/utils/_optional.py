"""Packages that extras of skexit install."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def optional_import(purpose: str, extra: str) -> Iterator[None]:
    """Import packages that an extra installs; if one is missing, the error names the extra.

    `purpose` is the start of the sentence whose next word is the missing package:

    >>> with optional_import("an example needs", "example"):
    ...     import package_that_nobody_has
    Traceback (most recent call last):
    ...
    ImportError: an example needs package_that_nobody_has, which is not installed: pip install 'skexit[example]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise ImportError(f"{purpose} {package}, which is not installed: pip install 'skexit[{extra}]'") from error


def check_torch(purpose: str, extra: str = "torch") -> None:
    """Raise an ImportError if torch is not installed; see :func:`optional_import`."""
    with optional_import(purpose, extra):
        importlib.import_module("torch")


def import_pyplot() -> Any:
    """Import matplotlib.pyplot. Raises an ImportError with the extra to install if it is missing."""
    with optional_import("plots need", "plot"):
        import matplotlib.pyplot as plt
    return plt
