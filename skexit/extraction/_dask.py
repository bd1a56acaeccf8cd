"""Extraction by the workers of a dask cluster."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skexit.cache import FeatureCache
from skexit.cache._folders import absolute
from skexit.extraction._extractor import ExitExtractor
from skexit.extraction._parts import count_parts, extract_part, is_complete, join_parts, loader_of_part
from skexit.utils._optional import optional_import

if TYPE_CHECKING:
    from distributed import Client


def extract_on_dask(
    client: Client,
    extractor: ExitExtractor,
    loader: Iterable[Any],
    path: str | os.PathLike[str],
    *,
    n_parts: int | None = None,
    **options: Any,
) -> FeatureCache:
    """Run a network over a loader on the workers of a dask cluster, and write one cache.

    Each worker extracts parts of the rows. What a worker that dies had not finished, another goes on with: all but
    its unfinished shard is kept.

    Parameters
    ----------
    client : distributed.Client
        Of a cluster whose workers all see the folder at the same path.
    extractor : ExitExtractor
        Is sent to the workers, with its network.
    loader : torch.utils.data.DataLoader
        Of all rows, by index and in a fixed order; it is sent to the workers, too, so that its data set should
        read files, rather than hold all rows in memory.
    path : str or path-like
        Folder of the cache: new, empty, or of an earlier extraction.
    n_parts : int, default=None
        Into how many parts the rows are divided; by default four for each worker, so that a fast one takes more.
    **options
        `classes` and `shard_rows`, as in :meth:`ExitExtractor.extract`.

    Returns
    -------
    cache : FeatureCache
        The complete cache, the same as one process would have written.

    Raises
    ------
    ImportError
        If dask.distributed is not installed.
    ValueError
        As :meth:`ExitExtractor.extract`, and if rows cannot be read by index, costs are times, or one process has
        begun to extract into the folder.

    See Also
    --------
    ExitExtractor.extract : With ``worker="torchrun"``, on processes that torchrun starts.

    Examples
    --------
    >>> from distributed import Client  # doctest: +SKIP
    >>> client = Client("tcp://scheduler:8786")  # doctest: +SKIP
    >>> cache = extract_on_dask(client, extractor, loader, "/shared/cache")  # doctest: +SKIP
    """
    with optional_import("extract_on_dask needs", "distributed"):
        import cloudpickle
        from distributed import as_completed
    folder = absolute(path)
    if is_complete(folder):
        return extractor.extract(loader, folder, **options)
    n_parts = count_parts(folder, n_parts or 4 * len(client.scheduler_info()["workers"]))
    loader_of_part(loader, 0, n_parts)  # what cannot be divided fails here, not on the workers
    # Bytes, as a worker may pass on what it has at any time: a network that runs has hooks, which cannot be pickled.
    pickled = client.scatter(cloudpickle.dumps((extractor, loader)), broadcast=True)
    futures = client.map(
        _extract_part,
        range(n_parts),
        pickled=pickled,
        path=folder,
        n_parts=n_parts,
        options=options | {"progress": False},
        pure=False,
    )
    try:
        for future in as_completed(futures):
            future.result()
    finally:
        client.cancel(futures)
    return join_parts(folder)


def _extract_part(part: int, *, pickled: bytes, path: Path, n_parts: int, options: dict[str, Any]) -> None:
    extractor, loader = pickle.loads(pickled)
    extractor._read_example(loader)
    extract_part(partial(extractor._extract_part, **options), loader, path, part, n_parts)
