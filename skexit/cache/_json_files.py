"""JSON files with a checksum: replaced in one step, and checked when they are read."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, NoReturn

from skexit.cache._durable import sync_files, sync_folder

FORMAT_VERSION = 1

#: No file of a cache that holds JSON is longer, but for the checksums of shards: what is parsed takes many times the
#: memory of its text.
MAX_JSON_BYTES = 16 * 2**20


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file in one step, and add a checksum."""
    temporary = path.with_name(temporary_name(path.name))
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(dump_json(content))
        sync_files([temporary])
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def dump_json(content: dict[str, Any]) -> bytes:
    """JSON with a checksum, for `parse_json`."""
    return json.dumps(content | {"crc32": json_checksum(content)}, indent=1).encode()


def parse_json(text: bytes, n_more: int = 0) -> dict[str, Any]:
    """Parse JSON of `dump_json`, of up to `n_more` bytes above the limit. Raises a ValueError that names a fault."""
    if len(text) > MAX_JSON_BYTES + n_more:
        beside = f" beside {n_more} for its shards" if n_more else ""
        raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes{beside}")
    try:
        content = json.loads(text.decode(), parse_constant=_refuse_constant)
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        _check_version(content.get("format", FORMAT_VERSION))
        checksum = content.pop("crc32", None)
        if checksum != json_checksum(content):
            raise ValueError("its checksum differs")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return content


def json_checksum(content: dict[str, Any]) -> int:
    """Checksum of the values in a file, independent of their formatting."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def check_count(name: str, value: Any, *, limit: int = 2**48) -> int:
    """The value, if it is an int from 0 up to the limit."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise ValueError(f"{name}={str(value)[:40]} is no count")
    return value


def temporary_name(name: str) -> str:
    """Name under which a file is written before it replaces another."""
    return f"{name}.tmp"


def _check_version(version: Any) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError("its format is no version number")
    if version > FORMAT_VERSION:
        raise ValueError(f"it has format {version}, written by a newer skexit; upgrade to read it")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON")
