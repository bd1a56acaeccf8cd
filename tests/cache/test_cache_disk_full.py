"""A disk that is full: complete shards are kept, the error is clear, and writing goes on when there is room."""

import errno
import os
import signal
import subprocess
import traceback

import numpy as np
import pytest
from caches import LAYOUT, ORIGIN, append_rows, as_array, take, values

from skexit import FeatureCache
from skexit.cache import CacheWriter

N_ROWS = 40_000  # of 24 bytes: about a megabyte
SHARD_ROWS = 5_000


def write_all(path):
    with CacheWriter(path, LAYOUT, origin=ORIGIN, shard_rows=SHARD_ROWS) as writer:
        append_rows(writer, N_ROWS, y=np.arange(N_ROWS) % 2, batch_rows=1_000)


def check_kept_and_continued(path, make_room):
    kept = FeatureCache(path, allow_partial=True)
    n_kept = kept.n_rows
    expected = as_array(*values(N_ROWS))
    assert 0 < n_kept < N_ROWS
    assert n_kept % SHARD_ROWS == 0
    kept.verify()
    np.testing.assert_array_equal(np.asarray(kept.X), expected[:n_kept])
    assert not list(path.glob("unfinished-*"))
    make_room()
    write_all(path)
    np.testing.assert_array_equal(np.asarray(FeatureCache(path).X), expected)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of memory with room for half of the rows; skipped where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True, timeout=10
        )
    except OSError:
        pytest.skip("there is no command to mount a file system")
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=10)


def test_a_small_file_system(small_disk):
    path = small_disk / "cache"
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_all(path)
    assert caught.value.errno == errno.ENOSPC
    report = "".join(traceback.format_exception(caught.value))
    assert "is full. Complete shards are kept: make room" in report

    def make_room():
        subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True, timeout=10)

    check_kept_and_continued(path, make_room)


def test_no_room_for_the_first_file(small_disk):
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
        file.write(bytes(2**20))
    with pytest.raises(OSError, match="No space left"):
        write_all(small_disk / "cache")
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True, timeout=10)
    write_all(small_disk / "cache")
    FeatureCache(small_disk / "cache").verify()


@pytest.fixture
def small_files():
    """The same without a file system of its own: files of 50 kB at most, until the fixture's value is called."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_may_not_grow(tmp_path, small_files):
    path = tmp_path / "cache"
    logits, features = values(N_ROWS)
    writer = CacheWriter(path, LAYOUT, origin=ORIGIN, shard_rows=4_000)
    writer.append(take(logits, slice(4_000)), take(features, slice(4_000)))  # files of 48 kB
    with pytest.raises(OSError, match="File too large"), writer:
        writer.append(take(logits, slice(4_000, N_ROWS)), take(features, slice(4_000, N_ROWS)))
    assert sorted(os.listdir(path)) == ["manifest.json", "shard-00000"]
    small_files()
    with CacheWriter(path, LAYOUT, origin=ORIGIN) as writer:
        assert writer.n_rows == 4_000
        append_rows(writer, N_ROWS, batch_rows=4_000)
    np.testing.assert_array_equal(np.asarray(FeatureCache(path).X), as_array(logits, features))
