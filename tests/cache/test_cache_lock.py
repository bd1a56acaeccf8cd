"""One writer at a time: the second is refused, and a dead one is in nobody's way."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import caches
import numpy as np
import pytest
from caches import EXPECTED, LAYOUT, N_ROWS, ORIGIN, append_rows, take, values, write_cache

from skexit import FeatureCache
from skexit.cache import CacheWriter
from skexit.cache._lock import LOCK, FolderLock


def write_and_wait(path, connection):
    """What another process does: write a shard and a half, and go on when it is told to."""
    logits, features = values()
    with CacheWriter(path, LAYOUT, origin=ORIGIN, shard_rows=4) as writer:
        writer.append(take(logits, slice(4)), take(features, slice(4)))
        writer.append(take(logits, slice(4, 6)), take(features, slice(4, 6)))
        connection.send("waiting")
        connection.recv()
        append_rows(writer)


@pytest.fixture
def other(tmp_path):
    """Another process that writes into tmp_path, and the connection to it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skexit.extraction"])
    connection, theirs = context.Pipe()
    process = context.Process(target=write_and_wait, args=(tmp_path, theirs))
    process.start()
    assert connection.recv() == "waiting"
    yield process, connection
    process.kill()
    process.join()


def test_the_second_of_two_is_refused_and_the_first_undisturbed(tmp_path, other):
    process, connection = other
    with pytest.raises(RuntimeError, match=r"another process is writing into .*: wait until it has ended, or give"):
        CacheWriter(tmp_path, LAYOUT, origin=ORIGIN, shard_rows=4)
    connection.send("go on")
    process.join()
    assert process.exitcode == 0
    np.testing.assert_array_equal(np.asarray(FeatureCache(tmp_path).X), EXPECTED)
    assert not (tmp_path / LOCK).exists()


def test_readers_need_no_lock(tmp_path, other):
    cache = FeatureCache(tmp_path, allow_partial=True)
    np.testing.assert_array_equal(np.asarray(cache.X), EXPECTED[:4])


def test_a_killed_process_holds_no_lock(tmp_path, other):
    process, _ = other
    process.kill()
    process.join()
    assert (tmp_path / LOCK).exists()
    np.testing.assert_array_equal(np.asarray(write_cache(tmp_path).X), EXPECTED)
    assert not (tmp_path / LOCK).exists()


def test_a_process_killed_before_it_wrote_anything_leaves_an_empty_folder(tmp_path):
    (tmp_path / LOCK).touch()
    np.testing.assert_array_equal(np.asarray(write_cache(tmp_path).X), EXPECTED)


def test_two_writers_of_one_process(tmp_path):
    with CacheWriter(tmp_path, LAYOUT, origin=ORIGIN) as first:
        with pytest.raises(RuntimeError, match="is writing into"):
            CacheWriter(tmp_path, LAYOUT, origin=ORIGIN)
        append_rows(first)
    np.testing.assert_array_equal(np.asarray(write_cache(tmp_path).X), EXPECTED)


@pytest.mark.parametrize("change", [{"origin": {"model": "other"}}, {"dtype": "float16"}])
def test_a_refused_writer_holds_no_lock(tmp_path, change):
    write_cache(tmp_path)
    with pytest.raises(ValueError, match="differs in"):
        CacheWriter(tmp_path, LAYOUT, **({"origin": ORIGIN} | change))
    with CacheWriter(tmp_path, LAYOUT, origin=ORIGIN):
        pass


def test_a_forgotten_writer_holds_no_lock(tmp_path):
    CacheWriter(tmp_path, LAYOUT, origin=ORIGIN)
    with CacheWriter(tmp_path, LAYOUT, origin=ORIGIN):
        pass


def test_a_writer_that_looked_before_another_wrote_is_refused(tmp_path):
    found = write_cache(tmp_path, n_rows=4)
    write_cache(tmp_path)
    with pytest.raises(RuntimeError, match=r"meanwhile: it has 10 rows now, not 4\. Extract again"):
        CacheWriter(tmp_path, LAYOUT, origin=ORIGIN, n_cached=found.n_rows)
    assert FeatureCache(tmp_path).n_rows == N_ROWS, "the cache of the other must stay complete"


def test_one_lock_excludes_another_until_it_is_released(tmp_path):
    first = FolderLock(tmp_path)
    with pytest.raises(RuntimeError, match="is writing into"):
        FolderLock(tmp_path)
    first.release()
    FolderLock(tmp_path).release()
    assert os.listdir(tmp_path) == []


def test_the_file_is_removed_while_the_lock_is_held(tmp_path, monkeypatch):
    """Or it may be that of another, who has taken it meanwhile, and a third would take a new one."""
    lock = FolderLock(tmp_path)
    unlink, removed = Path.unlink, []

    def look(path, **options):
        if not removed:
            with pytest.raises(RuntimeError, match="is writing into"):
                FolderLock(tmp_path)
        removed.append(path.name)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", look)
    lock.release()
    assert removed[0] == LOCK


def test_the_lock_is_held_until_the_unfinished_shard_is_removed(tmp_path, monkeypatch):
    writer = CacheWriter(tmp_path, LAYOUT, origin=ORIGIN)
    append_rows(writer)
    rmtree, removed = shutil.rmtree, []

    def look(folder):
        with pytest.raises(RuntimeError, match="is writing into"):
            CacheWriter(tmp_path, LAYOUT, origin=ORIGIN)
        removed.append(folder.name)
        rmtree(folder)

    monkeypatch.setattr(shutil, "rmtree", look)
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert removed == ["unfinished-00000"]


FORKING = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from caches import LAYOUT, ORIGIN
from skexit.cache import CacheWriter

writer = CacheWriter(sys.argv[2], LAYOUT, origin=ORIGIN)
reading, writing = os.pipe()
child = os.fork()
if child:
    os.read(reading, 1)  # the child runs, so it has dropped the lock that it inherited
    print(child, flush=True)
else:
    os.write(writing, b".")
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_that_outlives_a_killed_process_holds_no_lock(tmp_path):
    """Such as the workers of a loader, forked while the cache is written."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING, os.path.dirname(caches.__file__), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(process.stdout.readline())
    try:
        with pytest.raises(RuntimeError, match="is writing into"):
            CacheWriter(tmp_path, LAYOUT, origin=ORIGIN)
        process.kill()
        process.wait()
        process.stdout.close()
        np.testing.assert_array_equal(np.asarray(write_cache(tmp_path).X), EXPECTED)
        os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)
