"""Shards of a cache: folders of arrays with checksums, either complete or absent."""

from __future__ import annotations

import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skexit.cache._array_files import MAX_HEADER_BYTES, ArrayFile, bytes_of, map_array
from skexit.cache._array_files import checksum as _checksum
from skexit.cache._durable import begin_sync, sync_files, sync_folder
from skexit.cache._folders import Folder, LocalFolder, copy_file
from skexit.cache._json_files import check_count, dump_json, json_checksum, parse_json
from skexit.cache._manifest import MANIFEST, Manifest, read_manifest
from skexit.cache._open_arrays import OpenArrays

LABELS = "y.npy"
#: Checksums of the inputs that the rows were extracted from.
INPUTS = "inputs.npy"
#: Folders of shards that are being written begin with this.
UNFINISHED = "unfinished-"

_SHARD = "shard.json"
#: A process may have about a thousand files open, and a cache has more.
_MAX_OPEN_ARRAYS = 256
#: By how much the files of a shard may be shorter than they should be when a cache is opened. What is missing is named
#: when it is read; but memory is asked for by the number of rows before that, which must not be made up.
_MAX_MISSING_BYTES = 2**20
#: A file is brought to the disk in pieces of this many bytes or more.
_SYNCED_BYTES = 2**21


class Shard:
    """A complete shard of the cache in a folder, opened for reading.

    `number` says which shard it should be, and `size` how many bytes its files have. `open_arrays` keeps its files
    open. Its `checksum` is that of its description, and so of the checksums of all files.
    """

    def __init__(
        self, folder: Folder, name: str, number: int, manifest: Manifest, size: int, open_arrays: OpenArrays
    ) -> None:
        self.folder = folder
        self.name = name
        self.number = number
        self._open_arrays = open_arrays
        self._checked: dict[str, tuple[int, int]] = {}
        self.files: dict[str, ArrayFile] = {}
        with self._naming(_SHARD):
            description = parse_json(folder.read(f"{name}/{_SHARD}"))
            files = self._read_description(description, manifest)
        for file, description_of_file in files.items():
            with self._naming(file):
                self.files[file] = ArrayFile.from_dict(description_of_file)
        self._check_files(manifest)
        self.checksum = json_checksum(description)
        if manifest.shards is not None and (number >= len(manifest.shards) or self.checksum != manifest.shards[number]):
            raise self._damage(_SHARD, "it is not the one that the manifest names")
        if self.n_bytes > size + _MAX_MISSING_BYTES:
            raise self._damage(_SHARD, f"it promises {self.n_bytes} bytes, but its files have {size}")

    @property
    def n_bytes(self) -> int:
        """Bytes of its arrays."""
        return sum(file.n_bytes for file in self.files.values())

    def has(self, name: str) -> bool:
        return name in self.files

    def open(self, name: str) -> NDArray[Any]:
        """Memory-map a file, after comparing it with its checksum."""
        key = (self.number, name)
        array = self._open_arrays.get(key)
        if array is None:
            described = self.files.get(name)
            if described is None:
                raise self._damage(name, "the shard has no such file")
            try:
                with (
                    self._naming(name),
                    self.folder.open(f"{self.name}/{name}", described.n_bytes + MAX_HEADER_BYTES) as file,
                ):
                    array = map_array(file, described)
                    self._check(name, array, os.fstat(file.fileno()))
            except ValueError:
                self._check_in_place()
                raise
            self._open_arrays.add(key, array)
        return array

    def read(self, name: str, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Copy rows of a file."""
        array = self.open(name)
        values = array[rows]
        self._open_arrays.count_rows(array, rows)
        return values

    def verify(self, name: str) -> None:
        """Read a file again and compare it with its checksum."""
        self._open_arrays.drop((self.number, name))
        self._checked.pop(name, None)
        self.open(name)

    def _check(self, name: str, array: NDArray[Any], status: os.stat_result) -> None:
        """Compare a file with its checksum, unless this was done before and the file is the same."""
        stamp = (status.st_ino, status.st_mtime_ns)
        if self._checked.get(name) != stamp:
            if _checksum(array) != self.files[name].crc32:
                raise ValueError("its checksum differs")
            self._checked[name] = stamp

    def _check_in_place(self) -> None:
        """Raise an error if the cache was deleted or replaced. A missing file is not damage then."""
        path = str(self.folder.path)
        try:
            shards = read_manifest(self.folder).shards
            if shards is not None:
                same = self.checksum in shards[self.number : self.number + 1]
            else:  # rows are being added
                same = self.checksum == json_checksum(parse_json(self.folder.read(f"{self.name}/{_SHARD}")))
        except FileNotFoundError as error:
            if MANIFEST not in str(error):
                return
            raise FileNotFoundError(
                f"the cache {path!r} is not there any more. Open it with FeatureCache where it is now."
            ) from None
        except ValueError:
            return
        if not same:
            raise ValueError(f"another cache is at {path!r} now. Open it with FeatureCache again.")

    def _read_description(self, description: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
        number = check_count("number", description.get("number"))
        if number != self.number:
            raise ValueError(f"it says that it is shard {number}")
        if description.get("cache") != manifest.fingerprint:
            raise ValueError("it belongs to another cache")
        self.n_rows = check_count("n_rows", description.get("n_rows"))
        files = description.get("files")
        if not isinstance(files, dict):
            raise ValueError("it names no files")
        strange = sorted(set(files) - {*manifest.blocks, LABELS, INPUTS})
        if strange:
            raise ValueError(f"it names {strange[0]!r}, which is no file of this cache")
        return files

    def _check_files(self, manifest: Manifest) -> None:
        for name, width in manifest.blocks.items():
            with self._naming(name):
                if not self.has(name):
                    raise ValueError("the shard has no such file")
                file = self.files[name]
                if file.shape != (self.n_rows, width) or file.dtype.newbyteorder("=") != manifest.dtype:
                    raise ValueError(f"shape {file.shape} and dtype {file.dtype} do not fit the cache")
        for name in filter(self.has, (LABELS, INPUTS)):
            with self._naming(name):
                if self.files[name].shape != (self.n_rows,):
                    raise ValueError(f"shape {self.files[name].shape} does not fit {self.n_rows} rows")

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Name the damaged file and its shard."""
        try:
            yield
        except (ValueError, FileNotFoundError, IsADirectoryError) as error:
            raise self._damage(name, str(error)) from error

    def _damage(self, name: str, reason: str) -> ValueError:
        return ValueError(
            f"the shard {os.path.join(self.folder.path, self.name)!r} is damaged: {name}: {reason}. Delete that shard "
            "and all later ones, and extract again to replace them."
        )


class ShardWriter:
    """A shard being written: one growing .npy file for each block.

    `path` is the folder of the cache, and `cache` its fingerprint, which the shard names.
    """

    def __init__(self, path: Path, number: int, dtype: np.dtype, cache: str) -> None:
        self._path = path
        self._folder = path / f"{UNFINISHED}{number:05d}"
        self._folder.mkdir(exist_ok=True)
        self._number = number
        self._dtype = dtype
        self._cache = cache
        self._files: dict[str, _GrowingArray] = {}
        self._taken: dict[str, ArrayFile] = {}
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._is_whole = True
        self.n_rows = 0

    def append(self, blocks: dict[str, NDArray[Any]], columns: dict[str, NDArray[Any]]) -> None:
        n_rows = {len(block) for block in (*blocks.values(), *columns.values())}
        if len(n_rows) != 1:
            raise ValueError(f"the exits and labels of a batch have different numbers of rows: {sorted(n_rows)}.")
        # Nothing is written before everything is found right, so that a refused batch leaves no trace.
        stored = {name: _to_storage(block, self._dtype, name) for name, block in blocks.items()}
        self._begin_change()
        for name, block in stored.items():
            if name not in self._files:
                self._files[name] = _GrowingArray(self._folder / name, block.shape[1], self._dtype)
            self._files[name].append(block)
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column)
        self.n_rows += n_rows.pop()
        self._is_whole = True

    def take(self, shard: Shard, source: Path) -> None:
        """Fill the shard with the files of another, from its folder."""
        self._begin_change()
        for name in shard.files:
            copy_file(source / name, self._folder / name)
        self._taken = shard.files
        self.n_rows = shard.n_rows
        self._is_whole = True

    def close(self) -> int:
        """Complete the shard, and return the checksum of its description."""
        self._begin_change()
        files = self._taken | {name: file.close() for name, file in self._files.items()}
        for name, parts in self._columns.items():
            column = np.concatenate(parts)
            np.save(self._folder / name, column, allow_pickle=False)
            files[name] = ArrayFile(column.shape, column.dtype, _checksum(column))
        description: dict[str, Any] = {
            "number": self._number,
            "n_rows": self.n_rows,
            "cache": self._cache,
            "files": {name: file.to_dict() for name, file in files.items()},
        }
        (self._folder / _SHARD).write_bytes(dump_json(description))
        # The name of a complete shard must not reach the disk before its content.
        sync_files(self._folder / name for name in (*files, _SHARD))
        sync_folder(self._folder)
        self._folder.rename(self._path / f"shard-{self._number:05d}")
        sync_folder(self._path)
        return json_checksum(description)

    def discard(self) -> None:
        for file in self._files.values():
            file.abandon()
        with suppress(OSError):  # it may have become a complete shard; what is left is removed by the next writer
            shutil.rmtree(self._folder)

    def _begin_change(self) -> None:
        """Raise a RuntimeError if an earlier change did not finish."""
        if not self._is_whole:
            raise RuntimeError(
                f"writing into {str(self._path)!r} was interrupted in the middle of a shard. Open another CacheWriter "
                "to go on after the complete shards."
            )
        self._is_whole = False


