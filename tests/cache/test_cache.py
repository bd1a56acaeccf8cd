"""A cache gives back what was written, or says what is damaged: never anything else."""

import contextlib
import importlib
import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from caches import EXPECTED, LAYOUT, N_ROWS, ORIGIN, as_array, read_json, values
from caches import take as part
from caches import write_cache as write

import skexit.cache._cache
import skexit.cache._shards
from skexit import ExitLayout, FeatureCache
from skexit.cache import CacheWriter
from skexit.cache._json_files import FORMAT_VERSION, write_json


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


class TestRoundTrip:
    @pytest.mark.parametrize("shard_rows", [1, 3, 4, 100, None])
    @pytest.mark.parametrize("batch_rows", [1, 3, 10])
    def test_values(self, tmp_path, batch_rows, shard_rows):
        cache = write(tmp_path, batch_rows=batch_rows, shard_rows=shard_rows)
        assert len(cache) == cache.n_rows == N_ROWS
        assert cache.complete
        np.testing.assert_array_equal(np.asarray(cache.X), EXPECTED)

    def test_layout_and_origin(self, tmp_path):
        cache = write(tmp_path)
        assert cache.layout == LAYOUT
        assert cache.origin == ORIGIN
        assert repr(cache) == f"FeatureCache({str(tmp_path)!r}, 10 rows, 2 exits)"

    def test_shards_hold_as_many_rows_as_they_are_told(self, tmp_path):
        write(tmp_path)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == [
            "manifest.json",
            "shard-00000",
            "shard-00001",
            "shard-00002",
        ]
        assert [len(np.load(folder / "exit0.features.npy")) for folder in sorted(tmp_path.glob("shard-*"))] == [4, 4, 2]

    def test_rows_across_shards_in_any_order(self, tmp_path):
        rows = np.random.default_rng(0).integers(N_ROWS, size=50)
        np.testing.assert_array_equal(np.asarray(write(tmp_path).X[rows]), EXPECTED[rows])

    def test_float16(self, tmp_path):
        cache = write(tmp_path, dtype="float16")
        assert cache.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(cache.X), EXPECTED.astype(np.float16).astype(np.float32))
        assert np.load(tmp_path / "shard-00000" / "exit0.features.npy").dtype == np.float16

    @pytest.mark.parametrize("arranged", [np.ascontiguousarray, np.asfortranarray, read_only])
    @pytest.mark.parametrize("has_torch", [True, False])
    def test_float16_of_any_number_is_the_nearest(self, tmp_path, arranged, has_torch, monkeypatch):
        """Every number of half precision, what is halfway to the next, and what is just beside either."""
        monkeypatch.setitem(sys.modules, "torch", importlib.import_module("torch") if has_torch else None)
        halves = np.arange(2**15, dtype=np.uint16).view(np.float16)
        halves = halves[np.isfinite(halves)].astype(np.float32)
        middles = (halves[1:] + halves[:-1]) / 2
        numbers = np.concatenate([halves, middles, *(np.nextafter(middles, np.float32(way)) for way in (0, 1e9))])
        numbers = np.concatenate([numbers, -numbers, np.nextafter(halves[:-1], np.float32(1e9))])
        block = numbers[: len(numbers) // 4 * 4].reshape(-1, 4)
        layout = ExitLayout([4], [0], classes=range(4))
        with CacheWriter(tmp_path, layout, origin=ORIGIN, dtype="float16") as writer:
            writer.append([arranged(block)], [None])
        stored = FeatureCache(tmp_path).X.logits(0)
        np.testing.assert_array_equal(stored, block.astype(np.float16))
        np.testing.assert_array_equal(np.signbit(stored), np.signbit(block))

    @pytest.mark.parametrize("kind", [np.float64, np.float16, np.int8])
    def test_other_dtypes_are_converted(self, tmp_path, kind):
        blocks = [None, np.arange(8).reshape(4, 2).astype(kind)], [np.ones((4, 3), kind), np.zeros((4, 1), kind)]
        with CacheWriter(tmp_path, LAYOUT, origin=ORIGIN) as writer:
            writer.append(*blocks)
        np.testing.assert_array_equal(np.asarray(FeatureCache(tmp_path).X), as_array(*blocks))

    @pytest.mark.parametrize(
        "y",
        [
            np.arange(N_ROWS) % 3,
            np.arange(N_ROWS, dtype=np.uint8),
            np.arange(N_ROWS) % 2 == 0,
            np.linspace(0, 1, N_ROWS),
            np.array(["no", "yes", "perhaps", "näin", ""] * 2),
        ],
        ids=lambda y: y.dtype.kind,
    )
    def test_labels(self, tmp_path, y):
        cache = write(tmp_path, y=y)
        np.testing.assert_array_equal(cache.y, y)
        assert cache.y.dtype.kind == y.dtype.kind

    def test_without_labels(self, tmp_path):
        assert write(tmp_path).y is None

    def test_non_contiguous_blocks(self, tmp_path):
        logits, features = values()
        with CacheWriter(tmp_path, LAYOUT, origin=ORIGIN) as writer:
            writer.append(
                [None, np.asfortranarray(logits[1])], [features[0][::1], np.repeat(features[1], 2, axis=1)[:, ::2]]
            )
        np.testing.assert_array_equal(np.asarray(FeatureCache(tmp_path).X), EXPECTED)

    def test_an_empty_batch_adds_nothing(self, tmp_path):
        logits, features = values()
        nothing = slice(0, 0)
        with CacheWriter(tmp_path, LAYOUT, origin=ORIGIN) as writer:
            writer.append(part(logits, nothing), part(features, nothing))
            writer.append(logits, features)
        np.testing.assert_array_equal(np.asarray(FeatureCache(tmp_path).X), EXPECTED)


class TestLaziness:
    def test_opening_reads_no_data_file(self, tmp_path):
        write(tmp_path, y=np.arange(N_ROWS))
        for file in tmp_path.rglob("*.npy"):
            file.unlink()
        cache = FeatureCache(tmp_path)
        assert cache.X[3:].shape == (7, LAYOUT.n_columns)
        with pytest.raises(ValueError, match="is damaged"):
            np.asarray(cache.X)

    def test_only_files_of_the_exit_and_shard_are_read(self, tmp_path):
        write(tmp_path)
        for file in tmp_path.rglob("*.npy"):
            if file.parent.name != "shard-00001" or file.name != "exit0.features.npy":
                file.unlink()
        np.testing.assert_array_equal(FeatureCache(tmp_path).X.features(0, [7, 4]), values()[1][0][[7, 4]])

    def test_a_file_is_checked_once(self, tmp_path, monkeypatch):
        checked = []
        checksum = skexit.cache._shards._checksum
        monkeypatch.setattr(
            skexit.cache._shards, "_checksum", lambda array: checked.append(array.shape) or checksum(array)
        )
        X = write(tmp_path).X
        for row in range(N_ROWS):
            X.features(0, [row])
        assert checked == [(4, 3), (4, 3), (2, 3)]


def test_what_was_pickled_in_one_folder_is_found_in_another(tmp_path, monkeypatch):
    write(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(FeatureCache("cache").X)
    monkeypatch.chdir(tmp_path / "cache")
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickled)), EXPECTED)


