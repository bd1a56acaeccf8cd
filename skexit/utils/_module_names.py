"""Names of modules under which types are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Kind = TypeVar("Kind", bound=type)


def set_module(module: str) -> Callable[[Kind], Kind]:
    """Decorate a class that is saved under the name of another module, so that its own can move.

    Parameters
    ----------
    module : {"skexit", "skexit.persistence"}
        ``"skexit"`` for public types, ``"skexit.persistence"`` for the others, which are listed there.

    Returns
    -------
    callable
        Takes the class and returns it.
    """

    def rename(kind: Kind) -> Kind:
        kind.__module__ = module
        return kind

    return rename
