"""Files that are replaced in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_folder(path: Path, parameter: str) -> None:
    """Raise an IsADirectoryError if there is a folder where a file is to be written."""
    if path.is_dir():
        raise IsADirectoryError(
            f"{parameter}={str(path)!r} is a folder; give the name of a file, such as {str(path / 'name')!r}."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces `path` at the end, or is deleted if an error is raised.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "numbers.txt")
    ...     with replacing(path) as beside:
    ...         _ = beside.write_text("1 2 3")
    ...     os.listdir(folder)
    ['numbers.txt']
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
