"""Fingerprints of callables: equal in every process, and different for callables that compute different things."""

from __future__ import annotations

import hashlib
from typing import Any, NoReturn

from skexit.extraction._code import reached_names
from skexit.extraction._descriptions import Description


def callable_fingerprint(function: Any) -> str:
    """Digest of the code of a callable, its closure, the global values that it reads, and its state.

    If the callable has an attribute `fingerprint`, a string, the digest is of this string alone. Values that the code
    itself changes, such as a counter of its calls, are left out. Raises a ValueError if a part cannot be described.
    """
    names = reached_names([function, type(function).__call__], [type(function)])
    return hashlib.sha256(Description(names, _refuse).of(function).encode()).hexdigest()[:16]


def _refuse(kind: str) -> NoReturn:
    raise ValueError(
        f"pool has a part of type {kind}, which cannot be compared between extractions. Give the callable an attribute "
        "fingerprint, a string that names what it does: pool.fingerprint = 'mean of corners, 1'."
    )
