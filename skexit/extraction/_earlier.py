"""Finds the cache of an earlier extraction, which is continued only for the same network, settings and data."""

from __future__ import annotations

import os

from skexit.cache import FeatureCache
from skexit.cache._manifest import differences
from skexit.cache._writer import check_same_cache
from skexit.data import ExitLayout
from skexit.extraction._batches import RANDOM_INPUTS


def find_cache(path: str | os.PathLike[str], origin: dict[str, str], check_data: bool) -> FeatureCache | None:
    """The cache in a folder, or None if there is none. Raises a ValueError if the cache is of another extraction."""
    try:
        found = FeatureCache(path, allow_partial=True)
    except FileNotFoundError:
        return None
    first_input = found.origin.get("first input", "")
    check_same_cache(found.path, differences(found.origin, origin | {"first input": first_input}))
    if check_data and first_input != origin["first input"]:
        raise ValueError(
            f"the folder {str(found.path)!r} holds a cache that differs in first input. Give another folder, or "
            f"the loader that the cache was started with. {RANDOM_INPUTS}"
        )
    return found


def check_costs(found: FeatureCache, layout: ExitLayout) -> None:
    """Raise a ValueError unless the costs of a cache are those of `example_input`."""
    there = {"costs of the layout": found.layout.costs.tolist()}
    check_same_cache(found.path, differences(there, {"costs of the layout": layout.costs.tolist()}))
