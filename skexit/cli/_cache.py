"""The commands ``skexit cache info``, ``verify`` and ``merge``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skexit.cache import FeatureCache

_MAX_CLASSES = 5


def add_cache_command(commands: Any) -> None:
    """Add ``cache`` and its own commands to those of ``skexit``."""
    cache = commands.add_parser(
        "cache", help="look at caches, check them, join them", description="Look at caches, check them, join them."
    )
    actions = cache.add_subparsers(dest="action", required=True)
    info = actions.add_parser(
        "info",
        help="rows, exits, costs and origin of a cache",
        description="Say what a cache holds. Nothing but descriptions is read.",
    )
    info.add_argument("cache", metavar="CACHE", help="folder or URL of a cache, complete or not")
    info.set_defaults(run=_reporting_errors(_info))
    verify = actions.add_parser(
        "verify",
        help="compare every file of a cache with its checksum",
        description="Read every file of a cache and compare it with its checksum. Where files are damaged, they are "
        "named, and the exit status is 1.",
    )
    verify.add_argument("cache", metavar="CACHE", help="folder or URL of a cache, complete or not")
    verify.add_argument("--quiet", action="store_true", help="show no progress, and print nothing but errors")
    verify.set_defaults(run=_reporting_errors(_verify))
    merge = actions.add_parser(
        "merge",
        help="join caches of the same model and settings",
        description="Join caches of one model, extracted with the same settings from different data, in the order "
        "given. Files are shared with the sources where the file system allows it, and copied elsewhere.",
    )
    merge.add_argument("sources", metavar="SOURCE", nargs="+", help="folder of a complete cache")
    merge.add_argument("destination", metavar="DESTINATION", help="folder for the new cache, new or empty")
    merge.add_argument("--quiet", action="store_true", help="show no progress, and print nothing but errors")
    merge.set_defaults(run=_reporting_errors(_merge))


def _reporting_errors(command: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        try:
            command(options)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            lines = [line for text in (str(error), *getattr(error, "__notes__", [])) for line in text.split("\n")]
            message = "\n".join(map(printable, lines))
            print(f"skexit cache {options.action}: error: {message}", file=sys.stderr)
            return 1
        return 0

    return run


def _info(options: argparse.Namespace) -> None:
    from skexit.cache import FeatureCache

    print(describe(FeatureCache(options.cache, allow_partial=True)))


def _verify(options: argparse.Namespace) -> None:
    from skexit.cache import FeatureCache

    cache = FeatureCache(options.cache, allow_partial=True)
    cache.verify(progress=not options.quiet)
    if not options.quiet:
        complete = "" if cache.complete else "; the extraction has not finished"
        rows = f"{cache.n_rows:,} rows, {_size(cache.n_bytes)}"
        print(f"{printable(options.cache)}: {rows}, no file is damaged{complete}")


def _merge(options: argparse.Namespace) -> None:
    from skexit.cache import merge_caches

    cache = merge_caches(options.sources, options.destination, progress=not options.quiet)
    if not options.quiet:
        print(f"{printable(options.destination)}: {cache.n_rows:,} rows, {_size(cache.n_bytes)}")


def describe(cache: FeatureCache) -> str:
    """What ``skexit cache info`` prints."""
    from skexit.cache._shards import LABELS

    layout = cache.layout
    n_shards = len(cache.shards)
    facts = {
        "cache": str(cache.path),
        "rows": f"{cache.n_rows:,}",
        "complete": "yes" if cache.complete else "no: the extraction has not finished",
        "labels": "yes" if any(shard.has(LABELS) for shard in cache.shards) else "no",
        "classes": _classes(cache),
        "stored as": cache.stored_dtype.name,
        "size": f"{_size(cache.n_bytes)} in {n_shards:,} {'shard' if n_shards == 1 else 'shards'}",
    }
    unit = layout.cost_unit or "no unit"
    table = [("exit", "logits", "features", f"cost ({unit})", "% of the last")]
    for k, (cost, fraction) in enumerate(zip(layout.costs, layout.cost_fractions, strict=True)):
        table.append((str(k), str(layout.n_logits[k]), str(layout.n_features[k]), f"{cost:,.6g}", f"{fraction:.1%}"))
    lines = [*_aligned(facts), "", *_columns(table), "", "origin", *(f"  {line}" for line in _aligned(cache.origin))]
    return "\n".join(printable(line).rstrip() for line in lines)


def printable(text: str) -> str:
    """The text with all that a terminal may obey, or that moves what stands beside it, as escape sequences.

    >>> printable("\\x1b[31mnéa\\u202e")
    '\\\\x1b[31mnéa\\\\u202e'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _classes(cache: FeatureCache) -> str:
    classes = cache.layout.classes
    if classes is None:
        return "not named" if cache.layout.n_classes is None else f"{cache.layout.n_classes}, not named"
    named = ", ".join(map(str, classes[:_MAX_CLASSES]))
    return f"{len(classes)}: {named}{', ...' if len(classes) > _MAX_CLASSES else ''}"


def _aligned(facts: dict[str, str]) -> list[str]:
    width = max(map(len, facts), default=0)
    return [f"{name:{width}}  {value}" for name, value in facts.items()]


def _columns(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]


def _size(n_bytes: int) -> str:
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
