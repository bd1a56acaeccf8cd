"""Array files of a cache: their descriptions, and memory-mapping those that match."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skexit.cache._json_files import check_count

#: NumPy reads no longer header.
MAX_HEADER_BYTES = 10_000


@dataclass(frozen=True)
class ArrayFile:
    """The description of a file of a shard; the checksum is that of its bytes in C order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    crc32: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """The description as values that JSON can store."""
        return {"shape": list(self.shape), "dtype": self.dtype.str, "crc32": self.crc32}

    @classmethod
    def from_dict(cls, description: Any) -> ArrayFile:
        """The description of a dict from `to_dict`. Raises a ValueError that names the fault of any other dict."""
        if not isinstance(description, dict) or not isinstance(description.get("shape"), list):
            raise ValueError("its description has no shape")
        shape = tuple(check_count("length", length) for length in description["shape"])
        name = description.get("dtype")
        if not isinstance(name, str) or not re.fullmatch(r"[<>|][biufU][0-9]{1,8}", name):
            raise ValueError("its dtype is none of a cache")
        try:
            dtype = np.dtype(name)
        except TypeError as error:
            raise ValueError(str(error)) from error
        return cls(shape, dtype, check_count("crc32", description.get("crc32"), limit=2**32))


def map_array(file: BinaryIO, described: ArrayFile) -> NDArray[Any]:
    """Memory-map a .npy file. Raises a ValueError if it differs from its description. The file may be closed then."""
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"it has version {version} of NumPy's format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # whatever a damaged header makes of NumPy's parser
        raise ValueError(f"it has no header of an array: {error}") from error
    if (shape, dtype, fortran_order) != (described.shape, described.dtype, False):
        raise ValueError(f"it has shape {shape} and dtype {dtype}")
    start = file.tell()
    n_bytes = file.seek(0, 2) - start
    if n_bytes != described.n_bytes:
        raise ValueError(f"it has {n_bytes} bytes of {described.n_bytes}")
    if n_bytes == 0:
        return np.empty(shape, dtype)  # nothing cannot be mapped
    return np.memmap(file, dtype, "r", start, shape)


def checksum(array: NDArray[Any]) -> int:
    """Checksum of an array's bytes in C order."""
    return zlib.crc32(bytes_of(array))


def bytes_of(array: NDArray[Any]) -> memoryview:
    """An array's bytes in C order."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1).data
