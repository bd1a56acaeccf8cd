"""Whatever happens to the files of a cache: the same data, or an error that says what is wrong.

``SKEXIT_FUZZ_EXAMPLES=10000 pytest tests/cache/test_cache_fuzz.py`` tries more than every run of the tests does.
"""

import json
import os
import shutil
import tracemalloc
import warnings

import numpy as np
import pytest
from caches import EXPECTED, LAYOUT, N_ROWS, ORIGIN, read_json, write_cache
from hypothesis import given, settings
from hypothesis import strategies as st

from skexit import FeatureCache
from skexit.cache._json_files import write_json

N_EXAMPLES = int(os.environ.get("SKEXIT_FUZZ_EXAMPLES", "100"))
LABELS = np.array(["no", "yes"] * (N_ROWS // 2))
FILES = ["manifest.json", *(f"shard-0000{number}/{name}" for number in range(3) for name in
         ("shard.json", "exit0.features.npy", "exit1.logits.npy", "exit1.features.npy", "y.npy"))]  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([2**31, 2**63]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
mutations = st.one_of(
    st.tuples(st.just("flip"), st.sampled_from(FILES), st.integers(0, 10**6), st.integers(1, 255)),
    st.tuples(st.just("overwrite"), st.sampled_from(FILES), st.integers(0, 10**6), st.binary(min_size=1, max_size=30)),
    st.tuples(st.just("truncate"), st.sampled_from(FILES), st.integers(0, 10**6)),
    st.tuples(st.just("extend"), st.sampled_from(FILES), st.binary(min_size=1, max_size=200)),
    st.tuples(st.just("remove"), st.sampled_from(FILES)),
    st.tuples(st.just("exchange"), st.sampled_from(FILES), st.sampled_from(FILES)),
    st.tuples(st.just("copy"), st.sampled_from(FILES), st.sampled_from(FILES)),
    st.tuples(st.just("exchange"), st.sampled_from(["shard-00000", "shard-00001"]), st.just("shard-00002")),
    st.tuples(st.just("remove"), st.sampled_from(["shard-00000", "shard-00001", "shard-00002"])),
    st.tuples(
        st.just("json"), st.sampled_from([file for file in FILES if file.endswith(".json")]),
        st.lists(st.integers(0, 20), min_size=1, max_size=5), json_values, st.booleans(),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "original"
    write_cache(path, y=LABELS)
    return path


def mutate(path, kind, name, *details):
    file = path / name
    if not file.exists():
        return
    if kind == "remove":
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    elif kind in ("exchange", "copy"):
        other = path / details[0]
        if other.exists() and other != file:
            kept = path / "kept"
            file.rename(kept)
            shutil.copy(other, file) if kind == "copy" else other.rename(file)
            kept.unlink() if kind == "copy" else kept.rename(other)
    elif kind == "json":
        replace_in_json(file, *details)
    else:
        content = bytearray(file.read_bytes())
        at = details[0] % max(1, len(content)) if kind != "extend" else len(content)
        if kind == "flip" and content:
            content[at] ^= details[1]
        elif kind == "truncate":
            del content[at:]
        else:
            content[at : at + len(details[-1])] = details[-1] if kind != "flip" else b""
        file.write_bytes(content)


def replace_in_json(file, steps, value, right_checksum):
    """Replace the value that some steps lead to; with a checksum that says that nothing happened, or not."""
    try:
        content = read_json(file)
    except ValueError:
        return  # an earlier mutation was here
    place, key = {"": content}, ""
    for step in steps:
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        place, key = inner, (sorted(inner) if isinstance(inner, dict) else range(len(inner)))[step % len(inner)]
    place[key] = value
    if right_checksum and isinstance(content, dict):
        write_json(file, content)
    else:
        file.write_text(json.dumps(content | {"crc32": 0}))


def forget_shards(file):
    """Leave the descriptions of shards to their own checksums, which a mutation may make right."""
    write_json(file, {key: value for key, value in read_json(file).items() if key != "shards"})


def check(path, trusted):
    """The same data, or an error; what a description with a right checksum says of meaning may be anything."""
    try:
        cache = FeatureCache(path)
        X, y = np.asarray(cache.X), cache.y
        cache.verify()
    except (ValueError, FileNotFoundError) as error:
        assert str(error)  # noqa: PT017
        return
    np.testing.assert_array_equal(X, EXPECTED)
    np.testing.assert_array_equal(y, LABELS)
    if trusted:
        assert (cache.layout, cache.origin) == (LAYOUT, ORIGIN)


@settings(max_examples=N_EXAMPLES)
@given(st.lists(mutations, min_size=1, max_size=3), st.booleans())
def test_mutated_caches(original, list_of_mutations, names_shards):
    path = original.parent / "mutated"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(original, path)
    if not names_shards:
        forget_shards(path / "manifest.json")
    for mutation in list_of_mutations:
        mutate(path, *mutation)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Reading `.npy` or `.npz` file required additional header parsing")
            check(path, trusted=all(kind != "json" or not details[-1] for kind, *details in list_of_mutations))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
