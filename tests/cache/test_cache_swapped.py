"""Shards and files that are whole but not where they belong."""

import shutil

import numpy as np
import pytest
from caches import LAYOUT, N_ROWS, ORIGIN, append_rows, values, write_cache

from skexit import FeatureCache
from skexit.cache import CacheWriter


def swap(first, second):
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


@pytest.mark.parametrize("name", ["exit0.features.npy", "exit1.logits.npy", "y.npy"])
def test_files_of_two_shards(tmp_path, name):
    write_cache(tmp_path, y=np.arange(N_ROWS))
    swap(tmp_path / "shard-00000" / name, tmp_path / "shard-00001" / name)
    with pytest.raises(ValueError, match=rf"shard-00000' is damaged: {name}: its checksum differs") as caught:
        FeatureCache(tmp_path).verify()
    assert f"shard-00001' is damaged: {name}: its checksum differs" in str(caught.value)


def test_files_of_one_shard_with_the_same_shape(tmp_path):
    layout = LAYOUT.replace(n_features=[2, 2])
    logits, features = values()
    features = [features[0][:, :2], features[0][:, 1:]]
    with CacheWriter(tmp_path, layout, origin=ORIGIN) as writer:
        writer.append(logits, features)
    swap(tmp_path / "shard-00000" / "exit0.features.npy", tmp_path / "shard-00000" / "exit1.features.npy")
    with pytest.raises(ValueError, match=r"exit0\.features\.npy: its checksum differs"):
        np.asarray(FeatureCache(tmp_path).X)


@pytest.mark.parametrize("n_rows", [N_ROWS, 8])
def test_a_shard_of_another_cache_with_the_same_layout(tmp_path, n_rows):
    write_cache(tmp_path / "cache")
    write_cache(tmp_path / "other", seed=1, n_rows=n_rows, origin=ORIGIN | {"data": "other"})
    swap(tmp_path / "cache" / "shard-00001", tmp_path / "other" / "shard-00001")
    for name in ("cache", "other"):
        with pytest.raises(ValueError, match=r"shard-00001' is damaged: shard\.json: it belongs to another cache"):
            FeatureCache(tmp_path / name)


def test_a_shard_of_a_cache_of_the_same_origin(tmp_path):
    """Of data that differ after the first input, which is all that an origin knows of them."""
    write_cache(tmp_path / "cache")
    write_cache(tmp_path / "other", seed=1)
    swap(tmp_path / "cache" / "shard-00001", tmp_path / "other" / "shard-00001")
    with pytest.raises(ValueError, match=r"shard-00001' is damaged: shard\.json: it is not the one that the manifest"):
        FeatureCache(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"shard\.json: it is not the one that the manifest"):
        CacheWriter(tmp_path / "cache", LAYOUT, origin=ORIGIN)


def test_a_manifest_of_another_cache(tmp_path):
    write_cache(tmp_path / "cache")
    write_cache(tmp_path / "other", seed=1, origin=ORIGIN | {"data": "other"})
    shutil.copy(tmp_path / "other" / "manifest.json", tmp_path / "cache" / "manifest.json")
    with pytest.raises(ValueError, match="it belongs to another cache"):
        FeatureCache(tmp_path / "cache")


def test_an_unfinished_cache_with_a_foreign_shard(tmp_path):
    write_cache(tmp_path / "other", seed=1, origin=ORIGIN | {"data": "other"})
    writer = CacheWriter(tmp_path / "cache", LAYOUT, origin=ORIGIN, shard_rows=4)
    append_rows(writer, 4)
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    shutil.copytree(tmp_path / "other" / "shard-00001", tmp_path / "cache" / "shard-00001")
    with pytest.raises(ValueError, match="it belongs to another cache"):
        FeatureCache(tmp_path / "cache", allow_partial=True)
    with pytest.raises(ValueError, match="it belongs to another cache"):
        CacheWriter(tmp_path / "cache", LAYOUT, origin=ORIGIN)


def test_a_shard_too_many(tmp_path):
    write_cache(tmp_path / "cache")
    write_cache(tmp_path / "longer", n_rows=14)
    shutil.copytree(tmp_path / "longer" / "shard-00003", tmp_path / "cache" / "shard-00003")
    with pytest.raises(ValueError, match=r"shard-00003' is damaged: shard\.json: it is not the one"):
        FeatureCache(tmp_path / "cache", allow_partial=True)


def test_shards_are_in_the_order_of_their_numbers(tmp_path):
    """Not of their names, which grow when five digits do not suffice."""
    write_cache(tmp_path)
    (tmp_path / "shard-100000").mkdir()
    (tmp_path / "shard-10001").mkdir()
    with pytest.raises(ValueError, match=r"shard-10001' is damaged: shard\.json: there is no such file"):
        FeatureCache(tmp_path)


def test_a_layout_with_columns_that_are_not_in_the_cache(tmp_path):
    X = write_cache(tmp_path).X
    wider = X.with_layout(LAYOUT.replace(n_logits=[2, 2]))
    with pytest.raises(ValueError, match=r"exit0\.logits\.npy: the shard has no such file"):
        np.asarray(wider)
