"""Writing a cache: one shard after another, by one process at a time."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.cache._folders import LocalFolder, absolute, is_url
from skexit.cache._json_files import temporary_name, write_json
from skexit.cache._labels import check_labels, check_same_kind
from skexit.cache._lock import LOCK, FolderLock
from skexit.cache._manifest import (
    DTYPES,
    MANIFEST,
    Manifest,
    block_name,
    check_readable,
    listed,
    make_fingerprint,
    read_manifest,
)
from skexit.cache._shards import INPUTS, LABELS, UNFINISHED, Shard, ShardWriter, open_shards
from skexit.data import ExitLayout
from skexit.utils._checks import check_positive

#: Folders inside a cache that hold caches of some of its rows, until these are joined, begin with this.
PART = "part-"

#: Rows of a shard are chosen so that it has about this many bytes.
_SHARD_BYTES = 64 * 2**20


class CacheWriter:
    """Append rows to a cache in complete shards; a context manager.

    Leaving the context normally marks the cache as complete; leaving it by an exception keeps the
    shards that are complete and drops the unfinished one. A shard is on the disk, not only on its way
    there, before it has the name of a complete one.

    Parameters
    ----------
    path : str or path-like
        Folder of the cache; ``~`` is the user's home. When it has one already, rows are added after those it has.
    layout : ExitLayout
        Columns, classes and costs of the exits.
    origin : dict of str to str
        What identifies the model, the settings of the extraction and the data.
    dtype : {"float32", "float16"}, default="float32"
        Type in which logits and features are stored.
    shard_rows : int, default=None
        A shard is closed after the append that brings it to this many rows. By default as many as make about 64 MiB.
    n_cached : int, default=None
        How many rows the caller found in the folder; None if it did not look.

    Attributes
    ----------
    n_rows : int
        Number of rows in complete shards and in the one being written.

    Raises
    ------
    ValueError
        If the folder holds a cache with another layout, dtype or origin.
    RuntimeError
        If another process is writing into the folder, or has done so since the caller looked.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: ExitLayout,
        *,
        origin: dict[str, str],
        dtype: str = "float32",
        shard_rows: int | None = None,
        n_cached: int | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} must be 'float32' or 'float16'.")
        if is_url(path):
            raise ValueError(f"{str(path)!r} is a URL; write the cache to a folder of this machine, and copy it then.")
        if shard_rows is not None:
            check_positive("shard_rows", shard_rows)
        self.path = absolute(path)
        self.layout = layout
        self.dtype = np.dtype(dtype)
        self.shard_rows = shard_rows or max(1, _SHARD_BYTES // (layout.n_columns * self.dtype.itemsize))
        self._shard: ShardWriter | None = None
        #: What the rows so far have of labels and checksums of inputs, by name of the file; None without rows.
        self._known_columns: dict[str, np.dtype] | None = None
        check_readable(Manifest(layout, self.dtype, origin))
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.path)
        try:
            self._begin(Manifest(layout, self.dtype, origin), n_cached)
        except BaseException:
            self._lock.release()
            raise

    def append(self, logits: list[Any], features: list[Any], y: Any = None, *, inputs: Any = None) -> None:
        """Add rows.

        Parameters
        ----------
        logits, features : list of n_exits arrays of shape (n_rows, width) or None
            What each exit gave; None where the layout has no such columns.
        y : array-like of shape (n_rows,), default=None
            Labels of the rows: strings, integers or floats.
        inputs : array-like of shape (n_rows,), default=None
            Checksums of the inputs that the rows come from, by which these are recognised.
        """
        if not len(logits) == len(features) == self.layout.n_exits:
            raise ValueError(
                f"logits and features have {len(logits)} and {len(features)} exits, not {self.layout.n_exits}."
            )
        blocks: dict[str, NDArray[Any]] = {}
        for k in range(self.layout.n_exits):
            for part, block, width in (
                ("logits", logits[k], self.layout.n_logits[k]),
                ("features", features[k], self.layout.n_features[k]),
            ):
                shape = (0, 0) if block is None else np.shape(block)
                if len(shape) != 2 or shape[1] != width:
                    raise ValueError(f"the {part} of exit {k} have shape {np.shape(block)}; the layout says {width}.")
                if width:
                    blocks[block_name(k, part)] = np.asarray(block)
        if not any(map(np.size, (*blocks.values(), [] if y is None else y))):
            return  # an empty list has no kind of labels
        columns = self._check_columns(y, inputs)
        if self._shard is None:
            self._shard = self._new_shard()
        self._shard.append(blocks, columns)
        self._known_columns = {name: column.dtype for name, column in columns.items()}
        if self._shard.n_rows >= self.shard_rows:
            self._close_shard()

    def _check_columns(self, y: Any, inputs: Any) -> dict[str, NDArray[Any]]:
        """Labels and checksums as arrays, checked against those of the rows before."""
        columns = {} if y is None else {LABELS: check_labels(y)}
        if inputs is not None:
            columns[INPUTS] = _check_checksums(inputs)
        if self._known_columns is not None:
            check_same_kind(self._known_columns.get(LABELS), columns.get(LABELS))
            if (INPUTS in self._known_columns) != (INPUTS in columns):
                raise ValueError("some batches have inputs and others none; give inputs for all rows or for none.")
        return columns

    def append_shard(self, shard: Shard, source: Path) -> None:
        """Add a complete shard of another cache, by hard links to its files or copies of them.

        Parameters
        ----------
        shard : Shard
            With the columns of this cache.
        source : Path
            Folder of the shard.
        """
        self._close_shard()
        self._shard = self._new_shard()
        self._shard.take(shard, source)
        self._close_shard()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end(error)
        finally:
            # Twice, as Ctrl-C may come just before it, too.
            try:
                self._lock.release()
            finally:
                self._lock.release()

    def _end(self, error: BaseException | None) -> None:
        try:
            if error is None:
                self._complete()
        except OSError as own_error:
            error = own_error
            raise
        finally:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                error.add_note(
                    f"The disk of {str(self.path)!r} is full. Complete shards are kept: make room, and do the same "
                    "again to go on after them."
                )
            if self._shard is not None:
                self._shard.discard()

    @property
    def n_rows(self) -> int:
        """Number of rows in complete shards and in the one being written."""
        return self._n_closed + (0 if self._shard is None else self._shard.n_rows)

    def _begin(self, manifest: Manifest, n_cached: int | None) -> None:
        """Read the content of the folder, and mark it as a cache that is not complete."""
        folder = LocalFolder(self.path)
        if (self.path / MANIFEST).exists():
            found = read_manifest(folder)
            check_same_cache(self.path, found.differing(manifest))
            self._manifest = replace(manifest, fingerprint=found.fingerprint)
        elif any(not _may_precede_manifest(entry.name) for entry in self.path.iterdir()):
            raise ValueError(
                f"the folder {str(self.path)!r} is not empty and holds no cache; give a new or empty folder."
            )
        else:
            found = self._manifest = replace(manifest, fingerprint=make_fingerprint(manifest))
        shards = open_shards(folder, found)
        self._n_closed = sum(shard.n_rows for shard in shards)
        if n_cached not in (None, self.n_rows):
            raise RuntimeError(
                f"another process has written into {str(self.path)!r} meanwhile: it has {self.n_rows} rows now, not "
                f"{n_cached}. Extract again to go on from there."
            )
        self._checksums = [shard.checksum for shard in shards]
        if shards:
            self._known_columns = {
                name: shards[-1].files[name].dtype for name in (LABELS, INPUTS) if shards[-1].has(name)
            }
        for leftover in self.path.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
        self._write_manifest()

    def _complete(self) -> None:
        self._close_shard()
        self._manifest = replace(self._manifest, complete=True, n_rows=self.n_rows, shards=tuple(self._checksums))
        self._write_manifest()

    def _new_shard(self) -> ShardWriter:
        return ShardWriter(self.path, len(self._checksums), self.dtype, self._manifest.fingerprint)

    def _close_shard(self) -> None:
        if self._shard is not None:
            if self._shard.n_rows:
                self._checksums.append(self._shard.close())
                self._n_closed += self._shard.n_rows
            else:  # its only batch was refused
                self._shard.discard()
            self._shard = None

    def _write_manifest(self) -> None:
        write_json(self.path / MANIFEST, self._manifest.to_dict())


def _check_checksums(inputs: Any) -> NDArray[np.uint32]:
    checksums = np.asarray(inputs)
    if checksums.ndim != 1 or checksums.dtype.kind not in "iu" or ((checksums < 0) | (checksums >= 2**32)).any():
        raise ValueError(
            f"inputs have shape {checksums.shape} and dtype {checksums.dtype}; give one integer below 2**32 a row."
        )
    return checksums.astype(np.uint32)


def _may_precede_manifest(name: str) -> bool:
    """Whether a folder without a manifest may hold such an entry, and become a cache."""
    return name in (temporary_name(MANIFEST), LOCK) or name.startswith(PART)


def check_same_cache(path: Path | str, differing: dict[str, str]) -> None:
    """Raise a ValueError that names what differs between the cache of a folder and the one expected there."""
    if differing:
        raise ValueError(
            f"the folder {str(path)!r} holds a cache that differs in {listed(differing)}. "
            "Give another folder, or delete this one to extract again."
        )
