"""Shards of a cache: folders of arrays that are there in full, with their checksums, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
LABELS = "y.npy"
#: Folders of shards that are being written begin with this.
UNFINISHED = "unfinished-"

_SHARD = "shard.json"


class Shard:
    """A complete shard, opened for reading."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        try:
            description = read_json(folder / _SHARD)
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
            if _checksum(array) != self._files[name]["crc32"]:
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


class ShardWriter:
    """A shard being written: one growing .npy file for each block."""

    def __init__(self, path: Path, number: int, dtype: np.dtype) -> None:
        self._folder = path / f"{UNFINISHED}{number:05d}"
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
            np.save(self._folder / LABELS, labels, allow_pickle=False)
            files[LABELS] = _describe(labels.shape, labels.dtype, _checksum(labels))
        write_json(self._folder / _SHARD, {"number": self._number, "n_rows": self.n_rows, "files": files})
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
        self._crc32 = 0
        self._write_header()
        self._data_start = self._file.tell()

    def append(self, block: NDArray[Any]) -> None:
        data = _bytes(block)
        self._file.write(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._n_rows += len(block)

    def close(self) -> dict[str, Any]:
        self._file.seek(0)
        self._write_header()
        # NumPy pads headers so that the first dimension can grow in place.
        assert self._file.tell() == self._data_start
        self._file.close()
        return _describe((self._n_rows, self._width), self._dtype, self._crc32)

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


def _describe(shape: tuple[int, ...], dtype: np.dtype, checksum: int) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": dtype.str, "crc32": checksum}


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(_bytes(array))


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


def shard_folders(path: Path) -> list[Path]:
    """Folders of the complete shards of a cache, in order."""
    return sorted(path.glob("shard-*"))


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote, and compare it with its checksum."""
    content: dict[str, Any] = json.loads(path.read_text())
    version = content.get("format", FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise ValueError(f"it has format {version}, written by a newer skexit; upgrade to read it")
    checksum = content.pop("crc32", None)
    if checksum != _json_checksum(content):
        raise ValueError("its checksum differs")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file in one step, and add a checksum."""
    temporary = path.with_name(temporary_name(path.name))
    temporary.write_text(json.dumps(content | {"crc32": _json_checksum(content)}, indent=1))
    os.replace(temporary, path)


def _json_checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def temporary_name(name: str) -> str:
    """Name under which a file is written before it replaces another."""
    return f"{name}.tmp"
