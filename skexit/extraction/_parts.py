"""Extraction by several processes: each writes some of the rows to a cache, and one process joins the caches."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, SequentialSampler, Subset

from skexit.backbone._loaders import count_rows
from skexit.cache import FeatureCache, merge_caches
from skexit.cache._folders import LocalFolder
from skexit.cache._manifest import MANIFEST, read_manifest
from skexit.cache._writer import PART
from skexit.utils._checks import is_integer

_FOLDER = re.compile(PART + r"(\d{5})-of-(\d{5})")
_SECONDS_BETWEEN_LOOKS = 0.2

#: Writes the batches of a loader to a cache in a folder.
Extract = Callable[[DataLoader[Any], Path], Any]

#: The `worker` parameter of `ExitExtractor.extract`.
Worker = str | tuple[int, int] | None


def rank_and_size(worker: Worker) -> tuple[int, int]:
    """Rank of this process and number of processes. Raises a ValueError if there is no such worker.

    None is the only process; ``"torchrun"`` reads the environment variables ``RANK`` and ``WORLD_SIZE``, by default 0
    and 1.
    """
    if worker is None:
        return 0, 1
    if worker == "torchrun":
        worker = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if isinstance(worker, tuple) and len(worker) == 2 and all(map(is_integer, worker)) and 0 <= worker[0] < worker[1]:
        return worker
    raise ValueError(f"worker={worker!r} must be None, 'torchrun' or (rank, n_workers) with 0 <= rank < n_workers.")


def found_parts(path: Path) -> int:
    """Number of parts into which an earlier extraction into a folder has divided the rows, 0 if there are none."""
    names = [_FOLDER.fullmatch(entry.name) for entry in path.glob(f"{PART}*")]
    sizes = {int(match[2]) for match in names if match}
    if len(sizes) > 1:
        raise ValueError(
            f"the folder {str(path)!r} has parts of extractions by {sorted(sizes)} workers; keep those of one only."
        )
    return sizes.pop() if sizes else 0


def count_parts(path: Path, n_parts: int) -> int:
    """Number of parts into which the rows are divided: that of an earlier extraction into the folder, or `n_parts`.

    Raises a ValueError if the folder has rows that are not in parts: parts cannot be joined with these.
    """
    found = found_parts(path)
    if not found and (path / MANIFEST).exists():
        cache = FeatureCache(path, allow_partial=True)
        if cache.n_rows and not cache.complete:  # if complete, the first worker has just joined the parts
            raise ValueError(
                f"the folder {str(path)!r} has {cache.n_rows} rows already, which are not in parts for several "
                "workers. Continue with one process, or pass another folder."
            )
    return found or n_parts


def part_folder(path: Path, part: int, n_parts: int) -> Path:
    return path / f"{PART}{part:05d}-of-{n_parts:05d}"


def extract_part(extract: Extract, loader: Iterable[Any], path: Path, part: int, n_parts: int) -> None:
    """Run the network over one of the parts, all of about equally many batches, and write a cache inside the folder.

    `extract` gets a loader and a folder, and writes a complete cache of the loader's rows to the folder. `loader` has
    all rows. Raises a ValueError if its rows have no fixed order, or cannot be read by index.
    """
    extract(loader_of_part(loader, part, n_parts), part_folder(path, part, n_parts))


def loader_of_part(loader: Iterable[Any], part: int, n_parts: int) -> DataLoader[Any]:
    """A loader of one part of the rows, which reads no others."""
    n_rows = count_rows(loader)
    if not (isinstance(loader, DataLoader) and isinstance(loader.sampler, SequentialSampler)) or n_rows is None:
        raise ValueError(
            "loader: several workers need a DataLoader of a data set that is read by index, with shuffle=False and a "
            "batch_size. It must have all rows, because each worker selects its own."
        )
    assert loader.batch_size is not None  # else n_rows is None
    n_batches = -(-n_rows // loader.batch_size)
    if n_batches < n_parts:
        raise ValueError(f"loader has {n_batches} batches for {n_parts} workers; give each at least one.")
    # Parts begin where batches do, because the last digits of an output may depend on the batch.
    start, stop = (min(part * n_batches // n_parts * loader.batch_size, n_rows) for part in (part, part + 1))
    return DataLoader(
        Subset(loader.dataset, range(start, stop)),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )


def extract_as_worker(extract: Extract, loader: Iterable[Any], path: Path, rank: int, n_workers: int) -> FeatureCache:
    """Extract the parts of this worker, wait for the other workers, and open the whole cache.

    The first worker joins the parts. An extraction that was started by another number of workers keeps its parts.
    """
    n_parts = count_parts(path, n_workers)
    if is_complete(path):
        return FeatureCache(path)
    for part in range(rank, n_parts, n_workers):
        extract_part(extract, loader, path, part, n_parts)
    if rank == 0:
        for part in range(n_parts):
            _wait(part_folder(path, part, n_parts))
        join_parts(path)
    _wait(path)
    return FeatureCache(path)


def is_complete(path: Path) -> bool:
    """Whether a folder has the cache of a finished extraction.

    It reads only the manifest of an unfinished cache, because waiting workers call it often and shards may be many.
    """
    try:
        return read_manifest(LocalFolder(path)).complete and FeatureCache(path, allow_partial=True).complete
    except FileNotFoundError:
        return False


def _wait(path: Path) -> None:
    """Wait until other workers have completed a cache. If one fails, the program that started them must end all."""
    while not is_complete(path):
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def join_parts(path: Path) -> FeatureCache:
    """Join the complete parts in a folder into the cache of all rows."""
    n_parts = found_parts(path)
    folders = [part_folder(path, part, n_parts) for part in range(n_parts)]
    cache = merge_caches(folders, path)
    for folder in path.glob(f"{PART}*-of-*"):
        shutil.rmtree(folder, ignore_errors=True)
    return cache
