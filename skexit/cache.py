"""A folder that keeps what a network said at each exit, in complete, checksummed shards.

Layout of the folder::

    manifest.json                layout, dtype and origin (model, settings, data); is it complete?
    shard-00000/shard.json       number of rows; shape, dtype and checksum of each file
    shard-00000/exit0.logits.npy
    shard-00000/exit0.features.npy
    ...
    shard-00000/y.npy            labels, when the loader gave them

A shard is written in a folder with another name and renamed when it is complete, so that a shard
is there in full or not at all. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import shutil
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.arrays import ExitArray
from skexit.layout import ExitLayout
from skexit.shards import (
    FORMAT_VERSION,
    LABELS,
    UNFINISHED,
    Shard,
    ShardWriter,
    read_json,
    shard_folders,
    temporary_name,
    write_json,
)

_MANIFEST = "manifest.json"

#: Rows of a shard are chosen so that it has about this many bytes.
_SHARD_BYTES = 64 * 2**20


class FeatureCache:
    """A cache of per-exit logits and features on disk.

    Written by :meth:`skexit.extraction.ExitExtractor.extract`. Each file is checked against its
    checksum when it is first read in a process.

    Parameters
    ----------
    path : str or path-like
        Folder of the cache.
    allow_partial : bool, default=False
        Open a cache whose extraction has not finished, with the rows that it has so far.

    Attributes
    ----------
    layout : ExitLayout
        Columns, classes and costs of the exits.
    dtype : numpy.dtype
        Type of the values that are read: float32 also where they are stored as float16.
    n_rows : int
        Number of rows.
    complete : bool
        Whether the extraction that wrote the cache came to its end.
    origin : dict of str to str
        What identifies the model, the settings of the extraction and the data.

    Raises
    ------
    FileNotFoundError
        If there is no cache at `path`.
    ValueError
        If the cache is not complete, comes from a newer version, or is damaged.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skexit import ExitLayout, FeatureCache
    >>> from skexit.cache import CacheWriter
    >>> folder = tempfile.TemporaryDirectory()
    >>> layout = ExitLayout(n_logits=[0, 2], n_features=[3, 0])
    >>> with CacheWriter(folder.name, layout, origin={"model": "demo"}) as writer:
    ...     writer.append([None, np.zeros((4, 2))], [np.ones((4, 3)), None], y=[0, 1, 1, 0])
    >>> cache = FeatureCache(folder.name)
    >>> cache.X, cache.y
    (ExitArray(4 rows, 5 columns, 2 exits, float32), array([0, 1, 1, 0]))
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], *, allow_partial: bool = False) -> None:
        self.path = Path(path)
        self.allow_partial = allow_partial
        manifest = _read_manifest(self.path)
        self.complete: bool = manifest["complete"]
        if not self.complete and not allow_partial:
            raise ValueError(
                f"the extraction into {str(self.path)!r} has not finished: call extract() again to "
                "go on, or open the cache with allow_partial=True."
            )
        self.layout = ExitLayout.from_dict(manifest["layout"])
        self.dtype = np.dtype(np.float32)
        self.origin: dict[str, str] = manifest["origin"]
        self._shards = [Shard(folder, number) for number, folder in enumerate(shard_folders(self.path))]
        self._edges = np.concatenate([[0], np.cumsum([shard.n_rows for shard in self._shards], dtype=np.int64)])
        if self.complete and self.n_rows != manifest["n_rows"]:
            if not allow_partial:
                raise ValueError(
                    f"the cache {str(self.path)!r} has {self.n_rows} rows but its manifest promises "
                    f"{manifest['n_rows']}: a shard after shard-{len(self._shards) - 1:05d} is missing. Extract again "
                    "to replace it."
                )
            self.complete = False

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self._edges[-1])

    @property
    def X(self) -> ExitArray:
        """All rows, to be read when they are asked for."""
        return ExitArray(self, self.layout)

    @cached_property
    def y(self) -> NDArray[Any] | None:
        """Labels of all rows, None when the loader gave none."""
        labelled = [shard.has(LABELS) for shard in self._shards]
        if not any(labelled):
            return None
        if not all(labelled):
            raise ValueError(f"some shards of the cache {str(self.path)!r} have labels and others none; extract again.")
        return np.concatenate([shard.open(LABELS) for shard in self._shards])

    def read(self, layout: ExitLayout, k: int, part: str, rows: Any) -> NDArray[Any]:
        """The ``"logits"`` or ``"features"`` of exit `k` in the given rows (see ExitArray).

        Parameters
        ----------
        layout : ExitLayout
            Layout of the rows that are read.
        k : int
            The exit.
        part : {"logits", "features"}
            What to read.
        rows : ndarray of int or slice
            Which rows of the cache.

        Returns
        -------
        ndarray of shape (n_rows, width)
            A copy of what is on disk, in float32.
        """
        name = _block_name(k, part)
        if isinstance(rows, slice):
            rows = np.arange(self.n_rows)[rows]
        width = layout.n_logits[k] if part == "logits" else layout.n_features[k]
        out = np.empty((len(rows), width), dtype=self.dtype)
        if width:
            shard_of_row = np.searchsorted(self._edges, rows, side="right") - 1
            for number in np.unique(shard_of_row):
                here = np.flatnonzero(shard_of_row == number)
                out[here] = self._shards[number].open(name)[rows[here] - self._edges[number]]
        return out

    def verify(self) -> None:
        """Read every file and compare it with its checksum.

        Raises
        ------
        ValueError
            If a file is damaged, naming the shard and the file.
        """
        for shard in self._shards:
            shard.verify()

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        state = "" if self.complete else ", not complete"
        return f"FeatureCache({str(self.path)!r}, {self.n_rows} rows, {self.layout.n_exits} exits{state})"

    def __getstate__(self) -> dict[str, Any]:
        # A worker process may have another working directory.
        return {"path": self.path.absolute(), "allow_partial": self.allow_partial, "origin": self.origin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], allow_partial=state["allow_partial"])  # type: ignore[misc]
        if self.origin != state["origin"]:
            raise ValueError(
                f"the cache at {str(self.path)!r} is not the one this array was taken from: it was "
                "extracted from another model or with other settings."
            )


