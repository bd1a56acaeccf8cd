"""Whatever labels a writer accepts, the reader gives back; what it could not give back is refused when it is written."""

import tempfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skexit import ExitLayout, FeatureCache
from skexit.cache import CacheWriter

LAYOUT = ExitLayout([2], [0])

scalars = st.one_of(
    st.text(max_size=4), st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.binary(max_size=2)
)
batches = st.one_of(
    st.lists(scalars, min_size=1, max_size=3),
    st.lists(st.text(max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(-(2**64), 2**64), min_size=1, max_size=3),
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3).map(lambda y: np.array(y, np.uint64)),
    st.lists(st.text(max_size=4), min_size=1, max_size=3).map(pd.Series),
)


def write(path, batches):
    for y in batches:
        with CacheWriter(path, LAYOUT, origin={}, shard_rows=1) as writer:
            writer.append([np.zeros((len(y), 2))], [None], y)


@settings(max_examples=40)
@given(st.lists(batches, min_size=1, max_size=3))
def test_what_is_accepted_is_given_back(batches):
    with tempfile.TemporaryDirectory() as path:
        accepted = []
        for y in batches:
            try:
                write(path, [y])
            except ValueError as error:
                assert "labels" in str(error)  # noqa: PT017
            else:
                accepted.extend(y)
        if accepted:
            given_back = FeatureCache(path, allow_partial=True).y.tolist()
            assert all(a == b or a != a for a, b in zip(accepted, given_back, strict=True))


@pytest.mark.parametrize("y", [np.array([[1.0], [0.0]]), [["b"], ["a"]], [[1], [0]], pd.DataFrame({"y": ["b", "a"]})])
def test_a_column_of_labels(y, tmp_path):
    write(tmp_path / "cache", [y])
    assert FeatureCache(tmp_path / "cache").y.tolist() == np.asarray(y).ravel().tolist()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([[0, 1], ["a", "b"]], "labels are strings, but those of the rows before are integers"),
        ([[0.5], [1]], "labels are integers, but those of the rows before are floats"),
        ([[0, 1], None], "some batches have labels and others none"),
        ([["a", 1]], "the value 1, which is kept as '1'; give labels of one type"),
        ([[2**53 + 1, 0.5]], "9007199254740993, which is kept as"),
        ([["a\0"]], r"which is kept as 'a'"),
        ([[2**63]], r"give integers below 2\*\*63, or strings"),
        ([[None, 1]], "dtype object; give one number or string for each row"),
    ],
)
def test_what_is_refused(tmp_path, batches, message):
    def append(y):
        with CacheWriter(tmp_path, LAYOUT, origin={}, shard_rows=1) as writer:
            writer.append([np.zeros((1 if y is None else len(y), 2))], [None], y)

    for y in batches[:-1]:
        append(y)
    with pytest.raises(ValueError, match=message):
        append(batches[-1])
