"""Read and write the caches and policies of commands."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skexit.utils._files import replacing

if TYPE_CHECKING:
    from skexit.cache import FeatureCache
    from skexit.runtime import ExitLatency

BATCH_SIZE = click.IntRange(min=1)
CACHE = click.argument("cache", metavar="CACHE")
POLICY = click.argument("policy", metavar="POLICY")
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers.")
QUIET = click.option("--quiet", is_flag=True, help="Show no progress bar, and print only errors.")


def out_option(default: str | None, what: str) -> Any:
    """The option ``--out`` with the help text `what`. It is required if `default` is None."""
    if default is None:
        return click.option("--out", required=True, help=what)
    return click.option("--out", default=default, show_default=True, help=what)


def open_cache(path: str) -> FeatureCache:
    """The complete cache in a folder or at a URL; an error if `path` is a file."""
    from skexit.cache import FeatureCache

    _check_is_folder(path)
    return FeatureCache(path)


def open_labelled(path: str, purpose: str) -> FeatureCache:
    """A complete cache with labels. If it has none, the error says that `purpose`, such as "a report", needs them."""
    cache = open_cache(path)
    if cache.y is None:
        raise ValueError(
            f"the cache {path!r} has no labels, which {purpose} needs. Extract into another folder, with a loader "
            "that returns (inputs, labels)."
        )
    return cache


def open_partial(path: str) -> FeatureCache:
    """The cache in a folder or at a URL, complete or not."""
    from skexit.cache import FeatureCache

    _check_is_folder(path)
    return FeatureCache(path, allow_partial=True)


def _check_is_folder(path: str) -> None:
    if os.path.isfile(path):
        raise NotADirectoryError(f"{path!r} is a file; a cache is a folder, which skexit extract writes.")


def load_policy(path: str) -> Any:
    """Load a fitted policy from a joblib file."""
    import joblib

    if os.path.isdir(path):
        what = "a cache" if os.path.exists(os.path.join(path, "manifest.json")) else "a folder"
        raise IsADirectoryError(f"{path!r} is {what}; a policy is a file, which skexit fit writes.")
    with open(path, "rb"):  # a missing file raises FileNotFoundError here, not the error below
        pass
    try:
        return joblib.load(path)
    except Exception as error:  # a damaged file, or a file of another program, can raise any exception
        raise ValueError(
            f"{path!r} cannot be loaded ({type(error).__name__}: {error}). Give a policy saved with joblib.dump."
        ) from error


def load_fitting(path: str, cache: FeatureCache, cache_path: str) -> Any:
    """Load a policy, and check that the rows of the cache have the layout that it was fitted on."""
    from skexit.policies._access import check_fits

    policy = load_policy(path)
    try:
        check_fits(policy, cache.X, cache.y)
    except ValueError as error:
        raise ValueError(f"{path!r} does not fit the cache {cache_path!r}: {error}") from error
    return policy


def save_policy(policy: Any, path: str) -> None:
    """Write a policy in one step, so that an interrupted command leaves no incomplete file."""
    import joblib

    with replacing(check_out_file(path)) as beside:
        joblib.dump(policy, beside)


def save_latency(latency: ExitLatency, path: Path) -> None:
    """Write measured times as JSON, in one step."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(latency.to_dict()), encoding="utf-8")


def load_latency(path: str) -> ExitLatency:
    """Read the times that `save_latency` wrote."""
    from skexit.runtime import ExitLatency

    try:
        return ExitLatency.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be read: {error} Give a file that skexit latency --out wrote.") from error


def check_out_file(path: str) -> Path:
    """The path of a file to write, whose folder must exist. Commands check this before long work."""
    out = Path(path)
    if out.is_dir():
        raise IsADirectoryError(f"--out {path!r} is a folder; give the name of a file, such as {str(out / 'name')!r}.")
    if not out.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(out.parent)!r} to write {out.name!r} into. Create the folder first."
        )
    return out


def names_of(paths: Sequence[str]) -> list[str]:
    """File names without folder and extension, or the whole paths if these names are not unique."""
    names = [Path(path).stem for path in paths]
    return names if len(set(names)) == len(names) else list(paths)
