"""Caches behind URLs: the same data, checked in the same way, a file at a time."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
import uuid

import joblib
import numpy as np
import pytest
from caches import EXPECTED, LAYOUT, N_ROWS, ORIGIN, write_cache

from skexit import FeatureCache, merge_caches
from skexit.cache import CacheWriter
from skexit.cli import main

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def path(tmp_path):
    write_cache(tmp_path / "cache", y=np.arange(N_ROWS) % 2)
    return tmp_path / "cache"


@pytest.fixture(params=["memory", "file", "simplecache::memory", "simplecache::file"])
def url(request, path):
    """The cache at a URL of each kind."""
    kind = request.param
    if kind.endswith("file"):
        return f"{kind}://{path}"
    name = f"/bucket-{uuid.uuid4()}/shard-cache"  # a name that begins like that of a shard
    fsspec.filesystem("memory").put(str(path), name, recursive=True)
    return f"{kind}:/{name}"


@pytest.fixture
def fetched(monkeypatch):
    """Names of the files that are fetched."""
    from skexit.cache._folders import RemoteFolder

    names = []
    opened = RemoteFolder.open
    monkeypatch.setattr(
        RemoteFolder, "open", lambda self, name, max_bytes: names.append(name) or opened(self, name, max_bytes)
    )
    return names


def on_memory(path):
    url = f"memory://{uuid.uuid4()}"
    fsspec.filesystem("memory").put(str(path), url, recursive=True)
    return url


@pytest.mark.parametrize("end", ["", "/"])
def test_the_same_data(url, path, end):
    cache = FeatureCache(url + end)
    np.testing.assert_array_equal(np.asarray(cache.X), EXPECTED)
    np.testing.assert_array_equal(cache.y, np.arange(N_ROWS) % 2)
    assert (cache.layout, cache.origin, cache.n_bytes) == (LAYOUT, ORIGIN, FeatureCache(path).n_bytes)
    cache.verify()
    rows = np.random.default_rng(0).integers(N_ROWS, size=30)
    np.testing.assert_array_equal(np.asarray(cache.X[rows]), EXPECTED[rows])


def test_repr(path):
    url = on_memory(path)
    assert repr(FeatureCache(url)) == f"FeatureCache({url!r}, 10 rows, 2 exits)"


@pytest.mark.parametrize("name", ["exit0.features.npy", "exit1.logits.npy", "y.npy"])
def test_damage_is_found(path, name):
    content = bytearray((path / "shard-00001" / name).read_bytes())
    content[-1] ^= 1
    (path / "shard-00001" / name).write_bytes(content)
    url = on_memory(path)
    with pytest.raises(ValueError, match=rf"the shard '{url}/shard-00001' is damaged: {name}: its checksum differs"):
        FeatureCache(url).verify()


def test_a_missing_file_is_damage(path):
    (path / "shard-00001" / "y.npy").unlink()
    with pytest.raises(ValueError, match=r"shard-00001' is damaged: y\.npy"):
        FeatureCache(on_memory(path)).verify()


def test_a_file_without_end_is_not_fetched(path):
    with (path / "shard-00001" / "y.npy").open("ab") as file:
        file.write(bytes(2**22))
    url = on_memory(path)
    with pytest.raises(ValueError, match=r"shard-00001' is damaged: y\.npy: it is too long"):
        FeatureCache(url).verify()


def test_a_description_without_end_is_not_fetched(path):
    os.truncate(path / "manifest.json", 2**27)
    tracemalloc.start()
    with pytest.raises(ValueError, match="it has more than 16777216 bytes"):
        FeatureCache(f"file://{path}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26


def test_folders_that_are_no_shards_are_not_read(path):
    shutil.copytree(path / "shard-00000", path / "unfinished-00003")
    shutil.copytree(path, path / "part-00000-of-00002")
    np.testing.assert_array_equal(np.asarray(FeatureCache(on_memory(path)).X), EXPECTED)


def test_no_cache():
    with pytest.raises(FileNotFoundError, match="there is no cache at 'memory://nothing'"):
        FeatureCache("memory://nothing")


def test_a_file_is_no_cache(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"there is no cache at 'file://.*file': it has no manifest"):
        FeatureCache(f"file://{tmp_path}/file")


def test_an_error_of_the_network_is_no_damage(path, monkeypatch):
    """Whose message would advise to delete the shard."""
    cache = FeatureCache(on_memory(path))

    def fail(*arguments, **options):
        raise TimeoutError("the store does not answer")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "_open", fail)
    with pytest.raises(TimeoutError, match="does not answer"):
        cache.X.features(0)


class TestFetching:
    def test_each_file_once_and_only_when_it_is_needed(self, path, fetched):
        cache = FeatureCache(on_memory(path))
        assert fetched == []
        for _ in range(2):
            cache.X.features(0, rows=[0, 9])
        assert fetched == ["shard-00000/exit0.features.npy", "shard-00002/exit0.features.npy"]

    def test_what_was_not_used_for_longest_makes_room(self, path, fetched):
        cache = FeatureCache(on_memory(path), local_bytes=2 * 4 * 3 * 4)  # two shards of exit 0
        for row, is_fetched in [(0, True), (4, True), (0, False), (9, True), (4, True), (0, True), (4, False)]:
            n_fetched = len(fetched)
            np.testing.assert_array_equal(cache.X.features(0, rows=[row])[0], EXPECTED[row, :3])
            assert (len(fetched) > n_fetched) == is_fetched, row

    def test_one_file_larger_than_the_room(self, path):
        np.testing.assert_array_equal(np.asarray(FeatureCache(on_memory(path), local_bytes=1).X), EXPECTED)

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are not listed")
    def test_nothing_is_left_behind(self, path, tmp_path, monkeypatch):
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))

        def held():
            """Files that take place in the folder without a name there."""
            links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
            targets = [os.readlink(link) for link in links if os.path.islink(link)]
            return [target for target in targets if target.startswith(str(temporary))]

        cache = FeatureCache(on_memory(path), local_bytes=100)
        np.asarray(cache.X)
        assert os.listdir(temporary) == []
        assert len(held()) == 5, "as many of the nine as have 100 bytes together"
        del cache
        assert held() == []

    def test_a_cache_that_grew_is_seen(self, path):
        url = on_memory(path)
        assert FeatureCache(url).n_rows == N_ROWS
        write_cache(path, n_rows=14, y=np.arange(14) % 2)
        fsspec.filesystem("memory").put(f"{path}/", f"{url}/", recursive=True)
        assert FeatureCache(url).n_rows == 14

    def test_a_cache_that_grew_in_a_store_whose_lists_are_kept(self, path, monkeypatch):
        """As fsspec keeps those of s3, for as long as the process runs."""
        memory = fsspec.get_filesystem_class("memory")
        lists, find = {}, memory.find
        monkeypatch.setattr(
            memory, "find", lambda self, root, **options: lists.setdefault(root, find(self, root, **options))
        )
        monkeypatch.setattr(memory, "invalidate_cache", lambda self, path=None: lists.clear())
        self.test_a_cache_that_grew_is_seen(path)


def test_a_copy_for_all_processes_of_a_machine(path, tmp_path, monkeypatch):
    """What docs/guide/larger_than_memory.rst says of fsspec's own caches."""
    monkeypatch.setitem(fsspec.config.conf, "filecache", {"cache_storage": str(tmp_path / "copies")})
    url = on_memory(path)
    for _ in range(2):
        np.testing.assert_array_equal(FeatureCache(f"filecache::{url}").X.features(0), EXPECTED[:, :3])
        assert len(os.listdir(tmp_path / "copies")) == 1 + 1 + 3 + 3, "a list, the manifest, and two files a shard"


