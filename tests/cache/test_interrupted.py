"""Ctrl-C at any moment: it is what is seen, the lock is free, and writing goes on after the complete shards."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
from caches import EXPECTED, LAYOUT, N_ROWS, ORIGIN, append_rows, values, write_cache

import skexit.cache
from skexit import FeatureCache, merge_caches
from skexit.cache import CacheWriter
from skexit.cache._lock import FolderLock

#: A file that was opened, and nobody knows of yet.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

LABELS = np.arange(N_ROWS)
ROOM = os.path.dirname(skexit.cache.__file__)
#: What is interrupted within these is out of the cache's hands.
OTHERS = ("filelock", "threading", os.path.join("concurrent", "futures"), "weakref", "tqdm", "numpy")


class Interruption:
    """Raise KeyboardInterrupt where Python looks for signals: at the n-th start of a function, or end of one in C."""

    def __init__(self, number):
        self.number = number
        self.n_seen = 0

    def __call__(self, frame, event, function):
        if event not in ("call", "c_return") or not in_cache(frame):
            return
        if event == "call" and frame.f_code.co_qualname in ("CacheWriter.__enter__", "CacheWriter.__exit__"):
            return  # no code can let the lock go before this, and the exception holds the writer
        self.n_seen += 1
        if self.n_seen == self.number:
            raise KeyboardInterrupt

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *error):
        sys.setprofile(None)


def in_cache(frame):
    """Whether the cache has called the function, and could do something when it is interrupted."""
    while frame is not None and not any(name in frame.f_code.co_filename for name in OTHERS):
        if frame.f_code.co_filename.startswith(ROOM):
            return True
        frame = frame.f_back
    return False


def write(path):
    with CacheWriter(path, LAYOUT, origin=ORIGIN, shard_rows=6) as writer:
        append_rows(writer, y=LABELS)


def merge(path):
    merge_caches([f"{path}-source"], path)


def count(work, path):
    with Interruption(0) as interruption:
        work(path)
    return interruption.n_seen


def assert_in_order(path):
    FolderLock(path).release()
    if (path / "manifest.json").exists():
        cache = FeatureCache(path, allow_partial=True)
        cache.verify()
        assert cache.n_rows in (0, 6, N_ROWS)
        np.testing.assert_array_equal(np.asarray(cache.X), EXPECTED[: cache.n_rows])


def check_every(step, work, tmp_path):
    write(tmp_path / "counted-source")
    n_moments = count(work, tmp_path / "counted")
    moments = [*range(1, n_moments - 40, step), *range(n_moments - 40, n_moments + 1)]
    for number, before in zip(moments, [None, *moments], strict=False):
        path = tmp_path / str(number)
        os.rename(tmp_path / ("counted-source" if before is None else f"{before}-source"), f"{path}-source")
        # The exception is held meanwhile, as a notebook does.
        held = None
        try:
            with Interruption(number):
                work(path)
        except KeyboardInterrupt as error:
            held = error
        assert held or number > n_moments - 40, "files are synced by threads, so that not all runs are alike"
        if path.exists():
            assert_in_order(path)
        work(path)
        np.testing.assert_array_equal(np.asarray(FeatureCache(path).X), EXPECTED)
        np.testing.assert_array_equal(FeatureCache(path).y, LABELS)
        assert not list(path.glob("unfinished-*"))
        del held


@pytest.mark.slow
@pytest.mark.parametrize(("work", "step"), [(write, 59), (merge, 199)])
def test_any_moment(tmp_path, work, step):
    check_every(step, work, tmp_path)


@pytest.mark.parametrize("name", ["rename", "replace", "fsync", "link"])
def test_after_each_call_of_the_system(tmp_path, monkeypatch, name):
    """Such as the renaming of a complete shard."""
    original, n_calls = getattr(os, name), 0
    write(tmp_path / "cache-source")
    for number in range(1, 100):
        path, n_calls = tmp_path / f"cache{number}", 0
        os.rename(tmp_path / ("cache-source" if number == 1 else f"cache{number - 1}-source"), f"{path}-source")

        def interrupted(*args, number=number, **options):
            nonlocal n_calls
            result = original(*args, **options)
            n_calls += 1
            if n_calls == number:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            patch.setattr(os, name, interrupted)
            with contextlib.suppress(KeyboardInterrupt):
                write(path) if name != "link" else merge(path)
        if n_calls < number:
            break
        assert_in_order(path)
        write_cache(path, y=LABELS)
    assert number > 1


def test_rows_after_an_interrupted_append_are_refused(tmp_path, monkeypatch):
    """Even if the exception is caught: some exits may have the rows of that batch, and others not."""
    logits, features = values()
    writer = CacheWriter(tmp_path, LAYOUT, origin=ORIGIN, shard_rows=6)

    def append_and_go_on():
        with writer:
            append_rows(writer, 8)
            with monkeypatch.context() as patch:
                patch.setattr("skexit.cache._shards.zlib.crc32", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    writer.append(logits, features)
            with pytest.raises(
                RuntimeError, match=r"was interrupted in the middle of a shard. Open another CacheWriter"
            ):
                writer.append(logits, features)

    with pytest.raises(RuntimeError, match="was interrupted in the middle of a shard"):
        append_and_go_on()
    assert_in_order(tmp_path)
    np.testing.assert_array_equal(np.asarray(write_cache(tmp_path).X), EXPECTED)


def interrupt(*args):
    raise KeyboardInterrupt


def write_until_interrupted(path, connection):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    write(path / "0")
    number = 0
    try:
        connection.send("writing")
        for number in range(1, 10**6):
            write(path / str(number))
    except BaseException as error:
        FolderLock(path / str(number)).release()
        connection.send((type(error).__name__, number))


def interrupted(pid, connection):
    """Presses Ctrl-C until the process answers: Python ignores an interrupt that meets the callback of a weak reference."""
    for _ in range(6):
        os.kill(pid, signal.SIGINT)
        if connection.poll(20):
            return True
    return False


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals are others on Windows")
def test_real_signals(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skexit.extraction"])
    random = np.random.default_rng(0)
    for trial in range(5):
        path = tmp_path / str(trial)
        path.mkdir()
        connection, theirs = context.Pipe()
        process = context.Process(target=write_until_interrupted, args=(path, theirs))
        process.start()
        connection.recv()
        time.sleep(random.uniform(0, 0.1))
        assert interrupted(process.pid, connection)
        name, number = connection.recv()
        process.join()
        assert name == "KeyboardInterrupt"
        assert_in_order(path / str(number))
        write(path / str(number))
        np.testing.assert_array_equal(np.asarray(FeatureCache(path / str(number)).X), EXPECTED)
