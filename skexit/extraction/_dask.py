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
from skexit.utils._checks import check_positive
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

    Each worker extracts parts of the rows. If a worker dies, another one continues its part and repeats only the
    unfinished shard.

    Parameters
    ----------
    client : distributed.Client
        Client of a cluster whose workers all find the folder at the same path.
    extractor : ExitExtractor
        The extractor and its network are sent to the workers.
    loader : torch.utils.data.DataLoader
        Loader of all rows, in a fixed order, of a data set that is read by index. It is sent to the workers, too:
        its data set should read files rather than hold all rows in memory.
    path : str or path-like
        Folder of the cache: new, empty, or of an earlier extraction.
    n_parts : int, default=None
        Number of parts into which the rows are divided. By default four per worker; fast workers extract more parts.
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
        As in :meth:`ExitExtractor.extract`; also if rows cannot be read by index, the costs are in ``"ms"``, or a
        single process has started an extraction into the folder.

    See Also
    --------
    ExitExtractor.extract : Extracts in processes that torchrun starts, with ``worker="torchrun"``.

    Examples
    --------
    >>> from distributed import Client  # doctest: +SKIP
    >>> client = Client("tcp://scheduler:8786")  # doctest: +SKIP
    >>> cache = extract_on_dask(client, extractor, loader, "/shared/cache")  # doctest: +SKIP
    """
    with optional_import("extract_on_dask needs", "distributed"):
        import cloudpickle
        from distributed import as_completed
    if n_parts is not None:
        check_positive("n_parts", n_parts)
    folder = absolute(path)
    if is_complete(folder):
        return extractor.extract(loader, folder, **options)
    n_parts = count_parts(folder, n_parts or 4 * len(client.scheduler_info()["workers"]))
    loader_of_part(loader, 0, n_parts)  # a loader that cannot be divided raises its error here, not on the workers
    # Bytes, because dask may move data between workers at any time, and the hooks of a running network have no pickle.
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