class _GrowingArray:
    """A two-dimensional .npy file that grows by rows; its header is corrected at the end."""

    def __init__(self, path: Path, width: int, dtype: np.dtype) -> None:
        self._file: BinaryIO = path.open("wb")
        self._width = width
        self._dtype = dtype
        self._n_rows = 0
        self._crc32 = 0
        self._write_header()
        self._data_start = self._sync_begun = self._file.tell()

    def append(self, block: NDArray[Any]) -> None:
        data = bytes_of(block)
        self._file.write(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._n_rows += len(block)
        end = self._file.tell()
        if end - self._sync_begun >= _SYNCED_BYTES:
            begin_sync(self._file, self._sync_begun, end)
            self._sync_begun = end

    def close(self) -> ArrayFile:
        self._file.seek(0)
        self._write_header()
        # NumPy pads headers so that the first dimension can grow in place.
        assert self._file.tell() == self._data_start
        self._file.close()
        return ArrayFile((self._n_rows, self._width), self._dtype, self._crc32)

    def abandon(self) -> None:
        # What is still to be written has no place on a disk that is full.
        with suppress(OSError):
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


def _to_storage(block: NDArray[Any], dtype: np.dtype, name: str) -> NDArray[Any]:
    if block.dtype == dtype:
        return block
    if block.dtype.kind not in "biuf":
        raise ValueError(f"{name.removesuffix('.npy')} has dtype {block.dtype}; give real numbers.")
    with np.errstate(over="ignore"):
        stored = _convert(block, dtype)
        # If any value is too large, then the largest or the smallest is: to look for infinities in all takes longer.
        extremes = np.array([block.min(), block.max()]).astype(dtype) if block.size else np.empty(0)
    if not np.isfinite(extremes).all() and (too_large := np.isinf(stored) & np.isfinite(block)).any():
        cure = "extract with dtype='float32'" if dtype == np.float16 else "scale them down"
        largest = np.abs(block[too_large]).max()
        raise ValueError(f"{name.removesuffix('.npy')} has values up to {largest:.3g}, too large for {dtype}; {cure}.")
    return stored


def _convert(block: NDArray[Any], dtype: np.dtype) -> NDArray[Any]:
    torch = sys.modules.get("torch")
    is_to_half = dtype == np.float16 and block.dtype == np.float32
    if torch and is_to_half and block.flags.c_contiguous and block.flags.writeable:
        # The same numbers in a fraction of the time: torch uses the processor's own instructions for this.
        return torch.from_numpy(block).half().numpy()
    return block.astype(dtype)


def open_shards(folder: Folder, manifest: Manifest, local_bytes: int = 0) -> list[Shard]:
    """The shards of a cache, in order."""
    sizes = folder.sizes()
    # What is mapped from a disk of this machine takes no place on it.
    open_arrays = OpenArrays(_MAX_OPEN_ARRAYS, sys.maxsize if isinstance(folder, LocalFolder) else local_bytes)
    names = sorted(sizes, key=lambda name: (len(name), name))
    return [
        Shard(folder, name, number, manifest, sum(sizes[name].values()), open_arrays)
        for number, name in enumerate(names)
    ]
