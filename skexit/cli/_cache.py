"""The commands ``skexit cache info``, ``verify`` and ``merge``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from skexit.cli._commands import aligned, columns, command, json_asked, printable
from skexit.cli._files import CACHE, QUIET, open_partial

if TYPE_CHECKING:
    from skexit.cache import FeatureCache
    from skexit.data import ExitLayout

_MAX_CLASSES = 5


@click.group("cache")
def cache() -> None:
    """Describe, check and join caches."""


@command(cache, "info", "skexit cache info cache")
@CACHE
def _info(cache: str) -> Any:
    """Print the rows, exits, costs and origin of a cache.

    Only descriptions are read, not the rows. CACHE is a folder or URL, complete or not.
    """
    opened = open_partial(cache)
    layout = opened.layout
    facts = {
        "cache": opened.path,
        "rows": opened.n_rows,
        "complete": opened.complete,
        "labels": _has_labels(opened),
        "classes": layout.classes,
        "dtype": opened.stored_dtype.name,
        "bytes": opened.n_bytes,
        "n_logits": layout.n_logits,
        "n_features": layout.n_features,
        "feature_maps": layout.feature_maps,
        "exit_names": layout.exit_names,
        "pools": layout.pools,
        "costs": layout.costs,
        "cost_fractions": layout.cost_fractions,
        "cost_unit": layout.cost_unit,
        "origin": opened.origin,
    }
    return facts, describe(opened)


@command(cache, "verify", "skexit cache verify cache")
@CACHE
@QUIET
def _verify(cache: str, quiet: bool) -> Any:
    """Compare every file of a cache with its checksum.

    If files are damaged, the command names them and ends with exit status 1. CACHE is a folder or URL, complete or not.
    """
    opened = open_partial(cache)
    opened.verify(progress=not quiet and not json_asked())
    complete = "" if opened.complete else "; the extraction has not finished"
    text = f"{printable(cache)}: {opened.n_rows:,} rows, {_size(opened.n_bytes)}, no file is damaged{complete}"
    facts = {"cache": cache, "rows": opened.n_rows, "bytes": opened.n_bytes, "complete": opened.complete}
    return facts, "" if quiet else text


@command(cache, "merge", "skexit cache merge part0 part1 all")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.argument("destination", metavar="DESTINATION")
@QUIET
def _merge(sources: tuple[str, ...], destination: str, quiet: bool) -> Any:
    """Join caches that one model extracted with the same settings from different data, in the given order.

    DESTINATION is a new or empty folder. It shares files with the sources if the file system can; otherwise, files are
    copied.
    """
    from skexit.cache import merge_caches

    merged = merge_caches(sources, destination, progress=not quiet and not json_asked())
    text = f"{printable(destination)}: {merged.n_rows:,} rows, {_size(merged.n_bytes)}"
    return {"cache": destination, "rows": merged.n_rows, "bytes": merged.n_bytes}, "" if quiet else text


def _has_labels(cache: FeatureCache) -> bool:
    from skexit.cache._shards import LABELS

    return any(shard.has(LABELS) for shard in cache.shards)


def describe(cache: FeatureCache) -> str:
    """The text that ``skexit cache info`` prints."""
    layout = cache.layout
    n_shards = len(cache.shards)
    facts = {
        "cache": str(cache.path),
        "rows": f"{cache.n_rows:,}",
        "complete": "yes" if cache.complete else "no: the extraction has not finished",
        "labels": "yes" if _has_labels(cache) else "no",
        "classes": _classes(cache),
        "stored as": cache.stored_dtype.name,
        "size": f"{_size(cache.n_bytes)} in {n_shards:,} {'shard' if n_shards == 1 else 'shards'}",
    }
    origin = [f"  {line}" for line in aligned(cache.origin)]
    lines = [*aligned(facts), "", *columns(_table_of_exits(layout)), "", "origin", *origin]
    return "\n".join(printable(line).rstrip() for line in lines)


def _table_of_exits(layout: ExitLayout) -> list[tuple[str, ...]]:
    """Rows of cells with a header; names and poolings of the exits, if they are known."""
    described: dict[str, list[str]] = {"exit": [str(k) for k in range(layout.n_exits)]}
    if layout.exit_names is not None:
        described["name"] = list(layout.exit_names)
    described["logits"] = [str(width) for width in layout.n_logits]
    described["features"] = [str(width) for width in layout.n_features]
    if layout.pools is not None:
        described["pooled by"] = [pool or "-" for pool in layout.pools]
    described[f"cost ({layout.cost_unit or 'no unit'})"] = [f"{cost:,.6g}" for cost in layout.costs]
    described["% of the last"] = [f"{fraction:.1%}" for fraction in layout.cost_fractions]
    return [tuple(described), *zip(*described.values(), strict=True)]


def _classes(cache: FeatureCache) -> str:
    classes = cache.layout.classes
    if classes is None:
        return "not named" if cache.layout.n_classes is None else f"{cache.layout.n_classes}, not named"
    named = ", ".join(map(str, classes[:_MAX_CLASSES]))
    return f"{len(classes)}: {named}{', ...' if len(classes) > _MAX_CLASSES else ''}"


def _size(n_bytes: int) -> str:
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
