"""Names of modules under which types are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Kind = TypeVar("Kind", bound=type)


def set_module(module: str) -> Callable[[Kind], Kind]:
    """Decorate a class that is saved under the name of another module, so that the class can be moved.

    The name is ``"skexit"`` for public types, and ``"skexit.persistence"`` for the types that are listed there.
    """

    def rename(kind: Kind) -> Kind:
        kind.__module__ = module
        return kind

    return rename
