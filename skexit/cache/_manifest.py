"""The manifest of a cache: the content of its shards, and their origin."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skexit.cache._folders import Folder
from skexit.cache._json_files import FORMAT_VERSION, MAX_JSON_BYTES, check_count, dump_json, parse_json
from skexit.data import ExitLayout

MANIFEST = "manifest.json"
DTYPES = ("float32", "float16")

_MAX_COLUMNS = 2**31
_MAX_ROWS = 2**48
#: What a checksum of a shard takes in a manifest, at most.
_CHECKSUM_BYTES = 16
#: The classes of a layout become an array in which each takes the length of the longest.
_MAX_CLASS_CHARACTERS = 2**26
#: Characters that a message shows of a value.
_EXCERPT = 60


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest; `n_rows` and `shards` are those of a complete cache.

    `origin` identifies the model, the settings of the extraction and the data. The shards name `fingerprint` as the
    cache that they belong to; it is empty until a writer begins. `shards` are the checksums of the shards'
    descriptions, None until the cache is complete.
    """

    layout: ExitLayout
    dtype: np.dtype
    origin: dict[str, str]
    complete: bool = False
    n_rows: int = 0
    fingerprint: str = ""
    shards: tuple[int, ...] | None = None

    @property
    def blocks(self) -> dict[str, int]:
        """Names of the array files of a shard, and their widths."""
        return {
            block_name(k, part): width
            for k in range(self.layout.n_exits)
            for part, width in (("logits", self.layout.n_logits[k]), ("features", self.layout.n_features[k]))
            if width
        }

    @property
    def identity(self) -> dict[str, Any]:
        """Entries that must be equal in two caches if shards of one may be added to the other."""
        return {"origin": self.origin, "dtype": self.dtype.name, "layout": self.layout.to_dict()}

    def differing(self, other: Manifest) -> dict[str, str]:
        """Entries of the identity that differ in another cache: their names, and both values."""
        dtype = differences({"dtype": self.dtype.name}, {"dtype": other.dtype.name})
        of_layout = differences(self.layout.to_dict(), other.layout.to_dict())
        if "costs" in of_layout:  # of which others of the network or its heads follow
            of_layout = {name: text for name, text in of_layout.items() if name not in ("head_costs", "network_cost")}
        of_layout = {f"{name} of the layout": text for name, text in of_layout.items()}
        return dict(sorted((differences(self.origin, other.origin) | dtype | of_layout).items()))

    def to_dict(self) -> dict[str, Any]:
        """The manifest as values that JSON can store."""
        return {
            "format": FORMAT_VERSION,
            "complete": self.complete,
            "n_rows": self.n_rows,
            "dtype": self.dtype.name,
            "origin": self.origin,
            "layout": self.layout.to_dict(),
            "fingerprint": self.fingerprint,
            "shards": None if self.shards is None else list(self.shards),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Manifest:
        """The manifest of a dict from `to_dict`. Raises a ValueError that names the fault of any other dict."""
        missing = {"complete", "n_rows", "dtype", "origin", "layout", "fingerprint", "shards"} - set(content)
        if missing:
            raise ValueError(f"it lacks {sorted(missing)}")
        if not isinstance(content["complete"], bool):
            raise ValueError("complete is neither true nor false")
        if content["dtype"] not in DTYPES:
            raise ValueError(f"its dtype is none of {list(DTYPES)}")
        if not isinstance(content["fingerprint"], str):
            raise ValueError("its fingerprint is no string")
        return cls(
            layout=_read_layout(content["layout"]),
            dtype=np.dtype(content["dtype"]),
            origin=_read_origin(content["origin"]),
            complete=content["complete"],
            n_rows=check_count("n_rows", content["n_rows"], limit=_MAX_ROWS),
            fingerprint=content["fingerprint"],
            shards=_read_checksums(content["shards"]),
        )


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of the cache in a folder."""
    try:
        return Manifest.from_dict(_read_json(folder))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no cache at {str(folder.path)!r}: it has no {MANIFEST}. Give the folder of an extraction."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"the manifest of the cache {str(folder.path)!r} cannot be used: {error}. Restore it from a copy, or "
            "extract into another folder."
        ) from error


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    """Entries in which two dicts differ: their names, and both values in short."""
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    return {name: " and ".join(_excerpts(repr(one.get(name)), repr(other.get(name)))) for name in names}


def listed(differing: dict[str, str]) -> str:
    """Differences in a sentence."""
    return ", ".join(f"{name} ({values})" for name, values in differing.items())


def _excerpts(*texts: str) -> list[str]:
    """The parts of long texts around the place where they begin to differ."""
    n_alike = next((i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), 0)
    start = max(n_alike - _EXCERPT // 3, 0) if max(map(len, texts)) > _EXCERPT else 0
    ends = ["..." if len(text) > start + _EXCERPT else "" for text in texts]
    begin = "..." if start else ""
    return [f"{begin}{text[start : start + _EXCERPT]}{end}" for text, end in zip(texts, ends, strict=True)]


def check_readable(manifest: Manifest) -> None:
    """Raise a ValueError if a manifest, once it is written, would be refused or read as another."""
    for name, value in manifest.origin.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"origin={{{name!r}: {value!r}}} must have strings as names and values; give str(value).")
    try:
        longest = replace(manifest, n_rows=_MAX_ROWS - 1, fingerprint="f" * 16, shards=())
        found = Manifest.from_dict(parse_json(dump_json(longest.to_dict())))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the layout and origin of the cache could not be read again: {error}. Give short strings as origin, and "
            "finite numbers or strings as classes."
        ) from error
    if found.identity != manifest.identity:
        raise ValueError("classes and cost_unit of the layout must be strings or numbers that JSON keeps as they are.")


def make_fingerprint(manifest: Manifest) -> str:
    """Sixteen hexadecimal digits that identify the origin, layout and dtype of a cache."""
    return hashlib.sha256(json.dumps(manifest.identity, sort_keys=True).encode()).hexdigest()[:16]


def block_name(k: int, part: str) -> str:
    """Name of the file with the ``"logits"`` or ``"features"`` of exit `k`."""
    return f"exit{k}.{part}.npy"


def _read_json(folder: Folder) -> dict[str, Any]:
    """The content of the manifest in a folder; with many shards, it may be longer than other JSON files."""
    text = folder.read(MANIFEST)
    n_more = 0
    if len(text) > MAX_JSON_BYTES:
        n_more = _CHECKSUM_BYTES * len(folder.sizes())
        text = folder.read(MANIFEST, n_more)
    return parse_json(text, n_more)


def _read_origin(origin: Any) -> dict[str, str]:
    if not isinstance(origin, dict) or not all(isinstance(value, str) for value in origin.values()):
        raise ValueError("its origin is no object of strings")
    return origin


def _read_checksums(checksums: Any) -> tuple[int, ...] | None:
    if checksums is None:
        return None
    if not isinstance(checksums, list):
        raise ValueError("its shards are no list of checksums")
    return tuple(check_count("checksum", checksum, limit=2**32) for checksum in checksums)


def _read_layout(description: Any) -> ExitLayout:
    if not isinstance(description, dict):
        raise ValueError("its layout is no object")
    for name in ("n_logits", "n_features"):
        widths = description.get(name)
        if not isinstance(widths, list):
            raise ValueError(f"{name} of its layout is no list")
        if sum(check_count(name, width) for width in widths) >= _MAX_COLUMNS:
            raise ValueError(f"{name} of its layout make more than {_MAX_COLUMNS} columns")
    _check_classes(description.get("classes"))
    unit = description.get("cost_unit")
    if not (unit is None or isinstance(unit, str)):
        raise ValueError("cost_unit of its layout is no string")
    for name, costs in (("costs", description.get("costs")), ("head_costs", description.get("head_costs", []))):
        if not isinstance(costs, list) or not all(isinstance(cost, int | float) for cost in costs):
            raise ValueError(f"{name} of its layout are no list of numbers")
    if not isinstance(description.get("network_cost", 1), int | float):
        raise ValueError("network_cost of its layout is no number")
    for name in ("feature_maps", "exit_names", "pools"):
        if not isinstance(description.get(name, []), list):
            raise ValueError(f"{name} of its layout are no list")
    try:
        return ExitLayout.from_dict(description)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"its layout cannot be used: {error}") from error


def _check_classes(classes: Any) -> None:
    if classes is None:
        return
    if not isinstance(classes, list):
        raise ValueError("classes of its layout are no list")
    named = all(isinstance(label, str) for label in classes)
    if not named and not all(isinstance(label, int | float) and abs(label) < 2**63 for label in classes):
        raise ValueError("classes of its layout are neither all strings nor all numbers")
    if named and len(classes) * max(map(len, classes), default=0) > _MAX_CLASS_CHARACTERS:
        raise ValueError("classes of its layout are too long")
