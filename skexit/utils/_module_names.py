"""Names of modules under which types are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Kind = TypeVar("Kind", bound=type)


def set_module(module: str) -> Callable[[Kind], Kind]:
    """Decorate a class that is saved under the name of another module, so that its own can move.

    That is ``"skexit"`` for public types, and ``"skexit.persistence"`` for the others, which are listed there.
    """

    def rename(kind: Kind) -> Kind:
        kind.__module__ = module
        return kind

    return rename
