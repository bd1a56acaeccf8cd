"""Fingerprints of callables, which tell one from another and are the same in every process."""

from __future__ import annotations

import hashlib
from typing import Any, NoReturn

from skexit.extraction._code import reached_names
from skexit.extraction._descriptions import Description


def callable_fingerprint(function: Any) -> str:
    """Digest of the code of a callable, of what it has closed over and reads, and of its state.

    One with an attribute `fingerprint`, a string, is known by that. A ValueError says if a part cannot be described.
    What the code itself changes, such as a counter of its calls, is left out.
    """
    names = reached_names([function, type(function).__call__], [type(function)])
    return hashlib.sha256(Description(names, _refuse).of(function).encode()).hexdigest()[:16]


def _refuse(kind: str) -> NoReturn:
    raise ValueError(
        f"pool has a part of type {kind}, by which extractions cannot be told apart. Give the callable an attribute "
        "fingerprint, a string that names what it does: pool.fingerprint = 'mean of corners, 1'."
    )
