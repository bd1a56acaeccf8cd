"""A process forked while threads read a cache, as a loader forks its workers, can read it, too."""

import contextlib
import multiprocessing
import os
import threading
import time

import numpy as np
import pytest
from caches import EXPECTED, write_cache

import skexit.cache._cache
from skexit import FeatureCache

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def read(cache):
    np.testing.assert_array_equal(np.asarray(cache.X), EXPECTED)
    assert cache.y.tolist() == list(range(10))


def assert_child_reads(cache):
    child = multiprocessing.get_context("fork").Process(target=read, args=(cache,))
    child.start()
    child.join(20)
    child.kill()
    child.join()
    assert child.exitcode == 0


@contextlib.contextmanager
def running(target, *args):
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    yield
    thread.join()


def hold_up(monkeypatch, owner, name):
    """Let a function wait for a moment, in the first thread that calls it; the event says that it waits."""
    original, waits = getattr(owner, name), threading.Event()

    def slow(*args, **options):
        if not waits.is_set():
            waits.set()
            time.sleep(0.3)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, slow)
    return waits


class SlowKey:
    """Takes a moment to be looked up, once."""

    def __init__(self):
        self.waits = threading.Event()

    def __hash__(self):
        if not self.waits.is_set():
            self.waits.set()
            time.sleep(0.3)
        return 0


def test_while_a_thread_looks_for_an_open_file(tmp_path):
    cache = write_cache(tmp_path, y=np.arange(10))
    key = SlowKey()
    with running(cache.shards[0]._open_arrays.get, key):
        key.waits.wait()
        assert_child_reads(cache)


def test_while_a_thread_of_another_cache_does(tmp_path):
    caches = [write_cache(tmp_path / name, y=np.arange(10)) for name in ("a", "b")]
    key = SlowKey()
    with running(caches[1].shards[0]._open_arrays.drop, key):
        key.waits.wait()
        assert_child_reads(caches[0])
        assert_child_reads(caches[1])


def test_while_a_thread_reads_the_labels(tmp_path, monkeypatch):
    write_cache(tmp_path, y=np.arange(10))
    cache = FeatureCache(tmp_path)
    waits = hold_up(monkeypatch, skexit.cache._cache.np, "concatenate")
    with running(lambda: cache.y):
        waits.wait()
        monkeypatch.undo()
        assert_child_reads(cache)


def test_while_many_threads_read(tmp_path):
    cache = write_cache(tmp_path, y=np.arange(10), shard_rows=1, batch_rows=1)
    stop = threading.Event()

    def read_again_and_again():
        while not stop.is_set():
            read(cache)

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(running(read_again_and_again))
        stack.callback(stop.set)
        for _ in range(5):
            assert_child_reads(cache)
