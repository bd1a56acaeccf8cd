"""Some of the exits of X."""

import pickle

import numpy as np
import pytest
from caches import write_cache
from hypothesis import given
from hypothesis import strategies as st
from instances import make_exits

from skexit import ExitLayout, ThresholdPolicy, stack_exits

X, y = make_exits(n_samples=30, n_exits=4, n_classes=3, random_state=0)
SELECTIONS = st.sets(st.integers(0, 3), min_size=1).map(sorted)


@given(SELECTIONS, st.booleans())
def test_columns_of_the_exits(exits, by_rows):
    rows = np.arange(30)[::-3] if by_rows else np.arange(30)
    selected = X[rows].select_exits(exits) if by_rows else X.select_exits(exits)
    assert selected.layout.n_exits == len(exits)
    for position, k in enumerate(exits):
        np.testing.assert_array_equal(selected.logits(position), X.logits(k)[rows])
        np.testing.assert_array_equal(selected.features(position), X.features(k)[rows])
    columns = np.concatenate([np.r_[X.layout.logit_columns(k), X.layout.feature_columns(k)] for k in exits])
    np.testing.assert_array_equal(np.asarray(selected), np.asarray(X)[rows][:, columns])
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(selected))), np.asarray(selected))


@given(SELECTIONS, st.data())
def test_selections_of_selections(exits, data):
    position = data.draw(st.sets(st.integers(0, len(exits) - 1), min_size=1).map(sorted))
    one = X.select_exits(exits).select_exits(position)
    other = X.select_exits([exits[p] for p in position])
    assert one.layout == other.layout
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_costs_are_without_other_heads():
    layout = ExitLayout([2] * 3, costs=[11, 32, 53], cost_unit="MACs", head_costs=[1, 2, 3])
    selected = stack_exits(np.zeros((4, 3, 2))).with_layout(layout).select_exits([1]).layout
    assert selected.costs.tolist() == [31]
    assert selected.head_costs.tolist() == [1]
    assert selected.network_cost == layout.network_cost == 50
    assert (selected.cost_unit, selected.classes) == ("MACs", None)


def test_cache(tmp_path):
    cache = write_cache(tmp_path)
    selected = cache.X[3:].select_exits([1])
    np.testing.assert_array_equal(selected.logits(0), cache.X.logits(1)[3:])
    assert selected.stored_dtype == cache.stored_dtype
    assert len(pickle.dumps(selected)) < len(pickle.dumps(cache.X[3:])) + 1000


def test_policies_take_them():
    selected = X.select_exits([1, 3])
    policy = ThresholdPolicy(budget=0.8).fit(selected, y)
    assert policy.costs_.tolist() == [0.5, 1]
    assert policy.predict(selected[:3]).shape == (3,)


@pytest.mark.parametrize("exits", [[], 2, [0.5], ["layer1"], [[0, 1]], [True, False], [False] * 4])
def test_no_list_of_exits(exits):
    with pytest.raises(ValueError, match=r"must be a list of exits, such as \[0, 3\]"):
        X.select_exits(exits)


@pytest.mark.parametrize("exits", [[-1], [0, 4], [2, -1]])
def test_no_such_exits(exits):
    with pytest.raises(ValueError, match="must be from 0 to 3: X has 4 exits, counted from 0"):
        X.select_exits(exits)


@pytest.mark.parametrize("exits", [[1, 1], [2, 0], [3, 1, 2, 1], [True, False, True, False]])
def test_the_error_gives_a_list_that_works(exits):
    with pytest.raises(ValueError, match=r"pass (the exits themselves, )?\[.*\]\.$") as error:
        X.select_exits(exits)
    cure = str(error.value).rpartition("[")[2].removesuffix("].")
    X.select_exits([int(number) for number in cure.split(",")])