class TestCompleteness:
    def interrupt(self, path, n_rows):
        """Write some rows, then stop as by Ctrl-C."""

        def batches():
            yield from range(0, n_rows, 2)
            raise KeyboardInterrupt

        logits, features = values()
        with contextlib.suppress(KeyboardInterrupt), CacheWriter(path, LAYOUT, origin=ORIGIN, shard_rows=4) as writer:
            for start in batches():
                rows = slice(start, start + 2)
                writer.append(part(logits, rows), part(features, rows))

    def test_an_unfinished_cache_is_refused(self, tmp_path):
        self.interrupt(tmp_path, 6)
        with pytest.raises(ValueError, match=r"has not finished: call extract\(\) again.*or open.*allow_partial=True"):
            FeatureCache(tmp_path)

    def test_complete_shards_of_an_unfinished_cache(self, tmp_path):
        self.interrupt(tmp_path, 6)
        cache = FeatureCache(tmp_path, allow_partial=True)
        assert not cache.complete
        assert "not complete" in repr(cache)
        np.testing.assert_array_equal(np.asarray(cache.X), EXPECTED[:4])

    def test_writing_goes_on_after_the_complete_shards(self, tmp_path):
        self.interrupt(tmp_path, 6)
        np.testing.assert_array_equal(np.asarray(write(tmp_path).X), EXPECTED)

    def test_a_complete_cache_to_which_rows_are_added_is_not_complete_meanwhile(self, tmp_path):
        write(tmp_path, n_rows=4)
        self.interrupt(tmp_path, 4)
        cache = FeatureCache(tmp_path, allow_partial=True)
        assert not cache.complete
        np.testing.assert_array_equal(np.asarray(cache.X), np.concatenate([EXPECTED[:4]] * 2))

    @pytest.mark.parametrize("n_files", [0, 2])
    def test_an_unfinished_shard_is_removed(self, tmp_path, n_files):
        self.interrupt(tmp_path, 4)
        leftover = tmp_path / "unfinished-00001"
        leftover.mkdir()
        for number in range(n_files):
            (leftover / f"exit{number}.features.npy").write_bytes(b"\x93NUMPY half a file")
        np.testing.assert_array_equal(np.asarray(write(tmp_path).X), EXPECTED)
        assert not leftover.exists()

    def test_a_manifest_cut_short_by_a_kill_is_no_obstacle(self, tmp_path):
        (tmp_path / "manifest.json.tmp").write_text('{"form')
        np.testing.assert_array_equal(np.asarray(write(tmp_path).X), EXPECTED)

    def test_no_cache(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no cache at"):
            FeatureCache(tmp_path)

    def test_deleting_damaged_shards_and_writing_again_repairs(self, tmp_path):
        """What the error message of a damaged shard advises."""
        write(tmp_path)
        for number in (1, 2):
            shutil.rmtree(tmp_path / f"shard-0000{number}")
        assert FeatureCache(tmp_path, allow_partial=True).n_rows == 4
        assert not FeatureCache(tmp_path, allow_partial=True).complete
        np.testing.assert_array_equal(np.asarray(write(tmp_path).X), EXPECTED)


def flip(position):
    def damage(file):
        content = bytearray(file.read_bytes())
        content[position] ^= 0x10
        file.write_bytes(content)

    return damage


def truncate(file):
    os.truncate(file, file.stat().st_size - 1)


def empty(file):
    file.write_bytes(b"")


def remove(file):
    file.unlink()


def pickle_array(file):
    np.save(file, np.array([object, {}], dtype=object), allow_pickle=True)


def write_npz(file):
    with file.open("wb") as opened:
        np.savez(opened, a=np.zeros(3))


def replace_dtype(file):
    np.save(file, np.load(file).astype(np.float64) + 1)


def replace_shape(file):
    np.save(file, np.load(file)[None])


def replace_order(file):
    np.save(file, np.asfortranarray(np.load(file)[::-1]))


def take_from_next_shard(file):
    neighbour = file.parent.with_name("shard-00001") / file.name
    shutil.copy(neighbour, file)


class TestDamagedFiles:
    @pytest.mark.parametrize("name", ["exit0.features.npy", "exit1.logits.npy", "y.npy"])
    @pytest.mark.parametrize(
        "damage",
        [
            truncate,
            empty,
            remove,
            pickle_array,
            write_npz,
            replace_dtype,
            replace_shape,
            replace_order,
            take_from_next_shard,
            pytest.param(flip(0), id="flip_magic"),
            pytest.param(flip(-1), id="flip_last"),
            pytest.param(flip(128), id="flip_first"),
        ],
    )
    def test_each_is_named(self, tmp_path, name, damage):
        write(tmp_path, y=np.arange(N_ROWS))
        damage(tmp_path / "shard-00000" / name)
        cache = FeatureCache(tmp_path)
        with pytest.raises(ValueError, match=rf"the shard '.*shard-00000' is damaged: {name}: .* Delete that shard"):
            cache.y if name == "y.npy" else np.asarray(cache.X)
        with pytest.raises(ValueError, match=rf"shard-00000' is damaged: {name}"):
            cache.verify()

    def test_rows_of_other_shards_can_be_read(self, tmp_path):
        write(tmp_path)
        truncate(tmp_path / "shard-00000" / "exit0.features.npy")
        X = FeatureCache(tmp_path).X
        np.testing.assert_array_equal(np.asarray(X[4:]), EXPECTED[4:])
        with pytest.raises(ValueError, match="shard-00000' is damaged"):
            np.asarray(X[3:])

    def test_damage_after_a_file_was_read_is_found_by_verify(self, tmp_path):
        cache = write(tmp_path)
        cache.X.features(0)
        cache.verify()
        flip(-1)(tmp_path / "shard-00002" / "exit0.features.npy")
        with pytest.raises(ValueError, match=r"shard-00002' is damaged: exit0\.features\.npy: its checksum differs"):
            cache.verify()

    def test_damage_that_leaves_no_trace_in_the_times_is_found_by_verify(self, tmp_path):
        """A disk that forgets writes no new time."""
        cache = write(tmp_path)
        cache.verify()
        file = tmp_path / "shard-00002" / "exit0.features.npy"
        status = file.stat()
        flip(-1)(file)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(ValueError, match=r"shard-00002' is damaged: exit0\.features\.npy: its checksum differs"):
            cache.verify()

    @pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing:UserWarning")
    def test_no_flipped_byte_gives_other_data(self, tmp_path):
        """Every byte of every file of a small cache, in turn: refused by name, or without effect."""
        path = tmp_path / "cache"
        y = np.arange(4)
        write(path, n_rows=4, shard_rows=2, y=y)
        files = [path / "manifest.json", *(path / "shard-00001").iterdir()]
        assert len(files) == 6
        for file in files:
            content = file.read_bytes()
            for position in range(len(content)):
                damaged = bytearray(content)
                damaged[position] ^= 1 << (position % 7)
                file.write_bytes(damaged)
                try:
                    cache = FeatureCache(path)
                    np.testing.assert_array_equal(np.asarray(cache.X), EXPECTED[:4])
                    np.testing.assert_array_equal(cache.y, y)
                    assert (cache.layout, cache.origin) == (LAYOUT, ORIGIN)
                except ValueError as error:
                    named = "the manifest" if file.name == "manifest.json" else f"shard-00001' is damaged: {file.name}"
                    assert named in str(error), position  # noqa: PT017
            file.write_bytes(content)


class TestDamagedFolders:
    def test_exchanged_shards(self, tmp_path):
        write(tmp_path)
        (tmp_path / "shard-00000").rename(tmp_path / "aside")
        (tmp_path / "shard-00001").rename(tmp_path / "shard-00000")
        (tmp_path / "aside").rename(tmp_path / "shard-00001")
        with pytest.raises(ValueError, match=r"shard-00000' is damaged: shard\.json: it says that it is shard 1"):
            FeatureCache(tmp_path)

    def test_missing_first_shard(self, tmp_path):
        write(tmp_path)
        shutil.rmtree(tmp_path / "shard-00000")
        with pytest.raises(ValueError, match=r"shard-00001' is damaged: shard\.json: it says that it is shard 1"):
            FeatureCache(tmp_path)

    @pytest.mark.parametrize("n_left", [2, 0])
    def test_missing_last_shards(self, tmp_path, n_left):
        write(tmp_path)
        for number in range(n_left, 3):
            shutil.rmtree(tmp_path / f"shard-0000{number}")
        message = f"has {4 * n_left} rows but its manifest promises 10: shard-0000{n_left} is missing"
        with pytest.raises(ValueError, match=message):
            FeatureCache(tmp_path)
        cache = FeatureCache(tmp_path, allow_partial=True)
        assert not cache.complete
        with pytest.raises(ValueError, match=message):
            cache.verify()

    def test_a_file_with_a_name_like_that_of_a_shard(self, tmp_path):
        write(tmp_path)
        (tmp_path / "shard-00001.zip").touch()
        np.testing.assert_array_equal(np.asarray(FeatureCache(tmp_path).X), EXPECTED)

    @pytest.mark.parametrize("damage", [empty, remove, truncate])
    def test_damaged_description_of_a_shard(self, tmp_path, damage):
        write(tmp_path)
        damage(tmp_path / "shard-00001" / "shard.json")
        with pytest.raises(ValueError, match=r"shard-00001' is damaged: shard\.json"):
            FeatureCache(tmp_path)

    def test_a_description_that_lacks_a_file(self, tmp_path):
        write(tmp_path)
        file = tmp_path / "shard-00001" / "shard.json"
        description = read_json(file)
        del description["files"]["exit1.logits.npy"]
        write_json(file, description)
        with pytest.raises(
            ValueError, match=r"shard-00001' is damaged: exit1\.logits\.npy: the shard has no such file"
        ):
            np.asarray(FeatureCache(tmp_path).X)

    def test_a_writer_does_not_go_on_behind_a_damaged_shard(self, tmp_path):
        write(tmp_path)
        empty(tmp_path / "shard-00001" / "shard.json")
        with pytest.raises(ValueError, match=r"shard-00001' is damaged: shard\.json"):
            CacheWriter(tmp_path, LAYOUT, origin=ORIGIN)


class TestManifest:
    @pytest.mark.parametrize(
        "content", ["", "{", "[]", "null", "3", "{}", '{"format": 1}', '{"format": "one"}', "\x00"]
    )
    def test_broken(self, tmp_path, content):
        write(tmp_path)
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=r"the manifest of the cache '.*' cannot be used"):
            FeatureCache(tmp_path)

    def test_of_a_newer_format(self, tmp_path):
        write(tmp_path)
        file = tmp_path / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"format": FORMAT_VERSION + 1}))
        with pytest.raises(ValueError, match=rf"has format {FORMAT_VERSION + 1}, written by a newer skexit; upgrade"):
            FeatureCache(tmp_path)


