"""Join several caches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from skexit.cache._cache import FeatureCache
from skexit.cache._folders import absolute
from skexit.cache._manifest import Manifest, listed
from skexit.cache._shards import LABELS, Shard
from skexit.cache._writer import CacheWriter

#: What the origins of caches may differ in: other data of the same model.
_DATA = ("data", "first input")

_OF_COSTS = {"costs of the layout", "head_costs of the layout", "network_cost of the layout"}
_SETTINGS_DIFFER = "Extract all with one network and the same settings."
_COSTS_DIFFER = (
    "Costs are those of one input: extract both with one ExitExtractor, or state the input, such as a text of typical "
    "length, by ExitExtractor(..., example_input=x), with cost_unit='FLOPs' or 'MACs' rather than 'ms'."
)


def merge_caches(
    sources: Sequence[str | os.PathLike[str]], destination: str | os.PathLike[str], *, progress: bool = False
) -> FeatureCache:
    """Join caches of one model, extracted with the same settings from different data.

    The rows are those of the first source, then those of the second, and so on: the cache is the one that an
    extraction from all of the data in that order would have written, in other shards. Where the file system allows it,
    its files are second names of the files of the sources (hard links) and take no place; elsewhere they are copies. In
    either case the sources can be deleted.

    A merge that was stopped continues when it is called again.

    Parameters
    ----------
    sources : sequence of str or path-like
        Folders of complete caches.
    destination : str or path-like
        Folder for the new cache: new, empty, or of a stopped merge of the same sources.
    progress : bool, default=False
        Show a progress bar, if the output is a terminal.

    Returns
    -------
    cache : FeatureCache
        The complete cache. Its origin is that of the first source.

    Raises
    ------
    ValueError
        If there are no sources, one is not complete or damaged, they differ in the model, the settings or the layout
        (a layout has the costs: those in ms are others in every extraction), some have labels and others none, or the
        destination holds another cache.
    RuntimeError
        If another process is writing into the destination.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skexit import ExitLayout, merge_caches
    >>> from skexit.cache import CacheWriter
    >>> folder = tempfile.TemporaryDirectory()
    >>> layout = ExitLayout(n_logits=[2, 2], n_features=[0, 0])
    >>> for number in range(2):
    ...     with CacheWriter(f"{folder.name}/part{number}", layout, origin={"model": "demo"}) as writer:
    ...         writer.append([np.zeros((3, 2)), np.ones((3, 2))], [None, None], y=[0, 1, 1])
    >>> merge_caches([f"{folder.name}/part0", f"{folder.name}/part1"], f"{folder.name}/all").y
    array([0, 1, 1, 0, 1, 1])
    >>> folder.cleanup()
    """
    caches = [FeatureCache(source) for source in sources]
    if not caches:
        raise ValueError("sources is empty; give at least one cache.")
    for cache in caches:
        _check_source(cache, caches[0], absolute(destination))
    _check_labels(caches)
    shards = [(shard, Path(cache.path, shard.name)) for cache in caches for shard in cache.shards]
    n_merged, n_rows = _find_merged(destination, [shard for shard, _ in shards])
    first = caches[0]
    with (
        CacheWriter(
            destination, first.layout, origin=first.origin, dtype=first.stored_dtype.name, n_cached=n_rows
        ) as writer,
        tqdm(initial=n_merged, total=len(shards), unit=" shards", disable=None if progress else True) as bar,
    ):
        for shard, folder in shards[n_merged:]:
            writer.append_shard(shard, folder)
            bar.update()
    return FeatureCache(destination)


def _check_source(cache: FeatureCache, first: FeatureCache, destination: Path) -> None:
    if not isinstance(cache.path, Path):
        raise ValueError(f"{cache.path!r} is a URL; copy the cache to this machine to merge it.")
    if cache.path.resolve() == destination.resolve():
        raise ValueError(f"destination={str(destination)!r} is one of the sources; give another folder.")
    differing = _kind(first).differing(_kind(cache))
    if differing:
        raise ValueError(
            f"the caches {str(first.path)!r} and {str(cache.path)!r} cannot be merged: they differ in "
            f"{listed(differing)}. {_COSTS_DIFFER if set(differing) <= _OF_COSTS else _SETTINGS_DIFFER}"
        )


def _kind(cache: FeatureCache) -> Manifest:
    """Entries that must be equal in caches to merge."""
    origin = {name: value for name, value in cache.origin.items() if name not in _DATA}
    return Manifest(cache.layout, cache.stored_dtype, origin)


def _check_labels(caches: Sequence[FeatureCache]) -> None:
    files = [shard.files.get(LABELS) for cache in caches for shard in cache.shards]
    kinds = {None if file is None else file.dtype.kind == "U" for file in files}
    if len(kinds) > 1:
        labels = "numbers and others strings as labels" if None not in kinds else "labels and others none"
        raise ValueError(f"the caches cannot be merged: some have {labels}. Extract all with labels of one kind.")


def _find_merged(destination: str | os.PathLike[str], shards: Sequence[Shard]) -> tuple[int, int]:
    """How many shards and rows an earlier call merged."""
    try:
        merged = FeatureCache(destination, allow_partial=True)
    except FileNotFoundError:
        return 0, 0
    if [shard.files for shard in merged.shards] != [shard.files for shard in shards[: len(merged.shards)]]:
        raise ValueError(
            f"destination={str(destination)!r} holds a cache that is not the beginning of these; give a new or empty "
            "folder."
        )
    return len(merged.shards), merged.n_rows
