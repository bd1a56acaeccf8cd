"""A folder of logits and features of each exit, in complete, checksummed shards.

Layout of the folder::

    manifest.json                layout, dtype and origin (model, settings, data); is it complete?
    shard-00000/shard.json       number of rows; shape, dtype and checksum of each file
    shard-00000/exit0.logits.npy
    shard-00000/exit0.features.npy
    ...
    shard-00000/y.npy            labels, when the loader gave them

A shard is written in a folder with another name, which is renamed when the shard is complete. So a shard is
either complete or absent. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from skexit.cache._folders import open_folder
from skexit.cache._json_files import json_checksum
from skexit.cache._manifest import block_name, read_manifest
from skexit.cache._shards import INPUTS, LABELS, Shard, open_shards
from skexit.cache._writer import CacheWriter as CacheWriter
from skexit.data import ExitArray, ExitLayout


class FeatureCache:
    """A cache of per-exit logits and features on disk.

    Written by :meth:`skexit.extraction.ExitExtractor.extract`. Each file is checked against its
    checksum when it is first read in a process.

    Parameters
    ----------
    path : str or path-like
        Folder of the cache, or a URL that fsspec knows: ``"s3://bucket/cache"`` (extra ``remote``). A relative path
        refers to the working directory at the time of opening, also if it changes later; ``~`` is the user's home.
    allow_partial : bool, default=False
        Open a cache whose extraction has not finished, with the rows that it has so far.
    local_bytes : int, default=16 * 2**30
        For a cache at a URL: how many bytes to store at a time in this process's folder for temporary files. Files are
        fetched whole when they are first read. The least recently used files are deleted first.

    Attributes
    ----------
    layout : ExitLayout
        Columns, classes and costs of the exits.
    dtype : numpy.dtype
        Type of the values that are read: float32 also if they are stored as float16.
    stored_dtype : numpy.dtype
        Type in which logits and features are stored.
    n_rows : int
        Number of rows.
    shards : list
        The shards, in the order of their rows.
    n_bytes : int
        Size of the stored arrays, in bytes.
    complete : bool
        Whether the extraction that wrote the cache came to its end.
    origin : dict of str to str
        What identifies the model, the settings of the extraction and the data.

    Raises
    ------
    FileNotFoundError
        If there is no cache at `path`, or none any more when rows are read.
    ValueError
        If the cache is not complete, comes from a newer version, or is damaged.
    ImportError
        If `path` is a URL, and what reads it is not installed.

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

    def __init__(
        self, path: str | os.PathLike[str], *, allow_partial: bool = False, local_bytes: int = 16 * 2**30
    ) -> None:
        folder = open_folder(path)
        self.path = folder.path
        self.allow_partial = allow_partial
        self.local_bytes = local_bytes
        manifest = read_manifest(folder)
        self.complete = manifest.complete
        if not self.complete and not allow_partial:
            raise ValueError(
                f"the extraction into {str(self.path)!r} has not finished: call extract() again to "
                "go on, or open the cache with allow_partial=True."
            )
        self.layout = manifest.layout
        self.dtype = np.dtype(np.float32)
        self.stored_dtype = manifest.dtype
        self.origin = manifest.origin
        self._keep_shards(open_shards(folder, manifest, local_bytes))
        self._y: NDArray[Any] | None = None
        self._inputs: NDArray[np.uint32] | None = None
        self._missing = ""
        if self.complete and self.n_rows != manifest.n_rows:
            self._missing = (
                f"the cache {str(self.path)!r} has {self.n_rows} rows but its manifest promises "
                f"{manifest.n_rows}: shard-{len(self.shards):05d} is missing. Extract again "
                "to replace it."
            )
            if not allow_partial:
                raise ValueError(self._missing)
            self.complete = False

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self._edges[-1])

    @property
    def exit_names(self) -> list[str] | None:
        """Names that the exits have in the network, None where the layout does not have them."""
        return self.X.exit_names

    @property
    def X(self) -> ExitArray:
        """All rows, to be read when they are asked for."""
        return ExitArray(self, self.layout)

    @property
    def y(self) -> NDArray[Any] | None:
        """Labels of all rows, None when the loader gave none."""
        # A cached_property of Python 3.11 holds a lock meanwhile, which a forked child would wait for.
        if self._y is None:
            self._y = self._read_labels()
        return self._y

    @property
    def inputs(self) -> NDArray[np.uint32] | None:
        """Checksums of the inputs that the rows were extracted from, None where they are not known."""
        if self._inputs is None and self.shards and all(shard.has(INPUTS) for shard in self.shards):
            self._inputs = np.concatenate([shard.open(INPUTS) for shard in self.shards])
        return self._inputs

    def _read_labels(self) -> NDArray[Any] | None:
        labelled = [shard.has(LABELS) for shard in self.shards]
        if not any(labelled):
            return None
        if not all(labelled):
            raise ValueError(
                f"some shards of the cache {str(self.path)!r} have labels and others none; delete it and extract again."
            )
        return np.concatenate([shard.open(LABELS) for shard in self.shards])

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
        name = block_name(k, part)
        if isinstance(rows, slice):
            rows = np.arange(self.n_rows)[rows]
        width = layout.n_logits[k] if part == "logits" else layout.n_features[k]
        out = np.empty((len(rows), width), dtype=self.dtype)
        if width:
            shard_of_row = np.searchsorted(self._edges, rows, side="right") - 1
            for number in np.unique(shard_of_row):
                here = np.flatnonzero(shard_of_row == number)
                out[here] = self.shards[number].read(name, rows[here] - self._edges[number])
        return out

    def verify(self, *, progress: bool = False) -> None:
        """Read every file and compare it with its checksum.

        Parameters
        ----------
        progress : bool, default=False
            Show a progress bar, if the output is a terminal.

        Raises
        ------
        ValueError
            If files are damaged, naming all of them and their shards, or shards of a cache that was complete are
            missing.
        """
        damages = [self._missing] if self._missing else []
        with tqdm(total=self.n_bytes, unit="B", unit_scale=True, disable=None if progress else True) as bar:
            for shard in self.shards:
                for name, file in shard.files.items():
                    try:
                        shard.verify(name)
                    except ValueError as error:
                        damages.append(str(error))
                    bar.update(file.n_bytes)
        if damages:
            raise ValueError("\n".join(damages))

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        state = "" if self.complete else ", not complete"
        return f"FeatureCache({str(self.path)!r}, {self.n_rows} rows, {self.layout.n_exits} exits{state})"

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "allow_partial": self.allow_partial,
            "local_bytes": self.local_bytes,
            "origin": self.origin,
            "n_shards": len(self.shards),
            "rows": self._checksum_of_rows(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]
            state["path"], allow_partial=state["allow_partial"], local_bytes=state["local_bytes"]
        )
        message = f"the cache at {str(self.path)!r} is not the one this array was taken from: "
        cure = "Put that back, or take X from FeatureCache again."
        if self.origin != state["origin"]:
            raise ValueError(f"{message}it was extracted from another model or with other settings. {cure}")
        self._keep_shards(self.shards[: state["n_shards"]])  # others may have been added since
        if self._checksum_of_rows() != state["rows"]:
            raise ValueError(f"{message}it has other rows. {cure}")

    def _keep_shards(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.n_bytes = sum(shard.n_bytes for shard in shards)
        self._edges = np.concatenate([[0], np.cumsum([shard.n_rows for shard in shards], dtype=np.int64)])

    def _checksum_of_rows(self) -> int:
        return json_checksum({"shards": [shard.checksum for shard in self.shards]})