class TestAnotherCacheInTheFolder:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"origin": {"model": "other", "data": "b"}}, "model"),
            ({"origin": {"model": "other", "data": "other"}}, r"data \('b' and 'other'\), model"),
            ({"origin": {"model": "a"}}, "data"),
            ({"origin": {"model": "a", "data": "b", "transform": "c"}}, "transform"),
            ({"dtype": "float16"}, "dtype"),
            (
                {"layout": LAYOUT.replace(n_features=[3, 2], feature_maps=LAYOUT.feature_maps, pools=LAYOUT.pools)},
                "n_features of the layout",
            ),
            ({"layout": LAYOUT.replace(costs=[10, 31], network_cost=30)}, "costs of the layout"),
            ({"layout": LAYOUT.replace(head_costs=[1, 3])}, "head_costs of the layout"),
            ({"layout": LAYOUT.replace(exit_names=["layer1", "layer3"])}, "exit_names of the layout"),
            ({"layout": LAYOUT.replace(pools=["max", None])}, "pools of the layout"),
            ({"layout": LAYOUT.replace(cost_unit=None)}, "cost_unit of the layout"),
            (
                {"dtype": "float16", "layout": LAYOUT.replace(classes=["yes", "no"])},
                r"classes of the layout \(.*\), dtype",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_differs_is_named(self, tmp_path, change, named):
        write(tmp_path)
        arguments = {"layout": LAYOUT, "origin": ORIGIN} | change
        with pytest.raises(ValueError, match=rf"holds a cache that differs in {named} \(.*\)\. Give another folder"):
            CacheWriter(tmp_path, **arguments)
        np.testing.assert_array_equal(np.asarray(FeatureCache(tmp_path).X), EXPECTED)

    @pytest.mark.parametrize("name", ["layout", "dtype"])
    def test_origins_may_have_any_name(self, tmp_path, name):
        write(tmp_path, origin={name: "a"})
        with pytest.raises(ValueError, match=f"differs in {name}"):
            CacheWriter(tmp_path, LAYOUT, origin={name: "b"})
        with pytest.raises(ValueError, match="differs in costs of the layout"):
            CacheWriter(tmp_path, LAYOUT.replace(costs=[10, 31], network_cost=30), origin={name: "a"})
        with pytest.raises(ValueError, match="differs in dtype"):
            CacheWriter(tmp_path, LAYOUT, origin={name: "a"}, dtype="float16")

    def test_a_folder_of_other_files_is_refused(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(ValueError, match="is not empty and holds no cache; give a new or empty folder"):
            CacheWriter(tmp_path, LAYOUT, origin=ORIGIN)
        assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


class TestRefusedBatches:
    """A batch that is refused leaves no trace, also when the error is caught."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"logits": [None, np.zeros((4, 3))]}, r"the logits of exit 1 have shape \(4, 3\); the layout says 2"),
            ({"logits": [np.zeros((4, 2))] * 2}, r"the logits of exit 0 have shape \(4, 2\); the layout says 0"),
            ({"features": [np.zeros((4, 3)), None]}, r"the features of exit 1 have shape \(\); the layout says 1"),
            ({"logits": [None, np.zeros((3, 2))]}, r"have different numbers of rows: \[3, 4\]"),
            ({"y": [0, 1, 0]}, r"have different numbers of rows: \[3, 4\]"),
            ({"y": None}, "some batches have labels and others none"),
            ({"y": np.eye(4)}, r"labels have shape \(4, 4\) and dtype float64; .* such as labels.argmax\(1\) if"),
            ({"y": [None, 1, 0, 1]}, r"labels have shape \(4,\) and dtype object"),
            (
                {"features": [np.zeros((4, 3)), np.full((4, 1), -7e4)]},
                r"exit1\.features has values up to 7e\+04, too large for float16; extract with dtype='float32'",
            ),
        ],
    )
    def test_refused(self, tmp_path, change, message):
        logits, features = part(values()[0], slice(4)), part(values()[1], slice(4))
        good = {"logits": logits, "features": features, "y": [0, 1, 1, 0]}
        with CacheWriter(tmp_path, LAYOUT, origin=ORIGIN, dtype="float16") as writer:
            writer.append(**good)
            with pytest.raises(ValueError, match=message):
                writer.append(**good | change)
            writer.append(**good)
        cache = FeatureCache(tmp_path)
        np.testing.assert_array_equal(np.asarray(cache.X), np.tile(EXPECTED[:4].astype(np.float16), (2, 1)))
        assert cache.y.tolist() == [0, 1, 1, 0] * 2

    def test_infinity_that_the_network_gave_is_kept(self, tmp_path):
        """It is refused when a policy is fitted; a cache keeps what it is given."""
        with CacheWriter(tmp_path, LAYOUT, origin=ORIGIN, dtype="float16") as writer:
            writer.append([None, np.full((4, 2), np.inf)], [np.zeros((4, 3)), np.zeros((4, 1))])
        assert np.isinf(FeatureCache(tmp_path).X.logits(1)).all()

    def test_dtype(self, tmp_path):
        with pytest.raises(ValueError, match="dtype='float64' must be 'float32' or 'float16'"):
            CacheWriter(tmp_path, LAYOUT, origin=ORIGIN, dtype="float64")
