"""A cache is found from any working directory, and one that is gone or replaced is not called damaged."""

import os
import pickle
import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
from caches import EXPECTED, LAYOUT, ORIGIN, append_rows, write_cache

from skexit import FeatureCache, merge_caches
from skexit.cache import CacheWriter


@pytest.fixture
def elsewhere(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("path", ["c", "./c", "b/../c", Path("c")])
def test_a_relative_path_is_that_of_the_moment(tmp_path, elsewhere, monkeypatch, path):
    write_cache(tmp_path / "c", y=np.arange(10))
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path)
    cache = FeatureCache(path)
    assert cache.path.is_absolute()
    monkeypatch.chdir(elsewhere)
    np.testing.assert_array_equal(np.asarray(cache.X), EXPECTED)
    np.testing.assert_array_equal(cache.y, np.arange(10))
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(cache.X))), EXPECTED)
    cache.verify()


def test_a_writer_stays_in_its_folder(tmp_path, elsewhere, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with CacheWriter("c", LAYOUT, origin=ORIGIN, shard_rows=4) as writer:
        monkeypatch.chdir(elsewhere)
        append_rows(writer)
    assert os.listdir(elsewhere) == []
    np.testing.assert_array_equal(np.asarray(FeatureCache(tmp_path / "c").X), EXPECTED)


def test_home(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(elsewhere)
    write_cache("~/c")
    merge_caches(["~/c", Path("~/c")], "~/twice")
    assert os.listdir(elsewhere) == []
    assert FeatureCache("~/twice").n_rows == 20


def read_after(folder, X):
    os.chdir(folder)
    return np.asarray(X)


@pytest.mark.slow
def test_workers_elsewhere(tmp_path, elsewhere, monkeypatch):
    write_cache(tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    X = FeatureCache("c").X
    for array in joblib.Parallel(n_jobs=2)(joblib.delayed(read_after)(elsewhere, X[rows]) for rows in ([1, 2], [3])):
        assert array.shape[1] == EXPECTED.shape[1]


@pytest.mark.parametrize("gone", [shutil.rmtree, lambda path: path.rename(path.with_name("moved"))])
@pytest.mark.parametrize("access", ["X", "y", "verify"])
def test_a_cache_that_is_gone_is_not_there(tmp_path, gone, access):
    cache = write_cache(tmp_path / "c", y=np.arange(10))
    gone(tmp_path / "c")
    read = {"X": lambda: np.asarray(cache.X), "y": lambda: cache.y, "verify": cache.verify}[access]
    with pytest.raises(FileNotFoundError, match=r"the cache '.*c' is not there any more. Open it with FeatureCache"):
        read()


@pytest.mark.parametrize("complete", [True, False])
def test_a_cache_that_was_replaced_is_not_damaged(tmp_path, complete):
    cache = write_cache(tmp_path / "c")
    pickled = pickle.dumps(cache.X)
    shutil.rmtree(tmp_path / "c")
    writer = CacheWriter(tmp_path / "c", LAYOUT, origin=ORIGIN, shard_rows=4)
    append_rows(writer, seed=1)
    writer.__exit__(None if complete else KeyboardInterrupt, None, None)
    with pytest.raises(ValueError, match=r"another cache is at '.*c' now. Open it with FeatureCache again"):
        np.asarray(cache.X)
    if complete:
        with pytest.raises(ValueError, match="is not the one this array was taken from: it has other rows"):
            pickle.loads(pickled)


def test_an_array_of_a_cache_that_grew_has_its_rows(tmp_path):
    with CacheWriter(tmp_path, LAYOUT, origin=ORIGIN) as writer:
        append_rows(writer, 6)
    pickled = pickle.dumps(FeatureCache(tmp_path).X)
    with CacheWriter(tmp_path, LAYOUT, origin=ORIGIN) as writer:
        append_rows(writer)
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickled)), EXPECTED[:6])


def test_a_damaged_shard_is_named_while_rows_are_added(tmp_path):
    cache = write_cache(tmp_path)
    (tmp_path / "shard-00001" / "exit0.features.npy").unlink()
    with (
        CacheWriter(tmp_path, LAYOUT, origin=ORIGIN),
        pytest.raises(ValueError, match=r"shard-00001' is damaged: exit0\.features\.npy: there is no such file"),
    ):
        np.asarray(cache.X)