class CacheWriter:
    """Append rows to a cache in complete shards; a context manager.

    Leaving the context normally marks the cache as complete; leaving it by an exception keeps the
    shards that are complete and drops the unfinished one.

    Parameters
    ----------
    path : str or path-like
        Folder of the cache. When it has one already, rows are added after those it has.
    layout : ExitLayout
        Columns, classes and costs of the exits.
    origin : dict of str to str
        What identifies the model, the settings of the extraction and the data.
    dtype : {"float32", "float16"}, default="float32"
        Type in which logits and features are stored.
    shard_rows : int, default=None
        A shard is closed after the append that brings it to this many rows. By default as many
        as make about 64 MiB.

    Attributes
    ----------
    n_rows : int
        Number of rows in complete shards and in the one being written.

    Raises
    ------
    ValueError
        If the folder holds a cache with another layout, dtype or origin.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: ExitLayout,
        *,
        origin: dict[str, str],
        dtype: str = "float32",
        shard_rows: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.layout = layout
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float16)):
            raise ValueError(f"dtype={dtype!r} must be 'float32' or 'float16'.")
        self.shard_rows = shard_rows or max(1, _SHARD_BYTES // (layout.n_columns * self.dtype.itemsize))
        self._manifest: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "complete": False,
            "n_rows": 0,
            "dtype": self.dtype.name,
            "origin": origin,
            "layout": layout.to_dict(),
        }
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / _MANIFEST).exists():
            self._check_same_cache(_read_manifest(self.path))
        elif any(entry.name != temporary_name(_MANIFEST) for entry in self.path.iterdir()):
            raise ValueError(
                f"the folder {str(self.path)!r} is not empty and holds no cache; give a new or empty folder."
            )
        for leftover in self.path.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
        folders = shard_folders(self.path)
        self._next_shard = len(folders)
        self.n_rows = sum(Shard(folder, number).n_rows for number, folder in enumerate(folders))
        self._write_manifest()
        self._shard: ShardWriter | None = None

    def append(self, logits: list[Any], features: list[Any], y: Any = None) -> None:
        """Add rows.

        Parameters
        ----------
        logits, features : list of n_exits arrays of shape (n_rows, width) or None
            What each exit gave; None where the layout has no such columns.
        y : array-like of shape (n_rows,), default=None
            Labels of the rows.
        """
        if self._shard is None:
            self._shard = ShardWriter(self.path, self._next_shard, self.dtype)
        blocks: dict[str, NDArray[Any]] = {}
        for k in range(self.layout.n_exits):
            for part, block, width in (
                ("logits", logits[k], self.layout.n_logits[k]),
                ("features", features[k], self.layout.n_features[k]),
            ):
                if (0 if block is None else np.shape(block)[1]) != width:
                    raise ValueError(f"the {part} of exit {k} have shape {np.shape(block)}; the layout says {width}.")
                if width:
                    blocks[_block_name(k, part)] = np.asarray(block)
        self.n_rows += self._shard.append(blocks, y)
        if self._shard.n_rows >= self.shard_rows:
            self._close_shard()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            if self._shard is not None:
                self._shard.discard()
            return
        self._close_shard()
        self._manifest |= {"complete": True, "n_rows": self.n_rows}
        self._write_manifest()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None
            self._next_shard += 1

    def _write_manifest(self) -> None:
        write_json(self.path / _MANIFEST, self._manifest)

    def _check_same_cache(self, found: dict[str, Any]) -> None:
        names = ("dtype", "layout")
        check_same_cache(
            self.path,
            found["origin"] | {name: found[name] for name in names},
            self._manifest["origin"] | {name: self._manifest[name] for name in names},
        )


def check_same_cache(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise a ValueError that names what differs between the cache of a folder and the one expected there."""
    names = sorted({*found, *expected})
    differing = [name for name in names if found.get(name) != expected.get(name)]
    if differing:
        raise ValueError(
            f"the folder {str(path)!r} holds a cache that differs in {', '.join(differing)}. "
            "Give another folder, or delete this one to extract again."
        )


def _block_name(k: int, part: str) -> str:
    return f"exit{k}.{part}.npy"


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    if not file.exists():
        raise FileNotFoundError(f"there is no cache at {str(path)!r}: it has no {_MANIFEST}.")
    try:
        manifest = read_json(file)
        missing = {"complete", "n_rows", "dtype", "origin", "layout"} - set(manifest)
        if missing:
            raise ValueError(f"it lacks {sorted(missing)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the manifest of the cache {str(path)!r} cannot be used: {error}.") from error
    return manifest
