"""Where the files of a cache are read: a folder of this machine, or one behind a URL."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from skexit.cache._json_files import MAX_JSON_BYTES
from skexit.utils._optional import optional_import

_CHUNK_BYTES = 2**20


class Folder(Protocol):
    """Names of files are relative, with ``/`` between the folder of a shard and a file in it."""

    @property
    def path(self) -> Path | str:
        """Where it is."""

    def sizes(self) -> dict[str, dict[str, int]]:
        """Bytes of each file, by folder of a shard and name."""

    def read(self, name: str, n_more: int = 0) -> bytes:
        """Content of a small file, up to `n_more` bytes above the limit of a cache's JSON files."""

    def open(self, name: str, max_bytes: int) -> BinaryIO:
        """A local file, which can be memory-mapped. Raises a ValueError if it has more bytes than `max_bytes`."""


class LocalFolder:
    """A local folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = absolute(path)

    def sizes(self) -> dict[str, dict[str, int]]:
        return {
            folder.name: {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
            for folder in self.path.glob("shard-*")
            if folder.is_dir()
        }

    def read(self, name: str, n_more: int = 0) -> bytes:
        with self._open(name) as file:
            return file.read(MAX_JSON_BYTES + n_more + 1)

    def open(self, name: str, max_bytes: int) -> BinaryIO:
        file = self._open(name)
        if os.fstat(file.fileno()).st_size > max_bytes:
            file.close()
            raise ValueError("it is too long")
        return file

    def _open(self, name: str) -> BinaryIO:
        path = self.path / name
        # Opening a pipe would wait for ever, and a device may never end.
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        return path.open("rb")


class RemoteFolder:
    """A folder behind a URL, read through fsspec.

    Arrays are fetched, a whole file at a time, into files without a name in the folder for temporary files. The system
    removes them when they are closed, at the latest when the process ends, however it ends.
    """

    def __init__(self, url: str) -> None:
        with optional_import(f"reading {url!r} needs", "remote"):
            from fsspec.core import url_to_fs
        self.path = url
        self._system, self._root = url_to_fs(url)

    def sizes(self) -> dict[str, dict[str, int]]:
        self._system.invalidate_cache()  # what was listed before may have grown
        sizes: dict[str, dict[str, int]] = {}
        for path, entry in self._system.find(self._root, maxdepth=2, detail=True).items():
            folder, _, name = path.removeprefix(self._root).strip("/").partition("/")
            if name and folder.startswith("shard-"):
                sizes.setdefault(folder, {})[name] = entry["size"] or 0
        return sizes

    def read(self, name: str, n_more: int = 0) -> bytes:
        with self._open(name) as file:
            return file.read(MAX_JSON_BYTES + n_more + 1)

    def open(self, name: str, max_bytes: int) -> BinaryIO:
        fetched: Any = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            with self._open(name) as source:
                while chunk := source.read(_CHUNK_BYTES):
                    fetched.write(chunk)
                    if fetched.tell() > max_bytes:
                        raise ValueError("it is too long")
            fetched.seek(0)
        except BaseException:
            fetched.close()
            raise
        return fetched

    def _open(self, name: str) -> Any:
        try:
            return self._system.open(f"{self._root.rstrip('/')}/{name}", "rb")
        except NotADirectoryError as error:
            raise FileNotFoundError("there is no such file") from error


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL such as ``s3://bucket/cache``."""
    return "://" in os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> Path:
    """The absolute path; ``~`` is the user's home."""
    return Path(os.path.expanduser(path)).absolute()


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """The folder at a path or URL."""
    return RemoteFolder(str(path)) if is_url(path) else LocalFolder(path)


def copy_file(source: Path, target: Path) -> None:
    """A hard link to a file, or a copy of it if the file systems differ."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
