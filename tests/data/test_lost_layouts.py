"""What an array means is never guessed in silence: layouts lost, logits and labels mistaken, frames without attrs."""

import io
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from instances import make_exits
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import BaggingClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitArray,
    ExitEnsemble,
    ExitHeads,
    ExitLayout,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    RiskControlledPolicy,
    ThresholdPolicy,
    oracle,
    stack_exits,
)
from skexit.exceptions import LayoutLostWarning

N_EXITS, N_CLASSES = 3, 4
NAMES = np.array(["cat", "ant", "eel", "bee"])
COSTS = [0.1, 0.2, 1.0]


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=200, n_exits=N_EXITS, n_classes=N_CLASSES, random_state=0)


@pytest.fixture(scope="module")
def logits(data):
    return np.stack([data[0].logits(k) for k in range(N_EXITS)], axis=1)


@pytest.fixture(scope="module")
def features(data):
    return stack_exits(features=[data[0].features(k) for k in range(N_EXITS)])


@pytest.fixture(scope="module")
def named(logits):
    """Classes that are not in the order of the alphabet, and uneven costs."""
    return stack_exits(logits, costs=COSTS, classes=NAMES)


def names_of(y):
    return NAMES[y]


def count_lost(function):
    """How often a function warns of a lost layout, and what it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given = function()
    return sum(issubclass(warning.category, LayoutLostWarning) for warning in caught), given


LOSERS = {
    "asarray": FunctionTransformer(np.asarray),
    "vstack": FunctionTransformer(lambda X: np.vstack([X])),
    "standard": StandardScaler(),
    "min and max": MinMaxScaler(),
    "pandas": StandardScaler().set_output(transform="pandas"),
    "union": FeatureUnion([("scaled", StandardScaler()), ("again", StandardScaler())]),
    "columns": ColumnTransformer([("scaled", StandardScaler(), slice(0, 6))], remainder="passthrough"),
    "prefixed": ColumnTransformer([("scaled", StandardScaler(), slice(0, 6))], remainder="passthrough").set_output(
        transform="pandas"
    ),
}


class TestOneExit:
    """A policy with a budget meets a single exit that nobody declared."""

    @pytest.mark.parametrize("loser", LOSERS.values(), ids=LOSERS.keys())
    @pytest.mark.parametrize("set_output", ["default", "pandas"])
    def test_a_step_that_loses_the_layout(self, features, data, loser, set_output):
        heads = ExitHeads(random_state=0).set_output(transform=set_output)
        pipeline = make_pipeline(loser, heads, ThresholdPolicy(budget=0.5))
        n_warnings, _ = count_lost(lambda: pipeline.fit(features, data[1]))
        assert n_warnings == 1
        assert pipeline[-1].costs_.tolist() == [1]

    def test_the_warning_names_three_ways(self, features, data):
        with pytest.warns(LayoutLostWarning, match="budget=0.5 cannot be kept") as caught:
            ThresholdPolicy(budget=0.5).fit(np.asarray(features), data[1])
        (message,) = {str(warning.message) for warning in caught}
        for way in ("layout=X.layout", "ExitTransformer(StandardScaler())", "ExitHeads standardises features itself"):
            assert way in message

    @pytest.mark.parametrize(
        "policy",
        [
            ThresholdPolicy(budget=0.5),
            ThresholdPolicy(OptimalStoppingPolicy(random_state=0)),
            RandomExit(budget=0.5, random_state=0),
            EMExitAssigner(budget=0.5, max_epochs=2, random_state=0),
            EENetPolicy(budget=0.5, max_epochs=2, random_state=0),
            JEIGatedEnsemble(budget=0.5, max_epochs=2, random_state=0),
            JEIGatedEnsemble(max_epochs=2, random_state=0),
            OptimalStoppingPolicy(budget=0.5, random_state=0),
            OptimalStoppingPolicy(budget=0.5, heads=ExitEnsemble(), random_state=0),
            RiskControlledPolicy(alpha=0.9, random_state=0),
        ],
        ids=repr,
    )
    def test_every_policy_warns_once(self, features, data, policy):
        assert count_lost(lambda: policy.fit(np.asarray(features), data[1]))[0] == 1

    def test_each_estimator_of_a_bag_warns(self, features, data):
        bag = BaggingClassifier(ThresholdPolicy(budget=0.5), n_estimators=2, random_state=0)
        assert count_lost(lambda: bag.fit(features, data[1]))[0] == 2

    def test_what_was_declared_does_not_warn(self, features, data, logits):
        X, y = data
        array = np.asarray(features)
        ThresholdPolicy(budget=0.5).fit(X, y)
        ThresholdPolicy(budget=1).fit(stack_exits([logits[:, 0]]), y)  # one exit, and meant
        ThresholdPolicy(budget=0.5, layout=1).fit(array, y)
        ThresholdPolicy(budget=0.5, layout=features.layout).fit(array, y)
        ThresholdPolicy(budget=1.0).fit(array, y)
        ExitHeads(random_state=0).fit(array, y)
        ThresholdPolicy(budget=0.5).fit(X, y).predict(np.asarray(X))

    def test_the_ways_work(self, features, data):
        y = data[1]
        layout = features.layout
        given = make_pipeline(StandardScaler(), ExitHeads(layout=layout, random_state=0), ThresholdPolicy(budget=0.5))
        assert given.fit(features, y)[-1].costs_.tolist() == layout.cost_fractions.tolist()


class TestLogitsOfThreeDimensions:
    @pytest.mark.parametrize("as_given", [np.asarray, np.ndarray.tolist, np.asfortranarray], ids=["array", "list", "F"])
    def test_they_are_stacked(self, logits, data, as_given):
        y, given = data[1], as_given(logits)
        X = stack_exits(logits)
        policy, expected = ThresholdPolicy(budget=0.7).fit(given, y), ThresholdPolicy(budget=0.7).fit(X, y)
        assert policy.layout_ == expected.layout_
        assert policy.n_features_in_ == N_EXITS * N_CLASSES
        assert policy.score(given, y) == expected.score(X, y)
        assert policy.mean_cost(given) == expected.mean_cost(logits.reshape(len(y), -1))
        np.testing.assert_array_equal(policy.predict_exit(given), expected.predict_exit(X))
        np.testing.assert_array_equal(
            policy.calibrate(given, y).predict_set(given), expected.calibrate(X, y).predict_set(X)
        )
        assert oracle(given, y).accuracy == oracle(X, y).accuracy

    @pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
    def test_tensors(self, logits, data, dtype):
        import torch

        y = data[1]
        tensor = torch.tensor(logits, dtype=getattr(torch, dtype), requires_grad=True)
        X = stack_exits(tensor.detach().double().numpy())
        np.testing.assert_array_equal(
            ThresholdPolicy(budget=0.7).fit(tensor, torch.tensor(y)).predict_exit(tensor),
            ThresholdPolicy(budget=0.7).fit(X, y).predict_exit(X),
        )

    def test_heads_and_ensembles_take_them(self, logits, data):
        y = data[1]
        ensemble = ExitEnsemble().fit(logits, y)
        np.testing.assert_array_equal(
            ensemble.transform(logits), ExitEnsemble().fit(stack_exits(logits), y).transform(logits)
        )
        np.testing.assert_array_equal(ExitHeads().fit_transform(logits, y), stack_exits(logits))

    def test_costs_and_classes_by_layout(self, logits, named, data):
        layout = ExitLayout([N_CLASSES] * N_EXITS, costs=COSTS, classes=NAMES)
        y = names_of(data[1])
        policy = ThresholdPolicy(budget=0.7, layout=layout).fit(logits, y)
        assert policy.costs_.tolist() == COSTS
        expected = ThresholdPolicy(budget=0.7).fit(named, y).score(named, y)
        for X in (logits, named, stack_exits(logits), logits.reshape(len(y), -1)):
            assert policy.score(X, y) == expected

    def test_another_number_of_exits_is_refused(self, logits, data):
        policy = ThresholdPolicy().fit(logits, data[1])
        with pytest.raises(ValueError, match="X has the layout"):
            policy.predict(logits[:, 1:])
        with pytest.raises(ValueError, match="as images have"):
            policy.predict(logits[None])

    def test_a_list_of_arrays_is_not_guessed(self, logits, data):
        blocks = [logits[:, k] for k in range(N_EXITS)]
        with pytest.raises(ValueError, match=r"stack_exits\(logits=X\) or stack_exits\(features=X\)"):
            ThresholdPolicy().fit(blocks, data[1])

    def test_flattened_they_are_lost(self, logits, data):
        with pytest.warns(LayoutLostWarning, match=r"\(n_samples, n_exits, n_classes\) need no layout"):
            ThresholdPolicy(budget=0.7).fit(logits.reshape(len(logits), -1), data[1])


class TestLogitsTakenForFeatures:
    def test_a_number_of_exits(self, logits, data):
        flat = logits.reshape(len(logits), -1)
        with pytest.warns(LayoutLostWarning, match=r"layout=3 takes .* layout=ExitLayout\(\[4\] \* 3\)"):
            ThresholdPolicy(budget=0.7, layout=N_EXITS).fit(flat, data[1])
        cured = ThresholdPolicy(budget=0.7, layout=ExitLayout([N_CLASSES] * N_EXITS)).fit(flat, data[1])
        assert cured.heads_ is None

    def test_features_that_are_as_many_as_classes_are_no_logits(self, data):
        y = data[1]
        ThresholdPolicy(budget=0.7, layout=N_EXITS).fit(np.random.default_rng(0).normal(size=(len(y), 12)), y)


class TestFrames:
    @staticmethod
    def through_a_file(frame):
        return pd.read_csv(io.StringIO(frame.to_csv(index=False)))

    def test_what_a_file_loses_is_said(self, named, data):
        frame = self.through_a_file(named.to_frame())
        with (
            pytest.warns(
                LayoutLostWarning, match=r"Costs are now \[0.3333, 0.6667, 1.0\], and logits .* sorted classes"
            ),
            pytest.raises(
                ValueError, match=r"in the order \['cat', 'ant', 'eel', 'bee'\]. Give the label of each logit"
            ),
        ):
            ThresholdPolicy(budget=0.7).fit(frame, names_of(data[1]))
        with pytest.warns(LayoutLostWarning, match="Costs are now"):
            oracle(ExitArray.from_frame(frame), data[1])

    @pytest.mark.parametrize("estimator", [ExitHeads(random_state=0), ExitEnsemble()])
    def test_heads_say_so_and_policies_after_them_do_not_again(self, features, data, estimator):
        frame = self.through_a_file(features.to_frame())
        for output in ("default", "pandas"):
            pipeline = make_pipeline(estimator, ThresholdPolicy(budget=0.7)).set_output(transform=output)
            assert count_lost(lambda pipeline=pipeline: pipeline.fit(frame, data[1]))[0] == 1

    @pytest.mark.filterwarnings("ignore:X has feature names:UserWarning")
    def test_the_cure(self, named, data):
        y = names_of(data[1])
        frame = self.through_a_file(named.to_frame())
        layout = ExitLayout.from_dict(json.loads(json.dumps(named.layout.to_dict())))
        expected = ThresholdPolicy(budget=0.7).fit(named, y)
        for policy in (
            ThresholdPolicy(budget=0.7, layout=layout).fit(frame, y),
            ThresholdPolicy(budget=0.7).fit(ExitArray.from_frame(frame, layout), y),
        ):
            assert policy.costs_.tolist() == COSTS
            np.testing.assert_array_equal(policy.predict_exit(frame), expected.predict_exit(named))
            assert policy.score(frame, y) == pytest.approx(expected.score(named, y))

    @pytest.mark.parametrize("fitted_on", ["array", "frame", "layout"])
    @pytest.mark.filterwarnings("ignore:X .* feature names:UserWarning")
    def test_every_order_of_the_classes_is_read_right(self, logits, named, data, fitted_on):
        y = names_of(data[1])
        order = np.argsort(NAMES)
        ordered = stack_exits(logits[:, :, order], costs=COSTS, classes=NAMES[order])
        layout = named.layout if fitted_on == "layout" else None
        given = {"array": named, "frame": named.to_frame(), "layout": np.asarray(named)}[fitted_on]
        policy = ThresholdPolicy(budget=0.7, layout=layout).fit(given, y)
        expected = ThresholdPolicy(budget=0.7).fit(ordered, y).score(ordered, y)
        for X in (named, ordered, named.to_frame(), ordered.to_frame(), np.asarray(named), stack_exits(logits)):
            assert policy.score(X, y) == pytest.approx(expected)

    @pytest.mark.filterwarnings("ignore:X has feature names:UserWarning")
    def test_frames_of_other_classes_or_columns_are_refused(self, logits, named, data):
        policy = ThresholdPolicy(budget=0.7).fit(named, names_of(data[1]))
        with pytest.raises(ValueError, match="the layout of X has the classes"):
            policy.predict(stack_exits(logits, classes=["a", "b", "c", "d"]).to_frame())
        with pytest.raises(ValueError, match="X has the layout"):
            policy.predict(stack_exits(features=logits).to_frame())
        with pytest.raises(ValueError, match="are out of order"):
            policy.predict(named.to_frame().iloc[:, ::-1])

    def test_a_layout_that_contradicts_x_is_refused(self, named, data):
        layout = named.layout.replace(classes=sorted(NAMES))
        for X in (named, named.to_frame()):
            with pytest.raises(ValueError, match=r"layout has the classes .* but X has \['cat', 'ant'"):
                ThresholdPolicy(layout=layout).fit(X, names_of(data[1]))
        free = ThresholdPolicy(budget=1, layout=ExitLayout(named.layout.n_logits, costs=[1, 2, 3]))
        accuracy = np.mean(NAMES[named.logits(2).argmax(axis=1)] == names_of(data[1]))
        assert free.fit(named, names_of(data[1])).score(named, names_of(data[1])) == accuracy

    def test_names_that_contradict_themselves_are_settled_by_the_layout(self, named, data):
        frame = named.to_frame()
        frame.columns = frame.columns[::-1]
        policy = ThresholdPolicy(budget=1, layout=named.layout).fit(frame, names_of(data[1]))
        accuracy = np.mean(NAMES[named.logits(2).argmax(axis=1)] == names_of(data[1]))
        assert policy.score(frame, names_of(data[1])) == accuracy


class TestTargets:
    @pytest.mark.parametrize("dtype", [int, float])
    @pytest.mark.parametrize("scale", [40, 1000])
    def test_rounded_numbers_are_no_classes(self, dtype, scale):
        rng = np.random.default_rng(0)
        y = np.round(scale * rng.gamma(2, size=300)).astype(dtype)
        with pytest.warns(UserWarning, match="classification only"):
            ExitHeads(layout=2, solver="adam", max_epochs=1).fit(rng.normal(size=(300, 4)), y)

    def test_continuous_numbers_are_refused(self):
        rng = np.random.default_rng(0)
        with pytest.raises(ValueError, match=r"Unknown label type: continuous.*classification only.*digitize"):
            ExitHeads().fit(rng.normal(size=(30, 4)), rng.normal(size=30))

    @pytest.mark.parametrize(("n_samples", "n_classes"), [(5000, 1000), (1500, 500), (400, 200), (60, 10), (20, 20)])
    def test_many_classes_are_classes(self, n_samples, n_classes):
        rng = np.random.default_rng(0)
        y = rng.permutation(np.arange(n_samples) % n_classes)
        ExitHeads(layout=2, solver="adam", max_epochs=1).fit(rng.normal(size=(n_samples, 4)), y)

    def test_few_rows_of_known_classes(self):
        y = np.random.default_rng(0).permutation(1000)[:60]
        X = np.random.default_rng(1).normal(size=(60, 2, 1000))
        ThresholdPolicy(budget=0.7).fit(X, y)
