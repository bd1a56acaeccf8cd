"""Names of modules under which types are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Saved = TypeVar("Saved", bound=Callable[..., Any])


def set_module(module: str) -> Callable[[Saved], Saved]:
    """Decorate a class or function that is saved under the name of another module, so that it can be moved.

    The name is ``"skexit"`` for public types, and ``"skexit.persistence"`` for the types that are listed there.
    """

    def rename(saved: Saved) -> Saved:
        saved.__module__ = module
        return saved

    return rename