class TestPickling:
    def test_path_and_rows_are_what_is_pickled(self, path):
        X = FeatureCache(on_memory(path), local_bytes=1000).X[3:]
        np.asarray(X)
        pickled = pickle.dumps(X)
        assert len(pickled) < 1500
        loaded = pickle.loads(pickled)
        assert loaded.source.local_bytes == 1000
        np.testing.assert_array_equal(np.asarray(loaded), EXPECTED[3:])

    def test_worker_processes(self, path):
        X = FeatureCache(f"file://{path}").X
        parts = joblib.Parallel(n_jobs=2)(joblib.delayed(np.asarray)(X[rows]) for rows in (slice(5), slice(5, None)))
        np.testing.assert_array_equal(np.concatenate(parts), EXPECTED)

    def test_another_cache_in_its_place(self, path, tmp_path):
        url = on_memory(path)
        pickled = pickle.dumps(FeatureCache(url).X)
        write_cache(tmp_path / "other", origin={"model": "other"})
        fsspec.filesystem("memory").rm(url, recursive=True)
        fsspec.filesystem("memory").put(str(tmp_path / "other"), url, recursive=True)
        with pytest.raises(ValueError, match="is not the one this array was taken from"):
            pickle.loads(pickled)


def test_commands(path, capsys):
    url = on_memory(path)
    assert main(["cache", "verify", url]) == 0
    assert main(["cache", "info", url]) == 0
    assert f"cache      {url}\n" in capsys.readouterr().out


class TestWriting:
    def test_to_a_url_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=r"'s3://bucket/cache' is a URL; write the cache to a folder of this"):
            CacheWriter("s3://bucket/cache", LAYOUT, origin=ORIGIN)
        assert os.listdir(tmp_path) == []

    def test_merging(self, path, tmp_path):
        url = on_memory(path)
        with pytest.raises(ValueError, match="is a URL; copy the cache to this machine to merge it"):
            merge_caches([path, url], tmp_path / "all")


def test_without_fsspec(path):
    """The error names the extra, and local caches need nothing."""
    script = (
        "import sys; sys.modules['fsspec'] = None\n"
        "from skexit import FeatureCache\n"
        f"assert len(FeatureCache({str(path)!r})) == 10\n"
        "FeatureCache('s3://bucket/cache')"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    message = "reading 's3://bucket/cache' needs fsspec, which is not installed: pip install 'skexit[remote]'"
    assert f"ImportError: {message}\n" in ended.stderr


def test_an_unknown_kind_of_url():
    with pytest.raises(ValueError, match="nosuch"):
        FeatureCache("nosuch://bucket/cache")
