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

import hashlib
import json
import os
import shutil
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skexit.arrays import ExitArray
from skexit.layout import ExitLayout

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_SHARD = "shard.json"
_LABELS = "y.npy"
_UNFINISHED = "unfinished-"

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
        self._shards = [_Shard(folder, number) for number, folder in enumerate(_shard_folders(self.path))]
        self._edges = np.concatenate([[0], np.cumsum([shard.n_rows for shard in self._shards], dtype=np.int64)])
        if self.complete and self.n_rows != manifest["n_rows"]:
            if not allow_partial:
                raise ValueError(
                    f"the cache {str(self.path)!r} has {self.n_rows} rows but its manifest promises "
                    f"{manifest['n_rows']}: a shard after shard-{len(self._shards) - 1:05d} is missing. Extract again to "
                    "replace it."
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
        if not all(shard.has(_LABELS) for shard in self._shards) or not self._shards:
            return None
        return np.concatenate([shard.open(_LABELS) for shard in self._shards])

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
        return {"path": self.path, "allow_partial": self.allow_partial, "origin": self.origin}

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
        elif any(entry.name != _temporary(_MANIFEST) for entry in self.path.iterdir()):
            raise ValueError(
                f"the folder {str(self.path)!r} is not empty and holds no cache; give a new or empty folder."
            )
        for leftover in self.path.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        folders = _shard_folders(self.path)
        self._next_shard = len(folders)
        self.n_rows = sum(_Shard(folder, number).n_rows for number, folder in enumerate(folders))
        self._write_manifest()
        self._shard: _ShardWriter | None = None

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
            self._shard = _ShardWriter(self.path, self._next_shard, self.dtype)
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
        _write_json(self.path / _MANIFEST, self._manifest)

    def _check_same_cache(self, found: dict[str, Any]) -> None:
        mine = self._manifest
        names = sorted({*mine["origin"], *found["origin"]})
        differing = [name for name in names if found["origin"].get(name) != mine["origin"].get(name)]
        differing += [name for name in ("dtype", "layout") if found[name] != mine[name]]
        if differing:
            raise ValueError(
                f"the folder {str(self.path)!r} holds a cache that differs in {', '.join(differing)}. "
                "Give another folder, or delete this one to extract again."
            )


class _Shard:
    """A complete shard, opened for reading."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        try:
            description = _read_json(folder / _SHARD)
            self.number: int = description["number"]
            self.n_rows: int = description["n_rows"]
            self._files: dict[str, dict[str, Any]] = description["files"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damage(_SHARD, str(error)) from error
        if self.number != number:
            raise self._damage(_SHARD, f"it says that it is shard {self.number}")
        self._open: dict[str, NDArray[Any]] = {}

    def has(self, name: str) -> bool:
        return name in self._files

    def open(self, name: str) -> NDArray[Any]:
        """Memory-map a file, after comparing it with its checksum."""
        if name not in self._open:
            if not self.has(name):
                raise self._damage(name, "the shard has no such file")
            array = self._map(name)
            if _checksum(array) != self._files[name]["sha256"]:
                raise self._damage(name, "its checksum differs")
            self._open[name] = array
        return self._open[name]

    def verify(self) -> None:
        for name in self._files:
            self._open.pop(name, None)
            self.open(name)

    def _map(self, name: str) -> NDArray[Any]:
        expected = self._files[name]
        try:
            # NumPy checks the length of the file against the shape in its header. A damaged header can raise anything.
            array = np.lib.format.open_memmap(self.folder / name, mode="r")
        except Exception as error:
            raise self._damage(name, str(error)) from error
        if list(array.shape) != expected["shape"] or array.dtype.str != expected["dtype"]:
            raise self._damage(name, f"it has shape {array.shape} and dtype {array.dtype}")
        return array

    def _damage(self, name: str, reason: str) -> ValueError:
        return ValueError(
            f"the shard {str(self.folder)!r} is damaged: {name}: {reason}. Delete that shard and all later ones, "
            "and extract again to replace them."
        )


class _ShardWriter:
    """A shard being written: one growing .npy file for each block."""

    def __init__(self, path: Path, number: int, dtype: np.dtype) -> None:
        self._folder = path / f"{_UNFINISHED}{number:05d}"
        self._final_folder = path / f"shard-{number:05d}"
        self._folder.mkdir()
        self._number = number
        self._dtype = dtype
        self._files: dict[str, _GrowingArray] = {}
        self._labels: list[NDArray[Any]] = []
        self.n_rows = 0

    def append(self, blocks: dict[str, NDArray[Any]], y: Any) -> int:
        n_rows = {len(block) for block in blocks.values()}
        labels = None if y is None else _check_labels(y)
        if labels is not None:
            n_rows.add(len(labels))
        if len(n_rows) != 1:
            raise ValueError(f"the exits and labels of a batch have different numbers of rows: {sorted(n_rows)}.")
        if self.n_rows and (labels is None) == bool(self._labels):
            raise ValueError("some batches have labels and others none; give labels for all rows or for none.")
        # Nothing is written before everything is found right, so that a refused batch leaves no trace.
        stored = {name: _to_storage(block, self._dtype, name) for name, block in blocks.items()}
        for name, block in stored.items():
            if name not in self._files:
                self._files[name] = _GrowingArray(self._folder / name, block.shape[1], self._dtype)
            self._files[name].append(block)
        if labels is not None:
            self._labels.append(labels)
        added = n_rows.pop()
        self.n_rows += added
        return added

    def close(self) -> None:
        files = {name: file.close() for name, file in self._files.items()}
        if self._labels:
            labels = np.concatenate(self._labels)
            np.save(self._folder / _LABELS, labels, allow_pickle=False)
            files[_LABELS] = _describe(labels.shape, labels.dtype, _checksum(labels))
        _write_json(self._folder / _SHARD, {"number": self._number, "n_rows": self.n_rows, "files": files})
        self._folder.rename(self._final_folder)

    def discard(self) -> None:
        for file in self._files.values():
            file.abandon()
        shutil.rmtree(self._folder)


class _GrowingArray:
    """A two-dimensional .npy file that grows by rows; its header is corrected at the end."""

    def __init__(self, path: Path, width: int, dtype: np.dtype) -> None:
        self._file: BinaryIO = path.open("wb")
        self._width = width
        self._dtype = dtype
        self._n_rows = 0
        self._hash = hashlib.sha256()
        self._write_header()
        self._data_start = self._file.tell()

    def append(self, block: NDArray[Any]) -> None:
        data = _bytes(block)
        self._file.write(data)
        self._hash.update(data)
        self._n_rows += len(block)

    def close(self) -> dict[str, Any]:
        self._file.seek(0)
        self._write_header()
        # NumPy pads headers so that the first dimension can grow in place.
        assert self._file.tell() == self._data_start
        self._file.close()
        return _describe((self._n_rows, self._width), self._dtype, self._hash.hexdigest())

    def abandon(self) -> None:
        self._file.close()

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._n_rows, self._width),
            },
        )


def _describe(shape: tuple[int, ...], dtype: np.dtype, checksum: str) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": dtype.str, "sha256": checksum}


def _checksum(array: NDArray[Any]) -> str:
    return hashlib.sha256(_bytes(array)).hexdigest()


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1).data


def _to_storage(block: NDArray[Any], dtype: np.dtype, name: str) -> NDArray[Any]:
    if block.dtype == dtype:
        return block
    with np.errstate(over="ignore"):
        stored = block.astype(dtype)
    if np.isinf(stored).any() and np.isfinite(block).all():
        raise ValueError(
            f"{name.removesuffix('.npy')} has values up to {np.abs(block).max():.3g}, too large for {dtype}; "
            "extract with dtype='float32'."
        )
    return stored


def _check_labels(y: Any) -> NDArray[Any]:
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.dtype.kind not in "iubfU":
        raise ValueError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; give one number or string for each row."
        )
    return labels


def _block_name(k: int, part: str) -> str:
    return f"exit{k}.{part}.npy"


def _shard_folders(path: Path) -> list[Path]:
    return sorted(path.glob("shard-*"))


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    if not file.exists():
        raise FileNotFoundError(f"there is no cache at {str(path)!r}: it has no {_MANIFEST}.")
    try:
        manifest = _read_json(file)
        missing = {"complete", "n_rows", "dtype", "origin", "layout"} - set(manifest)
        if missing:
            raise ValueError(f"it lacks {sorted(missing)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the manifest of the cache {str(path)!r} cannot be used: {error}.") from error
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    """Read what `_write_json` wrote, and compare it with its checksum."""
    content: dict[str, Any] = json.loads(path.read_text())
    version = content.get("format", FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise ValueError(f"it has format {version}, written by a newer skexit; upgrade to read it")
    checksum = content.pop("sha256", None)
    if checksum != _json_checksum(content):
        raise ValueError("its checksum differs")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(_temporary(path.name))
    temporary.write_text(json.dumps(content | {"sha256": _json_checksum(content)}, indent=1))
    os.replace(temporary, path)


def _json_checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _temporary(name: str) -> str:
    return f"{name}.tmp"
