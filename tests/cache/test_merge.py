"""Merged caches are what one extraction of all data would have written, or the reason why not is named."""

import errno
import os
import shutil

import numpy as np
import pytest
from caches import LAYOUT, N_ROWS, ORIGIN, append_rows, values, write_cache

import skexit.cache._folders
import skexit.cache._merging
from skexit import FeatureCache, merge_caches
from skexit.cache import CacheWriter


@pytest.fixture
def sources(tmp_path):
    """Three caches of the same model with 10, 6 and 3 rows of different data."""
    paths = []
    for number, n_rows in enumerate((N_ROWS, 6, 3)):
        paths.append(tmp_path / f"part{number}")
        origin = ORIGIN | {"data": str(number)}
        write_cache(paths[-1], n_rows=n_rows, seed=number, y=np.arange(n_rows) + 100 * number, origin=origin)
    return paths


def contents(paths):
    caches = [FeatureCache(path) for path in paths]
    return np.concatenate([cache.X for cache in caches]), np.concatenate([cache.y for cache in caches])


def assert_is(merged, X, y):
    np.testing.assert_array_equal(np.asarray(merged.X), X)
    np.testing.assert_array_equal(merged.y, y)
    assert merged.complete
    merged.verify()


@pytest.mark.parametrize("order", [[0], [0, 1], [2, 0, 1], [1, 1]])
def test_rows_are_in_the_order_of_the_sources(sources, tmp_path, order):
    chosen = [sources[number] for number in order]
    X, y = contents(chosen)
    merged = merge_caches(chosen, tmp_path / "all")
    assert_is(merged, X, y)
    assert (merged.layout, merged.origin) == (LAYOUT, FeatureCache(chosen[0]).origin)


def test_files_are_shared_and_outlive_the_sources(sources, tmp_path):
    X, y = contents(sources)
    merged = merge_caches(sources, tmp_path / "all")
    assert os.path.samefile(sources[1] / "shard-00000" / "y.npy", tmp_path / "all" / "shard-00003" / "y.npy")
    for path in sources:
        shutil.rmtree(path)
    assert_is(merged, X, y)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_files_are_copied_where_they_cannot_be_shared(sources, tmp_path, monkeypatch, code):
    def fail(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    merged = merge_caches(sources, tmp_path / "all")
    assert not os.path.samefile(sources[0] / "shard-00000" / "y.npy", tmp_path / "all" / "shard-00000" / "y.npy")
    assert_is(merged, *contents(sources))


def test_sources_stay_as_they_were(sources, tmp_path):
    before = {file: file.read_bytes() for path in sources for file in path.rglob("*") if file.is_file()}
    merge_caches(sources, tmp_path / "all")
    shutil.rmtree(tmp_path / "all")
    assert {file: file.read_bytes() for path in sources for file in path.rglob("*") if file.is_file()} == before


def test_links_of_a_store_are_followed(sources, tmp_path):
    file = sources[0] / "shard-00000" / "y.npy"
    (tmp_path / "store").mkdir()
    file.rename(tmp_path / "store" / "1")
    file.symlink_to("../../store/1")
    merged = merge_caches(sources, tmp_path / "deep" / "er" / "all")
    assert not (tmp_path / "deep" / "er" / "all" / "shard-00000" / "y.npy").is_symlink()
    assert_is(merged, *contents(sources))


class TestStopped:
    def stop_after(self, n_files, monkeypatch):
        left = iter(range(n_files))
        link = os.link

        def stop(source, target):
            if next(left, None) is None:
                raise KeyboardInterrupt
            link(source, target)

        monkeypatch.setattr(os, "link", stop)

    @pytest.mark.parametrize("n_files", [0, 1, 4, 9, 17])
    def test_goes_on(self, sources, tmp_path, monkeypatch, n_files):
        with monkeypatch.context() as patch:
            self.stop_after(n_files, patch)
            with pytest.raises(KeyboardInterrupt):
                merge_caches(sources, tmp_path / "all")
        assert len(list((tmp_path / "all").glob("shard-*"))) == n_files // 4
        assert not list((tmp_path / "all").glob("unfinished-*"))
        assert_is(merge_caches(sources, tmp_path / "all"), *contents(sources))

    def test_a_full_disk(self, sources, tmp_path, monkeypatch):
        def fail(source, target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(skexit.cache._folders.shutil, "copyfile", fail)
            patch.setattr(os, "link", fail)
            with pytest.raises(OSError, match="No space left") as caught:
                merge_caches(sources, tmp_path / "all")
        assert "Complete shards are kept: make room" in caught.value.__notes__[0]
        assert_is(merge_caches(sources, tmp_path / "all"), *contents(sources))

    def test_other_sources_are_refused(self, sources, tmp_path):
        merge_caches(sources[:2], tmp_path / "all")
        with pytest.raises(ValueError, match=r"all' holds a cache that is not the beginning of these; give a new"):
            merge_caches(sources[::-1], tmp_path / "all")
        with pytest.raises(ValueError, match="is not the beginning of these"):
            merge_caches(sources[:1], tmp_path / "all")
        assert_is(merge_caches(sources, tmp_path / "all"), *contents(sources))


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"origin": ORIGIN | {"model": "b"}}, r"model \('.*' and 'b'\)"),
            ({"origin": ORIGIN | {"pool": "max"}}, r"pool \(.* and 'max'\)"),
            ({"layout": LAYOUT.replace(costs=[10, 31])}, r"costs of the layout \(\[10.0, 30.0\] and \[10.0, 31.0\]\)"),
            (
                {"layout": LAYOUT.replace(classes=["yes", "no"]), "dtype": "float16"},
                r"classes of the layout \(.* and \['yes', 'no'\]\), dtype \('float32' and 'float16'\)",
            ),
        ],
    )
    def test_other_models_and_settings(self, sources, tmp_path, change, named):
        write_cache(tmp_path / "other", y=np.arange(N_ROWS), **change)
        with pytest.raises(ValueError, match=rf"part0' and '.*other' cannot be merged: they differ in {named}\. "):
            merge_caches([sources[0], tmp_path / "other"], tmp_path / "all")
        assert not (tmp_path / "all").exists()

    @pytest.mark.parametrize(
        ("y", "message"), [(None, "labels and others none"), (np.array(["a"] * N_ROWS), "numbers and others strings")]
    )
    def test_other_labels(self, sources, tmp_path, y, message):
        write_cache(tmp_path / "other", y=y)
        with pytest.raises(ValueError, match=f"cannot be merged: some have {message}"):
            merge_caches([sources[0], tmp_path / "other"], tmp_path / "all")

    def test_unfinished(self, sources, tmp_path):
        writer = CacheWriter(tmp_path / "stopped", LAYOUT, origin=ORIGIN)
        append_rows(writer)
        writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        with pytest.raises(ValueError, match="stopped' has not finished"):
            merge_caches([*sources, tmp_path / "stopped"], tmp_path / "all")

    def test_damaged(self, sources, tmp_path):
        (sources[1] / "shard-00001" / "shard.json").write_text("{}")
        with pytest.raises(ValueError, match=r"part1/shard-00001' is damaged"):
            merge_caches(sources, tmp_path / "all")

    def test_missing(self, sources, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no cache at"):
            merge_caches([*sources, tmp_path / "missing"], tmp_path / "all")

    def test_none(self, tmp_path):
        with pytest.raises(ValueError, match="sources is empty"):
            merge_caches([], tmp_path / "all")

    @pytest.mark.parametrize("place", [0, 1])
    def test_into_a_source(self, sources, place):
        with pytest.raises(ValueError, match="is one of the sources; give another folder"):
            merge_caches(sources, sources[place].parent / "." / sources[place].name)
        assert FeatureCache(sources[place]).complete

    def test_into_a_folder_of_other_files(self, sources, tmp_path):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "thesis.txt").touch()
        with pytest.raises(ValueError, match="is not empty and holds no cache"):
            merge_caches(sources, tmp_path / "thesis")

    def test_into_a_folder_that_is_written(self, sources, tmp_path):
        origin = FeatureCache(sources[0]).origin
        with CacheWriter(tmp_path / "all", LAYOUT, origin=origin), pytest.raises(RuntimeError, match="is writing"):
            merge_caches(sources, tmp_path / "all")


