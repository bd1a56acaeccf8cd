"""How many arrays of a cache are open at a time."""

import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from caches import EXPECTED, values, write_cache

import skexit.cache._shards
from skexit import ExitLayout, FeatureCache
from skexit.cache import CacheWriter
from skexit.cache._open_arrays import OpenArrays


class TestOpenArrays:
    def keys(self, arrays, keys="abcd"):
        return "".join(key for key in keys if arrays.get(key) is not None)

    def test_count(self):
        arrays = OpenArrays(2, 1000)
        for key in "abc":
            arrays.add(key, np.zeros(1))
        assert self.keys(arrays) == "bc"

    def test_bytes(self):
        arrays = OpenArrays(10, 100)
        for key in "abc":
            arrays.add(key, np.zeros(5))
        assert self.keys(arrays) == "bc"
        arrays.add("d", np.zeros(100))
        assert self.keys(arrays) == "d"
        arrays.add("a", np.zeros(5))
        assert self.keys(arrays) == "a"

    def test_what_is_used_stays(self):
        arrays = OpenArrays(2, 1000)
        arrays.add("a", np.zeros(1))
        arrays.add("b", np.zeros(1))
        arrays.get("a")
        arrays.add("c", np.zeros(1))
        assert self.keys(arrays) == "ac"

    def test_the_same_key_again(self):
        arrays = OpenArrays(10, 100)
        for _ in range(3):
            arrays.add("a", np.zeros(5))
        arrays.add("b", np.zeros(5))
        assert self.keys(arrays) == "ab"

    def test_drop(self):
        arrays = OpenArrays(10, 100)
        arrays.add("a", np.zeros(10))
        arrays.drop("a")
        arrays.drop("b")
        for key in "bc":
            arrays.add(key, np.zeros(5))
        assert self.keys(arrays) == "bc"


def mapped_megabytes():
    """What this process has in memory of files (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssFile:\s+(\d+) kB", status)[1]) / 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is not told")
@pytest.mark.parametrize("order", ["forwards", "random"])
def test_pages_that_were_read_are_given_back(tmp_path, order):
    np.save(tmp_path / "file.npy", np.arange(2**23, dtype=np.float64).reshape(-1, 128))  # 64 MiB in rows of 1 KiB
    rows = np.arange(2**16)
    if order == "random":
        rows = np.random.default_rng(0).permutation(rows)

    def peak(max_resident):
        arrays = OpenArrays(10, 2**40, max_resident)
        arrays.add("file", np.load(tmp_path / "file.npy", mmap_mode="r"))
        before = largest = mapped_megabytes()
        for part in np.split(rows, 256):
            array = arrays.get("file")
            np.testing.assert_array_equal(array[part, 0], part * 128)
            arrays.count_rows(array, part)
            largest = max(largest, mapped_megabytes())
        return largest - before

    assert peak(2**40) > 50
    assert peak(2**22) < 32


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is not told")
def test_pages_of_a_cache_are_given_back(tmp_path, monkeypatch):
    """Those that were compared with checksums, and those that were read afterwards, of all files that are open."""
    monkeypatch.setattr(skexit.cache._shards, "OpenArrays", partial(OpenArrays, max_resident=2**22))
    layout = ExitLayout([0, 0], [1024, 1])
    with CacheWriter(tmp_path, layout, origin={}, shard_rows=2048) as writer:
        for _ in range(8):  # shards of 8 MiB
            writer.append([None, None], [np.zeros((2048, 1024), np.float32), np.zeros((2048, 1), np.float32)])
    cache = FeatureCache(tmp_path)
    before = mapped_megabytes()
    cache.verify()
    assert mapped_megabytes() - before < 32
    for rows in np.random.default_rng(0).permutation(cache.n_rows).reshape(64, -1):
        cache.X.features(0, rows)
        assert mapped_megabytes() - before < 32


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are not listed")
def test_a_cache_of_more_files_than_may_be_open(tmp_path, monkeypatch):
    """A system allows about a thousand; the cache of a large data set has more, each checked once."""
    monkeypatch.setattr(skexit.cache._shards, "_MAX_OPEN_ARRAYS", 4)
    checksum, checked = skexit.cache._shards._checksum, []
    monkeypatch.setattr(skexit.cache._shards, "_checksum", lambda array: checked.append(0) or checksum(array))
    X = write_cache(tmp_path, shard_rows=2).X
    before = len(os.listdir("/proc/self/fd"))
    for rows in np.random.default_rng(0).integers(len(X), size=(10, 5)):
        np.testing.assert_array_equal(np.asarray(X[rows]), EXPECTED[rows])
        assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert len(checked) == 15


@pytest.mark.parametrize("same", ["file", "time"])
def test_a_file_that_was_replaced_is_checked_again(tmp_path, monkeypatch, same):
    monkeypatch.setattr(skexit.cache._shards, "_MAX_OPEN_ARRAYS", 1)
    X = write_cache(tmp_path).X
    X.features(0)
    file = tmp_path / "shard-00000" / "exit0.features.npy"
    written = file.stat().st_mtime_ns
    other = tmp_path / "other.npy"
    np.save(other, values(seed=1)[1][0][:4])
    if same == "file":
        file.write_bytes(other.read_bytes())
        os.utime(file, ns=(written + 10**9,) * 2)
    else:
        os.utime(other, ns=(written,) * 2)
        other.replace(file)
    with pytest.raises(ValueError, match="its checksum differs"):
        X.features(0)
