"""Whatever a writer accepts, the reader gives back; it says what to do about the rest."""

import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skexit import ExitLayout, FeatureCache
from skexit.cache import CacheWriter

DTYPES = ["?", "i1", "<i8", ">i4", "<u8", "<f2", ">f4", "<f8", "<c8", "<U3", "S2", "O", "<M8[s]"]


@st.composite
def _blocks(draw, n_rows, width):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtype.hasobject:
        return np.full((n_rows, width), draw(st.sampled_from([1, "a", 2**70])), dtype=object)
    block = draw(npst.arrays(dtype, (n_rows, 2 * width)))
    return draw(st.sampled_from([block[:, ::2], block[::-1, :width], np.asfortranarray(block[:, :width])]))


@given(st.data())
def test_blocks(data):
    n_rows, width = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 3))
    dtype = data.draw(st.sampled_from(["float32", "float16"]))
    origin = data.draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
    batches = data.draw(st.lists(_blocks(n_rows, width), min_size=1, max_size=3))
    layout = ExitLayout([0, width], [width, 0])
    accepted = []
    with tempfile.TemporaryDirectory() as folder:
        with CacheWriter(folder, layout, origin=origin, dtype=dtype, shard_rows=3) as writer:
            for block in batches:
                try:
                    writer.append([None, block], [block, None])
                except ValueError as error:
                    assert "give real numbers" in str(error) or "too large for" in str(error)  # noqa: PT017
                    assert block.dtype.kind in "cUSOM" or block.dtype.itemsize > 1
                else:
                    with np.errstate(over="raise"):
                        accepted.append(block.astype(dtype).astype("f4"))
        cache = FeatureCache(folder)
        cache.verify()
        found = np.asarray(cache.X)
        assert cache.origin == origin
        np.testing.assert_array_equal(found[:, :width], np.concatenate([np.empty((0, width)), *accepted]))
        np.testing.assert_array_equal(found[:, width:], found[:, :width])


def test_batches_without_rows(tmp_path):
    with CacheWriter(tmp_path, ExitLayout([2], [0]), origin={}) as writer:
        for n_rows in (0, 2, 0, 1, 0):
            writer.append([np.ones((n_rows, 2))], [None], y=[7] * n_rows, inputs=[1] * n_rows)
    cache = FeatureCache(tmp_path)
    assert cache.y.tolist() == [7, 7, 7]
    assert cache.y.dtype == np.int64
    with CacheWriter(tmp_path / "empty", ExitLayout([2], [0]), origin={}) as writer:
        writer.append([np.ones((0, 2))], [None], y=[])
    assert FeatureCache(tmp_path / "empty").n_rows == 0


@pytest.mark.parametrize("others", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize(("dtype", "cure"), [("float16", "dtype='float32'"), ("float32", "scale them down")])
def test_values_too_large_beside_others(tmp_path, others, dtype, cure):
    with (
        CacheWriter(tmp_path, ExitLayout([2], [0]), origin={}, dtype=dtype) as writer,
        pytest.raises(ValueError, match=rf"exit0.logits has values up to 1e\+300, too large for {dtype}; .*{cure}"),
    ):
        writer.append([np.array([[others, 1e300]])], [None])


@pytest.mark.parametrize("inputs", [[-1], [2**32], [0.5], [[1]], ["a"]])
def test_checksums_of_inputs(tmp_path, inputs):
    with (
        CacheWriter(tmp_path, ExitLayout([2], [0]), origin={}) as writer,
        pytest.raises(ValueError, match=r"give one integer below 2\*\*32 a row"),
    ):
        writer.append([np.zeros((1, 2))], [None], inputs=inputs)
