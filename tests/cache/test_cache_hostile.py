"""Files made to harm: whatever they say, there is a clear error, soon, and nothing else is read or written."""

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from caches import EXPECTED, LAYOUT, N_ROWS, ORIGIN, append_rows, read_json, write_cache

from skexit import FeatureCache
from skexit.cache import CacheWriter
from skexit.cache._array_files import ArrayFile, checksum
from skexit.cache._json_files import write_json

HUGE = 2**62
JSON_VALUES = [None, True, -1, 1.5, HUGE, 10**4000, "", "x", "../x", [], [None], [-1], ["x", 1], {}, {"x": {}}, [[[]]]]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original")
    write_cache(path, y=np.arange(N_ROWS))
    return path


@pytest.fixture
def path(original, tmp_path):
    shutil.copytree(original, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def little_memory():
    """An error may take a few times the memory of the largest file that is read, not what a file asks for."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6


def read_everything(path):
    cache = FeatureCache(path)
    cache.verify()
    return np.asarray(cache.X), cache.y


def change(file, keys, value):
    """Replace a value in a JSON file, and make its checksum right; says whether that changed anything."""
    content = read_json(file)
    place = content
    for key in keys[:-1]:
        place = place[key]
    before, place[keys[-1]] = place[keys[-1]], value
    write_json(file, content)
    return repr(before) != repr(value)


def forget_shards(path):
    """Leave the descriptions of the shards to their own checksums."""
    change(path / "manifest.json", ("shards",), None)


COSTS_AND_NAMES = [("cost_unit",), ("costs",), ("network_cost",), ("head_costs",), ("classes",), ("feature_maps",)]
COSTS_AND_NAMES += [("exit_names",), ("pools",)]
MANIFEST_KEYS = [
    ("complete",),
    ("n_rows",),
    ("dtype",),
    ("origin",),
    ("origin", "model"),
    ("fingerprint",),
    ("shards",),
    ("shards", 1),
    ("layout",),
    ("layout", "n_logits"),
    ("layout", "n_logits", 1),
    ("layout", "n_features"),
    ("layout", "n_features", 0),
    ("layout", "costs"),
    ("layout", "costs", 0),
    ("layout", "network_cost"),
    ("layout", "head_costs"),
    ("layout", "feature_maps"),
    ("layout", "feature_maps", 0),
    ("layout", "exit_names"),
    ("layout", "exit_names", 0),
    ("layout", "pools"),
    ("layout", "pools", 0),
    ("layout", "cost_unit"),
    ("layout", "classes"),
    ("layout", "classes", 0),
]


@pytest.mark.parametrize("keys", MANIFEST_KEYS, ids=lambda keys: "-".join(map(str, keys)))
def test_any_value_in_the_manifest(path, keys):
    file = path / "manifest.json"
    before = file.read_bytes()
    for value in JSON_VALUES:
        if not change(file, keys, value):
            continue
        try:
            X, _ = read_everything(path)
        except ValueError as error:
            assert any(part in str(error) for part in ("the manifest of the cache", "is damaged", "has not finished"))  # noqa: PT017
        else:
            # Names, units and costs say what the rows mean: another one that makes sense cannot be told from the true.
            assert keys[0] in ("origin", "shards") or keys[1:2] in COSTS_AND_NAMES, value
            np.testing.assert_array_equal(X, EXPECTED)
        file.write_bytes(before)


SHARD_KEYS = [
    ("number",),
    ("n_rows",),
    ("cache",),
    ("files",),
    ("files", "y.npy"),
    ("files", "exit0.features.npy"),
    ("files", "exit0.features.npy", "shape"),
    ("files", "exit0.features.npy", "shape", 0),
    ("files", "exit0.features.npy", "shape", 1),
    ("files", "exit0.features.npy", "dtype"),
    ("files", "exit0.features.npy", "crc32"),
    ("files", "y.npy", "shape"),
    ("files", "y.npy", "shape", 0),
    ("files", "y.npy", "dtype"),
]


@pytest.mark.parametrize("keys", SHARD_KEYS, ids=lambda keys: "-".join(map(str, keys)))
def test_any_value_in_a_shard(path, keys):
    forget_shards(path)
    for value in [*JSON_VALUES, "O", "|O8", "V8", "f4,f4", "<f3", "<U99999999", "<M8"]:
        write_json(path / "shard-00001" / "shard.json", read_json(path / "shard-00000" / "shard.json") | {"number": 1})
        change(path / "shard-00001" / "shard.json", keys, value)
        with pytest.raises(ValueError, match=r"shard-00001' is damaged"):
            read_everything(path)


class TestNames:
    @pytest.mark.parametrize(
        "name", ["../../thesis.npy", "/etc/passwd", "..", "", "shard.json", "exit7.features.npy", "a\x00b"]
    )
    def test_files_that_are_none_of_the_cache(self, path, name):
        np.save(path.parent / "thesis.npy", np.zeros((4, 3), np.float32))
        description = read_json(path / "shard-00000" / "shard.json")
        description["files"][name] = description["files"]["exit0.features.npy"]
        write_json(path / "shard-00000" / "shard.json", description)
        with pytest.raises(ValueError, match=r"shard\.json: it names .*, which is no file of this cache"):
            FeatureCache(path)

    @pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", "/dev/stdin", "manifest.json", "missing", "pipe"])
    @pytest.mark.parametrize("name", ["manifest.json", "shard-00001/shard.json", "shard-00001/y.npy"])
    def test_links_to_something_else(self, path, name, target):
        """Links are followed, as stores of versions make them; but only to regular files, which must be the right ones."""
        os.mkfifo(path.parent / "pipe")
        (path / name).unlink()
        (path / name).symlink_to(target if target.startswith("/") else path.parent / target)
        with pytest.raises((ValueError, FileNotFoundError), match=r"is damaged|cannot be used|there is no cache"):
            read_everything(path)

    def test_a_link_to_the_file_itself(self, path):
        file = path / "shard-00001" / "y.npy"
        file.rename(path.parent / "elsewhere")
        file.symlink_to(path.parent / "elsewhere")
        np.testing.assert_array_equal(read_everything(path)[0], EXPECTED)

    def test_a_link_in_a_circle(self, path):
        (path / "shard-00001" / "y.npy").unlink()
        (path / "shard-00001" / "y.npy").symlink_to("y.npy")
        with pytest.raises(ValueError, match=r"y\.npy: there is no such file"):
            read_everything(path)

    def test_nothing_is_written_through_a_link(self, path):
        diary = path.parent / "diary.txt"
        diary.write_text("dear diary")
        (path / "manifest.json.tmp").symlink_to(diary)
        with CacheWriter(path, LAYOUT, origin=ORIGIN) as writer:
            append_rows(writer)
        assert diary.read_text() == "dear diary"

    def test_nothing_is_removed_through_a_link(self, path):
        album = path.parent / "album"
        album.mkdir()
        (album / "photo").touch()
        (path / "unfinished-00003").symlink_to(album)
        with pytest.raises(OSError, match="symbolic link"):
            CacheWriter(path, LAYOUT, origin=ORIGIN)
        assert (album / "photo").exists()


@pytest.mark.usefixtures("little_memory")
class TestArrays:
    def header(self, shape, descr="<f4", fortran=False):
        return f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"

    def write(self, path, header, version=(1, 0), length=None):
        file = path / "shard-00000" / "exit0.features.npy"
        data = file.read_bytes()[-48:]
        text = header.encode()
        length = len(text) if length is None else length
        file.write_bytes(
            b"\x93NUMPY" + bytes(version) + length.to_bytes(2 if version == (1, 0) else 4, "little") + text + data
        )

    @pytest.mark.parametrize(
        "shape",
        [(4, HUGE), (HUGE, 4), (HUGE, HUGE), (-4, 3), (4, -3), (), (4,), (4, 3, 1), (0, 3), (5, 3), (4.0, 3), "4"],
    )
    def test_shape(self, path, shape):
        self.write(path, self.header(shape))
        with pytest.raises(ValueError, match=r"shard-00000' is damaged: exit0\.features\.npy"):
            read_everything(path)

    @pytest.mark.parametrize(
        "descr", ["|O", "O", "<U99999999", "<f8", ">f4", "V4", [("a", "<f4")], "f4,f4", "<M8[s]", 7]
    )
    def test_dtype(self, path, descr):
        self.write(path, self.header((4, 3), descr))
        with pytest.raises(ValueError, match=r"shard-00000' is damaged: exit0\.features\.npy"):
            read_everything(path)

    @pytest.mark.parametrize(
        "header",
        ["(" * 5_000, "[" * 60_000, "{" + "'a':{" * 1_000, "__import__('os').abort()", "9" * 9_000, "", "\x00" * 20],
    )
    @pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0), (9, 9)])
    def test_header(self, path, header, version):
        self.write(path, header, version)
        with pytest.raises(ValueError, match=r"shard-00000' is damaged: exit0\.features\.npy"):
            read_everything(path)

    def test_a_header_of_four_gigabytes(self, path):
        self.write(path, self.header((4, 3)), version=(2, 0), length=2**32 - 1)
        with pytest.raises(ValueError, match=r"shard-00000' is damaged: exit0\.features\.npy"):
            read_everything(path)

    def test_more_after_the_end(self, path):
        with (path / "shard-00000" / "exit0.features.npy").open("ab") as file:
            file.write(b"more")
        with pytest.raises(ValueError, match=r"exit0\.features\.npy: it has 52 bytes of 48"):
            read_everything(path)

    @pytest.mark.parametrize("n_rows", [2**20, 2**40, HUGE])
    @pytest.mark.parametrize("present", [True, False])
    def test_rows_that_are_not_there(self, path, n_rows, present):
        """An index of all rows takes memory before the first is read."""
        file = path / "shard-00000" / "shard.json"
        description = read_json(file)
        description["n_rows"] = n_rows
        for described in description["files"].values():
            described["shape"][0] = n_rows
        write_json(file, description)
        forget_shards(path)
        if not present:
            for array in (path / "shard-00000").glob("*.npy"):
                array.unlink()
        with pytest.raises(ValueError, match=r"shard-00000' is damaged: shard\.json"):
            FeatureCache(path, allow_partial=True)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("exit0.features.npy", lambda array: array[:3]),
        ("exit0.features.npy", lambda array: array[:, :1]),
        ("exit0.features.npy", lambda array: array[:, 0]),
        ("exit0.features.npy", lambda array: array.astype(np.float16)),
        ("exit1.logits.npy", lambda array: np.hstack([array, array])),
        ("y.npy", lambda array: array[:3]),
        ("y.npy", lambda array: array[:, None]),
    ],
)
def test_a_file_and_its_description_that_do_not_fit_the_cache(path, name, other):
    """Each is right by itself."""
    array = other(np.load(path / "shard-00000" / name))
    np.save(path / "shard-00000" / name, array)
    description = read_json(path / "shard-00000" / "shard.json")
    description["files"][name] = ArrayFile(array.shape, array.dtype, checksum(array)).to_dict()
    write_json(path / "shard-00000" / "shard.json", description)
    forget_shards(path)
    with pytest.raises(ValueError, match=rf"shard-00000' is damaged: {name}: shape"):
        FeatureCache(path)


JSON_BOMBS = {
    "nested lists": b"[" * 10**6,
    "nested objects": b'{"a":' * 10**6,
    "nested and closed": b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "giant int": b'{"format": ' + b"9" * 10**6 + b"}",
    "NaN": b'{"format": NaN}',
    "infinity": b'{"n_rows": -Infinity}',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "lone surrogate": b'{"a": "\\ud800"}',
    "too long": b" " * (20 * 2**20),
    "zeros": bytes(10**6),
    "format 0": b'{"format": 0}',
    "format true": b'{"format": true}',
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", JSON_BOMBS)
@pytest.mark.parametrize("file", ["manifest.json", "shard-00001/shard.json"])
def test_json(path, name, file):
    (path / file).write_bytes(JSON_BOMBS[name])
    with pytest.raises(
        ValueError, match=r"the manifest of the cache .* cannot be used|shard-00001' is damaged: shard\.json"
    ):
        FeatureCache(path)


def test_json_without_end(path):
    """What makes sense is refused, too, when it is longer than any description is."""
    with (path / "manifest.json").open("a") as file:
        file.write(" " * 2**24)
    with pytest.raises(ValueError, match="cannot be used: it has more than 16777216 bytes"):
        FeatureCache(path)


@pytest.mark.usefixtures("little_memory")
def test_a_class_as_long_as_all_others_together(path):
    """In an array of strings each takes the length of the longest."""
    change(path / "manifest.json", ("layout", "classes"), ["x" * 10**5, *map(str, range(10**4))])
    with pytest.raises(ValueError, match="classes of its layout are too long"):
        FeatureCache(path)


def test_a_shard_of_a_newer_format(path):
    file = path / "shard-00001" / "shard.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(ValueError, match=r"shard-00001' is damaged.* has format 2, written by a newer skexit; upgrade"):
        FeatureCache(path)
