"""ExitLayout: which columns are which exit's, what exits cost, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skexit import ExitArray, ExitHeads, ExitLayout, stack_exits
from skexit.data._layout import add_heads
from skexit.data._layout_of_input import FRAME_ATTRIBUTE, resolve_layout


@st.composite
def layouts(draw):
    """Any valid layout."""
    n_exits = draw(st.integers(1, 5))
    n_classes = draw(st.integers(2, 4))
    has_logits = draw(st.lists(st.booleans(), min_size=n_exits, max_size=n_exits))
    n_features = [draw(st.integers(0 if has else 1, 4)) for has in has_logits]
    steps = draw(st.lists(st.floats(0.1, 1e9), min_size=n_exits, max_size=n_exits))
    labels = st.lists(st.integers(-9, 9), min_size=n_classes, max_size=n_classes, unique=True)
    names = st.lists(st.text(min_size=1, max_size=3), min_size=n_classes, max_size=n_classes, unique=True)
    costs = draw(st.none() | st.just(np.cumsum(steps)))
    whole = np.arange(1, n_exits + 1) / n_exits if costs is None else costs
    texts = st.lists(st.text(max_size=3), min_size=n_exits, max_size=n_exits)
    pools = st.lists(st.none() | st.sampled_from(["avg", "avg+max"]), min_size=n_exits, max_size=n_exits)
    maps = [draw(st.none() | st.just((width - 1, 1, 1, 1) if width % 2 else (0, 1, width, 1))) for width in n_features]
    return ExitLayout(
        n_logits=[n_classes * has for has in has_logits],
        n_features=n_features,
        costs=costs,
        cost_unit=draw(st.sampled_from([None, "FLOPs", "ms"])),
        classes=draw(st.none() | labels | names),
        network_cost=draw(st.none() | st.floats(1e-3, 1e10)),
        head_costs=draw(st.none() | st.just(whole * draw(st.just(0) | st.floats(1e-9, 0.9)))),  # no subnormal numbers
        feature_maps=[place if width else None for place, width in zip(maps, n_features, strict=True)],
        exit_names=draw(st.none() | texts),
        pools=draw(st.none() | pools),
    )


@given(layouts())
def test_blocks_cover_the_columns_in_order(layout):
    slices = [part for k in range(layout.n_exits) for part in (layout.logit_columns(k), layout.feature_columns(k))]
    covered = [column for part in slices for column in range(layout.n_columns)[part]]
    assert covered == list(range(layout.n_columns))
    assert [layout.has_logits(k) for k in range(layout.n_exits)] == [width > 0 for width in layout.n_logits]


@given(layouts())
def test_column_names_tell_exit_part_and_number(layout):
    names = layout.column_names()
    for k in range(layout.n_exits):
        assert names[layout.logit_columns(k)] == [f"exit{k}__logit{j}" for j in range(layout.n_logits[k])]
        assert names[layout.feature_columns(k)] == [f"exit{k}__feature{j}" for j in range(layout.n_features[k])]


@given(layouts())
def test_column_names_give_the_widths_back(layout):
    found = ExitLayout.from_column_names(layout.column_names())
    assert (found.n_logits, found.n_features) == (layout.n_logits, layout.n_features)


@given(layouts())
def test_json_round_trip(layout):
    again = ExitLayout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again == layout
    assert hash(again) == hash(layout)
    assert again == layout
    np.testing.assert_array_equal(again.costs, layout.costs)


@given(layouts())
def test_replace_changes_only_what_it_names(layout):
    assert layout.replace() == layout
    whole = {"network_cost": layout.network_cost, "head_costs": layout.head_costs}
    dearer = layout.replace(costs=2 * layout.costs, **{name: 2 * cost for name, cost in whole.items()})
    np.testing.assert_allclose(dearer.cost_fractions, layout.cost_fractions)
    np.testing.assert_allclose(dearer.head_fractions, layout.head_fractions)
    assert dearer != layout
    assert dearer.replace(costs=layout.costs, **whole) == layout


@given(layouts())
def test_new_costs_are_no_fractions_of_the_old_network(layout):
    """In ms, say, instead of FLOPs."""
    new = layout.replace(costs=layout.costs / 7, cost_unit="ms")
    assert new.cost_fractions[-1] == 1
    assert not new.head_costs.any()


@given(layouts())
def test_costs_are_fractions_of_the_network(layout):
    np.testing.assert_allclose(layout.cost_fractions * layout.network_cost, layout.costs)
    np.testing.assert_allclose(layout.head_fractions * layout.network_cost, layout.head_costs)
    default = layout.replace(network_cost=None)
    np.testing.assert_allclose(default.cost_fractions[-1] - default.head_fractions[-1], 1)
    classes = [f"class {k}" for k in range(layout.n_classes or 2)]
    assert layout.replace(classes=classes).replace(classes=layout.classes) == layout


@given(layouts())
def test_heads_raise_costs_and_leave_the_network_alone(layout):
    multiply_adds = 10.0 * np.arange(1, layout.n_exits + 1)
    each = {"FLOPs": 2, "MACs": 1}.get(layout.cost_unit, 0)
    dearer = add_heads(layout, multiply_adds)
    np.testing.assert_allclose(dearer.costs, layout.costs + each * multiply_adds)
    np.testing.assert_allclose(dearer.head_costs, layout.head_costs + each * multiply_adds)
    assert dearer.network_cost == layout.network_cost


@pytest.mark.parametrize(
    "change",
    [
        {"n_features": [1, 3]},
        {"n_logits": [0, 3], "classes": None},
        {"costs": [1, 3]},
        {"cost_unit": "ms"},
        {"classes": [1, 0]},
        {"network_cost": 3},
        {"head_costs": [0, 0.5]},
        {"feature_maps": [None, (1, 2, 1, 1)]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_parameter_matters_for_equality(change):
    layout = ExitLayout([0, 2], [3, 3], costs=[1, 2], cost_unit="MACs", classes=[0, 1])
    assert layout.replace(**change) != layout
    assert layout.replace(**change) != layout


class TestFeatureMaps:
    LAYOUT = ExitLayout([0, 2], [20, 3], feature_maps=[(2, 2, 3, 3), None])

    def test_are_none_where_nothing_is_said(self):
        assert ExitLayout([0, 2], [20, 3]).feature_maps == (None, None)
        assert "feature_maps" not in ExitLayout([0, 2], [20, 3]).to_dict()
        assert "feature_maps" not in repr(ExitLayout([0, 2], [20, 3]))

    def test_are_told(self):
        assert self.LAYOUT.feature_maps == ((2, 2, 3, 3), None)
        assert self.LAYOUT.to_dict()["feature_maps"] == [[2, 2, 3, 3], None]
        assert "feature_maps=[(2, 2, 3, 3), None]" in repr(self.LAYOUT)

    def test_new_features_have_none(self):
        assert self.LAYOUT.replace(n_features=[20, 4]).feature_maps == (None, None)
        assert self.LAYOUT.replace(costs=[1, 2]).feature_maps == self.LAYOUT.feature_maps

    def test_stacked_maps(self):
        maps = np.arange(24.0).reshape(2, 3, 2, 2)
        X = stack_exits([None, 2 * np.eye(2)], [maps, np.ones((2, 5))])
        assert X.layout.feature_maps == ((0, 3, 2, 2), None)
        np.testing.assert_array_equal(X.features(0).reshape(2, 3, 2, 2), maps)
        with pytest.raises(ValueError, match=r"logits\[0\] has shape \(2, 3, 2, 2\)"):
            stack_exits([maps])

    def test_travel_with_a_frame_and_a_layout_that_says_nothing_of_them(self):
        X = stack_exits(features=[np.zeros((2, 3, 2, 2)), np.ones((2, 5))])
        assert ExitArray.from_frame(X.to_frame()).layout == X.layout
        heads = ExitHeads(layout=ExitLayout([0, 0], [12, 5], costs=[1, 2])).fit(X, [0, 1])
        assert heads.layout_.feature_maps == X.layout.feature_maps

    def test_other_maps_than_fitted_are_refused(self):
        X = stack_exits(features=[np.zeros((2, 3, 2, 2)), np.ones((2, 5))])
        heads = ExitHeads().fit(X, [0, 1])
        with pytest.raises(ValueError, match=r"X has the layout .* was fitted with"):
            heads.transform(X.with_layout(X.layout.replace(feature_maps=[(0, 2, 2, 3), None])))
        heads.transform(X.with_layout(X.layout.replace(feature_maps=None)))

    @pytest.mark.parametrize(
        ("feature_maps", "message"),
        [
            ([(2, 2, 3, 3)], r"feature_maps has 1 entries for 2 exits; give one for each exit, None where"),
            ([(2, 2, 3), None], r"feature_maps\[0\]=\(2, 2, 3\) must be four integers"),
            ([(2, 2, 3, 1.5), None], r"feature_maps\[0\]=\(2, 2, 3, 1.5\) must be four integers"),
            ([(3, 2, 3, 3), None], r"feature_maps\[0\]=\(3, 2, 3, 3\) must be a part of the 20 features of exit 0"),
            ([(-1, 2, 3, 3), None], r"must be a part of the 20 features of exit 0: a map of shape \(C, H, W\)"),
            ([None, (0, 1, 0, 3)], r"feature_maps\[1\]=\(0, 1, 0, 3\) must be a part of the 3 features of exit 1"),
        ],
    )
    def test_wrong_ones(self, feature_maps, message):
        with pytest.raises(ValueError, match=message):
            ExitLayout([0, 2], [20, 3], feature_maps=feature_maps)


def test_equal_layouts_have_equal_hashes():
    integers, floats = (ExitLayout([2], [0], classes=classes) for classes in ([0, 1], [0.0, 1.0]))
    assert integers == floats
    assert hash(integers) == hash(floats)


def test_default_costs_are_even_fractions():
    layout = ExitLayout([2] * 4, [0] * 4)
    assert layout.costs.tolist() == [0.25, 0.5, 0.75, 1]
    assert layout.cost_unit == "fraction"


@pytest.mark.parametrize(
    ("n_logits", "classes", "n_classes"), [([0, 3], None, 3), ([0, 0], "abcd", 4), ([0, 0], None, None)]
)
def test_number_of_classes(n_logits, classes, n_classes):
    layout = ExitLayout(n_logits, [1, 1], classes=None if classes is None else list(classes))
    assert layout.n_classes == n_classes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_logits": [2], "n_features": [1, 1]}, r"n_logits=\[2\] and n_features=\[1, 1\] must have one entry"),
        ({"n_logits": [], "n_features": []}, "one entry for each exit, and at least one"),
        ({"n_logits": [2, 0], "n_features": [1, 0]}, "exit 1 has 0 logits and 0 features"),
        ({"n_logits": [-2], "n_features": [3]}, "exit 0 has -2 logits and 3 features"),
        ({"n_logits": [2, 3], "n_features": [0, 0]}, r"n_logits=\[2, 3\]: every exit that has logits needs the same"),
        ({"n_logits": [1], "n_features": [0]}, "n_logits=1: an exit needs one logit per class"),
        ({"n_logits": [2, 2], "n_features": [0, 0], "costs": [1]}, r"costs has shape \(1,\).*each of 2 exits"),
        ({"n_logits": [2, 2], "n_features": [0, 0], "costs": [2, 1]}, r"costs=\[2\.0, 1\.0\] must be .* increasing"),
        ({"n_logits": [2, 2], "n_features": [0, 0], "costs": [1, 1]}, r"costs=\[1\.0, 1\.0\] must be .* increasing"),
        ({"n_logits": [2, 2], "n_features": [0, 0], "costs": [0, 1]}, r"costs=\[0\.0, 1\.0\] must be positive"),
        ({"n_logits": [2, 2], "n_features": [0, 0], "costs": [1, np.inf]}, r"costs=\[1\.0, inf\] must be .* finite"),
        ({"n_logits": [2, 2], "n_features": [0, 0], "costs": [np.nan, 1]}, r"costs=\[nan, 1\.0\] must be .* finite"),
        ({"n_logits": [2], "n_features": [0], "network_cost": 0}, "network_cost=0 must be positive and finite"),
        ({"n_logits": [2], "n_features": [0], "network_cost": np.nan}, "network_cost=nan must be positive"),
        ({"n_logits": [2], "n_features": [0], "head_costs": [0, 0]}, r"head_costs has shape \(2,\).*each of 1 exits"),
        ({"n_logits": [2], "n_features": [0], "head_costs": [-1]}, r"head_costs=\[-1\.0\] must be 0 or more and below"),
        ({"n_logits": [2], "n_features": [0], "head_costs": [1]}, r"head_costs=\[1\.0\] must be .* costs=\[1\.0\]"),
        ({"n_logits": [2], "n_features": [0], "classes": [0, 0]}, "classes has 0 more than once"),
        ({"n_logits": [2], "cost_unit": "flops"}, "cost_unit='flops' must be written 'FLOPs'"),
        ({"n_logits": [2], "costs": [1], "cost_unit": "macs"}, "cost_unit='macs' must be written 'MACs'"),
        ({"n_logits": [2], "n_features": [0], "classes": [[0, 1]]}, "classes has shape \\(1, 2\\); pass a list"),
        ({"n_logits": [2], "classes": np.array([None, "a"])}, "cannot be sorted. Give labels of one type"),
        ({"n_logits": [2], "n_features": [0], "classes": [0, 1, 2]}, "classes has 3 labels but each exit has 2 logits"),
    ],
)
def test_what_describes_no_network_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExitLayout(**arguments)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["exit0__feature0", "age"], "column 'age' is among columns named like 'exit0__logit3'"),
        (["exit0__feature0", 3], "column 3 is among"),
        (["exit0__feature0", "exit0__logit0", "exit0__logit1"], "are out of order"),
        (["exit0__feature1", "exit0__feature0"], "are out of order"),
        (["exit0__feature0", "exit0__feature2"], "'exit0__feature1' is missing"),
        (["exit0__feature0", "exit0__feature0"], "'exit0__feature1' is missing"),
        (["exit1__feature0", "exit0__feature0"], "are out of order"),
        (["exit0__feature0", "exit2__feature0"], "exit 1 has 0 logits and 0 features"),
    ],
)
def test_broken_column_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        ExitLayout.from_column_names(names)


@pytest.mark.parametrize("names", [["a", "b"], [0, 1], ["exit0", "exit0__logit"], ["xexit0__logit0"]])
def test_other_column_names_say_nothing(names):
    assert ExitLayout.from_column_names(names) is None


class TestResolve:
    """Order: the parameter, X.layout, column names, one exit."""

    def test_parameter_comes_first(self):
        X = ExitArray.from_array(np.zeros((2, 6)), 2)
        assert resolve_layout(3, X, 6).n_exits == 3
        layout = ExitLayout([2, 2], [1, 1])
        assert resolve_layout(layout, X, 6) is layout

    def test_layout_of_an_exit_array(self):
        X = ExitArray.from_array(np.zeros((2, 6)), 2)
        assert resolve_layout(None, X, 6) is X.layout

    def test_column_names_alone(self):
        frame = pd.DataFrame(np.zeros((2, 3)), columns=["exit0__feature0", "exit1__logit0", "exit1__logit1"])
        assert resolve_layout(None, frame, 3) == ExitLayout([0, 2], [1, 0])

    def test_attributes_of_a_frame_complete_its_column_names(self):
        layout = ExitLayout([2], [1], costs=[5], cost_unit="ms", classes=["no", "yes"])
        frame = pd.DataFrame(np.zeros((2, 3)), columns=layout.column_names())
        frame.attrs[FRAME_ATTRIBUTE] = layout.to_dict()
        assert resolve_layout(None, frame, 3) == layout

    def test_attributes_of_other_columns_are_refused(self):
        frame = pd.DataFrame(np.zeros((2, 2)), columns=ExitLayout([2], [0]).column_names())
        frame.attrs[FRAME_ATTRIBUTE] = ExitLayout([2], [1]).to_dict()
        with pytest.raises(
            ValueError, match=r"not those of the layout kept in its attrs.*del X\.attrs\['skexit_layout'\]"
        ):
            resolve_layout(None, frame, 2)

    @pytest.mark.parametrize("X", [np.zeros((2, 3)), pd.DataFrame(np.zeros((2, 3)), columns=list("abc"))])
    def test_anything_else_is_one_exit_of_features(self, X):
        assert resolve_layout(None, X, 3) == ExitLayout([0], [3])

    def test_a_column_named_layout_is_a_column(self):
        frame = pd.DataFrame({"layout": [0.0, 1.0, 0.0, 1.0], "columns": [1.0, 0.0, 1.0, 0.0]})
        assert ExitHeads().fit(frame, [0, 1, 0, 1]).layout_ == ExitLayout([0], [2])

    @pytest.mark.parametrize(
        ("layout", "message"),
        [
            (4, "6 columns cannot be split evenly into 4 exits"),
            (0, "n_exits=0 must be at least 1"),
            (ExitLayout([2], [3]), "layout describes 5 columns but X has 6"),
            (True, "layout=True is neither an ExitLayout nor a number of exits"),
            ("two", "layout='two' is neither"),
        ],
    )
    def test_a_layout_that_does_not_fit_is_refused(self, layout, message):
        with pytest.raises(ValueError, match=message):
            resolve_layout(layout, np.zeros((2, 6)), 6)
