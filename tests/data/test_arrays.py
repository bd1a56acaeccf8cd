"""ExitArray stands for a plain two-dimensional array, whatever it is read from."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold, train_test_split
from sklearn.utils import indexable, resample, shuffle
from sklearn.utils._indexing import _safe_indexing
from sklearn.utils.validation import _num_samples

from skexit import ExitArray, ExitLayout, FeatureCache, stack_exits
from skexit.cache import CacheWriter
from skexit.data._overlays import LogitsSource

N_ROWS = 7
LAYOUT = ExitLayout([0, 3, 3], [2, 0, 4], costs=[1e6, 3e6, 4e6], cost_unit="MACs", classes=["cat", "dog", "eel"])
VALUES = np.random.default_rng(0).normal(size=(N_ROWS, LAYOUT.n_columns)).astype(np.float32)


def blocks(values, layout, part):
    columns = layout.logit_columns if part == "logits" else layout.feature_columns
    widths = layout.n_logits if part == "logits" else layout.n_features
    return [values[:, columns(k)] if width else None for k, width in enumerate(widths)]


def write_cache(path, values, layout, batch_rows=2, **options):
    with CacheWriter(path, layout, origin={"model": "test"}, shard_rows=3, **options) as writer:
        for start in range(0, len(values), batch_rows):
            batch = values[start : start + batch_rows]
            writer.append(blocks(batch, layout, "logits"), blocks(batch, layout, "features"))
    return FeatureCache(path)


def with_overlaid_logits(values, layout):
    """The same values, the logits of exit 2 laid over an array that lacks them, as ExitHeads does."""
    base = np.delete(values, layout.logit_columns(2), axis=1)
    lacking = ExitArray.from_array(base, layout.replace(n_logits=[0, 3, 0]))
    return ExitArray(LogitsSource(lacking, {2: values[:, layout.logit_columns(2)]}), layout)


@pytest.fixture(scope="module", params=["memory", "cache", "rows of a cache", "overlaid logits"])
def X(request, tmp_path_factory):
    """An ExitArray that stands for VALUES."""
    if request.param == "memory":
        return ExitArray.from_array(VALUES, LAYOUT)
    if request.param == "cache":
        return write_cache(tmp_path_factory.mktemp("cache"), VALUES, LAYOUT).X
    if request.param == "overlaid logits":
        return with_overlaid_logits(VALUES, LAYOUT)
    order = np.random.default_rng(1).permutation(2 * N_ROWS)
    shuffled = np.tile(VALUES, (2, 1))[order]
    where = [np.flatnonzero(order % N_ROWS == row)[0] for row in range(N_ROWS)]
    return write_cache(tmp_path_factory.mktemp("rows"), shuffled, LAYOUT).X[where]


ROW_INDICES = st.one_of(
    st.slices(N_ROWS),
    st.lists(st.integers(-N_ROWS, N_ROWS - 1), max_size=9),
    st.lists(st.integers(-N_ROWS, N_ROWS - 1), max_size=9).map(lambda rows: np.array(rows, dtype=np.intp)),
    st.lists(st.integers(0, N_ROWS - 1), max_size=9).map(lambda rows: np.array(rows, dtype=np.uint8)),
    st.lists(st.booleans(), min_size=N_ROWS, max_size=N_ROWS),
    st.lists(st.booleans(), min_size=N_ROWS, max_size=N_ROWS).map(np.array),
    st.lists(st.booleans(), min_size=N_ROWS, max_size=N_ROWS).map(pd.Series),
    st.just(...),
)
N_COLUMNS = LAYOUT.n_columns
COLUMN_INDICES = st.one_of(
    st.just(...),
    st.slices(N_COLUMNS),
    st.integers(-N_COLUMNS, N_COLUMNS - 1),
    st.lists(st.integers(-N_COLUMNS, N_COLUMNS - 1), min_size=1, max_size=5).map(np.array),
    st.lists(st.booleans(), min_size=N_COLUMNS, max_size=N_COLUMNS).map(np.array),
)


def plain(index):
    """What NumPy calls the same rows: an empty list selects none."""
    return np.array(index, dtype=np.intp) if isinstance(index, list) and not index else index


def assert_stands_for(X, values):
    assert isinstance(X, ExitArray)
    assert X.shape == values.shape
    assert len(X) == len(values)
    np.testing.assert_array_equal(np.asarray(X), values)
    for k in range(X.layout.n_exits):
        if X.layout.has_logits(k):
            np.testing.assert_array_equal(X.logits(k), values[:, X.layout.logit_columns(k)])
        else:
            assert X.logits(k) is None
        np.testing.assert_array_equal(X.features(k), values[:, X.layout.feature_columns(k)])


class TestIndexing:
    def test_whole_array(self, X):
        assert_stands_for(X, VALUES)
        assert X.ndim == 2
        assert X.dtype == np.float32 == np.asarray(X).dtype

    @given(first=ROW_INDICES, data=st.data())
    def test_rows_of_rows(self, X, first, data):
        expected = VALUES[plain(first)]
        taken = X[first]
        assert_stands_for(taken, expected)
        order = data.draw(st.permutations(range(len(expected))))
        assert_stands_for(taken[order], expected[np.array(order, dtype=np.intp)])

    @given(rows=ROW_INDICES)
    def test_rows_of_one_exit(self, X, rows):
        rows = slice(None) if rows is ... else rows
        expected = VALUES[plain(rows)]
        np.testing.assert_array_equal(X.logits(2, rows), expected[:, LAYOUT.logit_columns(2)])
        np.testing.assert_array_equal(X.features(2, rows), expected[:, LAYOUT.feature_columns(2)])

    @given(rows=ROW_INDICES)
    def test_rows_and_an_ellipsis(self, X, rows):
        assert_stands_for(X[rows if rows is ... else (rows, ...)], VALUES[plain(rows)])

    @given(rows=st.slices(N_ROWS) | st.integers(-N_ROWS, N_ROWS - 1), columns=COLUMN_INDICES)
    def test_slices_of_rows_and_columns(self, X, rows, columns):
        np.testing.assert_array_equal(X[rows, columns], VALUES[rows, columns])

    @given(rows=ROW_INDICES, columns=st.slices(N_COLUMNS) | st.integers(-N_COLUMNS, N_COLUMNS - 1))
    def test_rows_and_columns(self, X, rows, columns):
        np.testing.assert_array_equal(X[rows, columns], VALUES[plain(rows), columns])

    @given(data=st.data(), rows=st.lists(st.integers(-N_ROWS, N_ROWS - 1), min_size=1, max_size=5).map(np.array))
    def test_pairs_of_rows_and_columns(self, X, rows, data):
        columns = data.draw(
            st.lists(st.integers(-N_COLUMNS, N_COLUMNS - 1), min_size=len(rows), max_size=len(rows)).map(np.array)
        )
        np.testing.assert_array_equal(X[rows, columns], VALUES[rows, columns])
        np.testing.assert_array_equal(X[np.ix_(rows, columns)], VALUES[np.ix_(rows, columns)])

    @given(row=st.integers(-N_ROWS, N_ROWS - 1))
    @pytest.mark.parametrize("kind", [int, np.int64, np.array])
    def test_one_row(self, X, row, kind):
        np.testing.assert_array_equal(X[kind(row)], VALUES[row])

    def test_empty_tuple(self, X):
        assert_stands_for(X[()], VALUES)

    def test_iteration_gives_rows(self, X):
        np.testing.assert_array_equal(list(X), VALUES)

    @pytest.mark.parametrize(
        "key",
        [
            N_ROWS,
            -N_ROWS - 1,
            [0, N_ROWS],
            np.ones(N_ROWS - 1, bool),
            [0.5],
            None,
            [[0, 1]],
            (0, 0, 0),
            np.ones((7, 9), bool),
        ],
        ids=repr,
    )
    def test_no_such_rows(self, X, key):
        with pytest.raises(IndexError):
            X[key]

    @given(batch_size=st.integers(1, 2 * N_ROWS))
    def test_batches_cover_the_rows_in_order(self, X, batch_size):
        parts = list(X.batches(batch_size))
        np.testing.assert_array_equal(np.concatenate([np.asarray(X[part]) for part in parts]), VALUES)
        assert max(part.stop - part.start for part in parts) <= batch_size


@given(data=st.data())
def test_any_layout(data):
    """Splitting columns by the layout and joining them again loses nothing."""
    n_exits = data.draw(st.integers(1, 4))
    has_logits = data.draw(st.lists(st.booleans(), min_size=n_exits, max_size=n_exits))
    n_features = [data.draw(st.integers(0 if has else 1, 3)) for has in has_logits]
    layout = ExitLayout([2 * has for has in has_logits], n_features)
    values = np.random.default_rng(0).normal(size=(5, layout.n_columns))
    X = stack_exits(blocks(values, layout, "logits"), blocks(values, layout, "features"))
    assert X.layout == layout
    assert_stands_for(X, values)
    rows = data.draw(st.lists(st.integers(0, 4), max_size=6))
    assert_stands_for(X[rows], values[np.array(rows, dtype=np.intp)])


class TestScikitLearn:
    """What scikit-learn does to X with private helpers, pinned so that a new release cannot break it unseen."""

    @pytest.mark.parametrize(
        "key",
        [
            [0, 2, 5],
            [],
            (0, 2),
            np.array([6, 0]),
            np.array([0, 3], dtype=np.int32),
            [True, False] * 3 + [True],
            np.array([True, False] * 3 + [True]),
            slice(1, 5, 2),
            slice(None),
            pd.Series([1, 4]),
            pd.Index([1, 4]),
        ],
        ids=repr,
    )
    def test_safe_indexing_of_rows(self, X, key):
        taken = _safe_indexing(X, key)
        assert_stands_for(taken, _safe_indexing(VALUES, key))

    @pytest.mark.parametrize("key", [3, np.int64(3)], ids=repr)
    def test_safe_indexing_of_one_row(self, X, key):
        np.testing.assert_array_equal(_safe_indexing(X, key), VALUES[3])

    @pytest.mark.parametrize("key", [[0, 2], np.array([1]), slice(1, 3), [True, False, False] * 4], ids=repr)
    def test_safe_indexing_of_columns(self, X, key):
        np.testing.assert_array_equal(_safe_indexing(X, key, axis=1), _safe_indexing(VALUES, key, axis=1))

    def test_train_test_split(self, X):
        y = np.arange(N_ROWS) % 2
        lazy = train_test_split(X, y, stratify=y, random_state=0)
        eager = train_test_split(VALUES, y, stratify=y, random_state=0)
        for one, other in zip(lazy[:2], eager[:2], strict=True):
            assert_stands_for(one, other)

    def test_splits_shuffles_and_samples(self, X):
        for (train, test), expected in zip(KFold(3).split(X), KFold(3).split(VALUES), strict=True):
            np.testing.assert_array_equal(train, expected[0])
            np.testing.assert_array_equal(test, expected[1])
        assert_stands_for(shuffle(X, random_state=0), shuffle(VALUES, random_state=0))
        assert_stands_for(resample(X, random_state=0), resample(VALUES, random_state=0))
        assert indexable(X)[0] is X
        assert _num_samples(X) == N_ROWS


class TestConversion:
    @pytest.mark.parametrize("dtype", [np.float64, np.float16])
    def test_dtype(self, X, dtype):
        array = np.asarray(X[1:4], dtype=dtype)
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, VALUES[1:4].astype(dtype))

    def test_a_copy_is_a_copy(self, X):
        array = np.array(X)
        array[:] = 0
        np.testing.assert_array_equal(np.asarray(X), VALUES)

    def test_no_copy_where_the_array_is_in_memory(self):
        values = VALUES.copy()
        X = ExitArray.from_array(values, LAYOUT)
        assert np.shares_memory(np.asarray(X), values)
        assert np.shares_memory(np.asarray(X, copy=False), values)

    def test_no_copy_is_refused_where_rows_must_be_read(self, X):
        with pytest.raises(ValueError, match=r"needs a copy; pass copy=None"):
            np.asarray(X[[0, 1]], copy=False)

    def test_repr(self):
        assert repr(ExitArray.from_array(VALUES, LAYOUT)) == "ExitArray(7 rows, 12 columns, 3 exits, float32)"


class TestPickling:
    @pytest.mark.parametrize("dump", [pickle.dumps, lambda X: pickle.dumps(X[::-2])], ids=["all", "some rows"])
    def test_round_trip(self, X, dump):
        again = pickle.loads(dump(X))
        assert again.layout == X.layout
        assert_stands_for(again, VALUES if len(again) == N_ROWS else VALUES[::-2])

    def test_a_cache_pickles_as_path_plus_rows(self, tmp_path):
        values = np.zeros((20_000, LAYOUT.n_columns), dtype=np.float32)
        X = write_cache(tmp_path, values, LAYOUT, batch_rows=20_000).X
        X.features(0)
        rows = np.random.default_rng(0).permutation(20_000)[:15_000]
        assert len(pickle.dumps(X)) < 10_000
        assert len(pickle.dumps(X[rows])) < 10_000 + 8 * len(rows)

    def test_another_cache_in_its_place_is_refused(self, tmp_path):
        pickled = pickle.dumps(write_cache(tmp_path / "cache", VALUES, LAYOUT).X)
        (tmp_path / "cache").rename(tmp_path / "elsewhere")
        with CacheWriter(tmp_path / "cache", LAYOUT, origin={"model": "another"}) as writer:
            writer.append(blocks(VALUES, LAYOUT, "logits"), blocks(VALUES, LAYOUT, "features"))
        with pytest.raises(ValueError, match="is not the one this array was taken from"):
            pickle.loads(pickled)

    def test_workers_read_the_same_rows(self, tmp_path):
        X = write_cache(tmp_path, VALUES, LAYOUT).X
        parts = joblib.Parallel(n_jobs=2)(joblib.delayed(np.asarray)(X[part]) for part in X.batches(3))
        np.testing.assert_array_equal(np.concatenate(parts), VALUES)


class TestFrames:
    def test_round_trip(self, X):
        frame = X.to_frame()
        assert frame.columns.tolist() == LAYOUT.column_names()
        again = ExitArray.from_frame(frame)
        assert again.layout == LAYOUT
        assert again.dtype == np.float32
        assert_stands_for(again, VALUES)

    @pytest.mark.parametrize(
        "change",
        [
            lambda frame: frame.iloc[[4, 1]],
            lambda frame: frame[frame.index.isin([1, 4])].sort_index(ascending=False),
            lambda frame: frame.loc[[4, 1]].copy(),
            lambda frame: pickle.loads(pickle.dumps(frame)).loc[[4, 1]],
            lambda frame: pd.concat([frame.loc[[4]], frame.loc[[1]]]),
            lambda frame: _safe_indexing(frame, [4, 1]),
        ],
        ids=["iloc", "mask and sort", "copy", "pickle", "concat", "scikit-learn"],
    )
    def test_row_selection_keeps_costs_unit_and_classes(self, X, change):
        again = ExitArray.from_frame(change(X.to_frame()))
        assert again.layout == LAYOUT
        assert_stands_for(again, VALUES[[4, 1]])

    def test_index(self, X):
        index = [f"image {row}" for row in range(N_ROWS)]
        assert X.to_frame(index=index).index.tolist() == index

    def test_column_names_alone_give_the_widths(self, X):
        frame = X.to_frame()
        frame.attrs.clear()
        again = ExitArray.from_frame(frame)
        assert again.layout == ExitLayout(LAYOUT.n_logits, LAYOUT.n_features)
        assert_stands_for(again, VALUES)

    def test_another_layout_may_be_given(self, X):
        layout = LAYOUT.replace(costs=[1, 2, 3], cost_unit="ms")
        assert ExitArray.from_frame(X.to_frame(), layout).layout == layout


class TestStackExits:
    def test_three_dimensional_logits(self):
        logits = np.random.default_rng(0).normal(size=(5, 3, 2))
        X = stack_exits(logits)
        assert X.layout == ExitLayout([2, 2, 2], [0, 0, 0])
        np.testing.assert_array_equal(np.asarray(X), logits.reshape(5, 6))
        np.testing.assert_array_equal(X.logits(1), logits[:, 1])

    def test_lists_with_none(self):
        last, first = np.ones((5, 2)), np.zeros((5, 4))
        X = stack_exits([None, last], [first, None])
        assert X.layout == ExitLayout([0, 2], [4, 0])
        np.testing.assert_array_equal(np.asarray(X), np.hstack([first, last]))

    def test_features_alone(self):
        X = stack_exits(features=[np.zeros((5, 4)), np.ones((5, 1))])
        assert X.layout == ExitLayout([0, 0], [4, 1])

    def test_costs_unit_and_classes(self):
        X = stack_exits(np.zeros((5, 2, 2)), costs=[2, 3], cost_unit="ms", classes=["a", "b"])
        assert X.layout == ExitLayout([2, 2], [0, 0], costs=[2, 3], cost_unit="ms", classes=["a", "b"])

    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [("float32", "float32"), ("float16", "float16"), ("int64", "float64"), ("bool", "float64")],
    )
    def test_dtype(self, dtype, expected):
        X = stack_exits(np.ones((5, 2, 2), dtype=dtype))
        assert X.dtype == np.asarray(X).dtype == expected

    def test_the_array_is_contiguous_and_a_copy(self):
        logits = np.asfortranarray(np.zeros((5, 2, 2)))
        X = stack_exits(logits)
        logits[:] = 1
        assert np.asarray(X).flags.c_contiguous
        assert not np.asarray(X).any()

    @pytest.mark.parametrize(
        ("logits", "features", "message"),
        [
            (None, None, "there is nothing to stack; pass logits, probabilities or features."),
            ([], [], "there is nothing to stack; pass logits, probabilities or features."),
            (
                np.zeros((5, 2)),
                None,
                "logits has shape (5, 2); pass (n_samples, n_exits, n_classes), or a list of arrays of shape (n_samples, n_classes), one per exit.",
            ),
            ([np.zeros(5)], None, "logits[0] has shape (5,); pass one row per sample, for example by reshape(-1, 1)."),
            (None, [np.array([["a"]])], "features[0] has dtype <U1; pass numbers, for example by astype(float)."),
            (
                np.zeros((5, 2, 2)),
                [np.zeros((5, 1))],
                "logits has 2 exits and features 1; pass lists, with None where an exit has none.",
            ),
            (
                [np.zeros((5, 2)), np.zeros((4, 2))],
                None,
                "the arrays have different numbers of rows: [4, 5]. Give each exit the same rows, in one order.",
            ),
            ([None, None], None, "exit 0 has 0 logits and 0 features; give it logits or features, or remove the exit."),
            (
                [np.zeros((5, 2)), np.zeros((5, 3))],
                None,
                "n_logits=[2, 3]: every exit that has logits needs the same number. If an exit lacks a class, "
                "give stack_exits a column of -inf for it.",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, logits, features, message):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            stack_exits(logits, features)
        assert str(error.value) == message


def test_from_array_refuses_other_dimensions():
    with pytest.raises(ValueError, match=r"X has shape \(3,\); pass one row per sample"):
        ExitArray.from_array(np.zeros(3))


def test_from_array_keeps_an_exit_array(X):
    assert ExitArray.from_array(X) is X
    again = ExitArray.from_array(X, LAYOUT.replace(costs=[1, 2, 3]))
    assert again.layout.costs.tolist() == [1, 2, 3]
    assert_stands_for(again, VALUES)


def test_pandas_makes_a_frame_only_with_names():
    X = stack_exits(features=[np.ones((4, 2)), np.zeros((4, 3))])
    with pytest.raises(ValueError, match=r"^DataFrame constructor not properly called!$"):  # which the docstring names
        pd.DataFrame(X)
    assert list(X.to_frame().columns) == X.layout.column_names()
