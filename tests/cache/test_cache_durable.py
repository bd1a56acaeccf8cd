"""A shard is on the disk before it has the name of a complete one, and a manifest before it replaces another."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from caches import LAYOUT, N_ROWS, ORIGIN, append_rows, write_cache

from skexit import FeatureCache
from skexit.cache import CacheWriter


@pytest.fixture
def events(monkeypatch):
    """Files that were synced, by number, and the names that were given, with what was in them."""
    events = []
    rename, replace = Path.rename, os.replace

    def contents(path):
        return {file.stat().st_ino for file in (path, *path.rglob("*"))}

    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(("sync", os.fstat(descriptor).st_ino)))
    monkeypatch.setattr(
        Path, "rename", lambda path, target: events.append((target.name, contents(path))) or rename(path, target)
    )
    monkeypatch.setattr(
        os, "replace", lambda path, target: events.append((target.name, contents(path))) or replace(path, target)
    )
    return events


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="the system does not sync folders")
def test_what_gets_a_name_is_synced_before_and_the_name_after(tmp_path, events):
    write_cache(tmp_path, y=np.arange(N_ROWS))
    folder = tmp_path.stat().st_ino
    names = [name for name, _ in events if name != "sync"]
    assert names == ["manifest.json", "shard-00000", "shard-00001", "shard-00002", "manifest.json"]
    for number, (name, contents) in enumerate(events):
        if name != "sync":
            synced = {file for event, file in events[:number] if event == "sync"}
            assert contents <= synced, name
            assert len(contents) == (1 if name == "manifest.json" else 6), name
            assert events[number + 1] == ("sync", folder)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system cannot be asked to begin")
def test_the_disk_begins_before_a_shard_is_complete(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: begun.append((start, length)))
    monkeypatch.setattr("skexit.cache._shards._SYNCED_BYTES", 40)
    layout = LAYOUT.replace(n_logits=[2, 2], n_features=[0, 0])
    with CacheWriter(tmp_path, layout, origin=ORIGIN) as writer:
        for _ in range(8):  # of a row of 8 bytes in each of two files
            writer.append([np.zeros((1, 2))] * 2, [None, None])
    header = begun[0][0]
    assert begun == [(header, 40)] * 2


@pytest.mark.parametrize("kind", [stat.S_ISREG, stat.S_ISDIR])
def test_an_error_of_the_disk_leaves_no_shard(tmp_path, monkeypatch, kind):
    writer = CacheWriter(tmp_path, LAYOUT, origin=ORIGIN)
    append_rows(writer)

    def fail(descriptor):
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        writer.__exit__(None, None, None)
    cache = FeatureCache(tmp_path, allow_partial=True)
    assert (cache.n_rows, cache.complete) == (0, False)
    assert os.listdir(tmp_path) == ["manifest.json"]