def test_another_merges_at_the_same_time(sources, tmp_path, monkeypatch):
    """It ends after this one has looked what is merged already, and before this one has the lock."""
    merge_caches(sources, tmp_path / "all")
    monkeypatch.setattr(skexit.cache._merging, "_find_merged", lambda *arguments: (0, 0))
    with pytest.raises(RuntimeError, match="meanwhile: it has 19 rows now, not 0"):
        merge_caches(sources, tmp_path / "all")
    assert_is(FeatureCache(tmp_path / "all"), *contents(sources))


def test_float16(tmp_path):
    cache = write_cache(tmp_path / "half", dtype="float16")
    merged = merge_caches([tmp_path / "half"] * 2, tmp_path / "all")
    assert merged.stored_dtype == np.float16
    np.testing.assert_array_equal(np.asarray(merged.X), np.concatenate([cache.X] * 2))


def test_damage_of_a_source_is_found_in_the_merged_cache(sources, tmp_path):
    """Merging reads no arrays; checksums go with the files."""
    file = sources[1] / "shard-00000" / "exit1.logits.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    merged = merge_caches(sources, tmp_path / "all")
    with pytest.raises(ValueError, match=r"shard-00003' is damaged: exit1\.logits\.npy: its checksum differs"):
        merged.verify()


def test_an_extraction_goes_on_after_the_merged_rows(sources, tmp_path):
    """As after those of an extraction of the same data."""
    merged = merge_caches(sources, tmp_path / "all")
    with CacheWriter(tmp_path / "all", LAYOUT, origin=merged.origin) as writer:
        writer.append(*values(2), y=[7, 7])
    assert FeatureCache(tmp_path / "all").y.tolist()[-2:] == [7, 7]
