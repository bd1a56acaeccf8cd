"""Heads and policies that learn from a batch of rows at a time."""

import copy
import pickle

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import make_exits
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

import skexit
import skexit.incremental
from skexit import EENetPolicy, EMExitAssigner, ExitHeads, StaticExit, ThresholdPolicy, stack_exits
from skexit.incremental import Reservoir

BUDGET = 0.6
CLASSES = [0, 1, 2]
POLICIES = [
    EMExitAssigner(budget=BUDGET, router_hidden=(8,), random_state=0),
    EMExitAssigner(lam=3.0, assignment="hard", router_hidden=(), router_input="features", random_state=0),
    EENetPolicy(BUDGET, random_state=0),
    EENetPolicy(BUDGET, init="random", learn_scores=False, recall=True, random_state=0),
]
HEADS = [
    ExitHeads(random_state=0),
    ExitHeads(8, dropout=0.1, random_state=0),
    ExitHeads(8, cascade=True, random_state=0),
]


@pytest.fixture(scope="module")
def data():
    return make_exits(600, n_exits=3, n_classes=3, random_state=0)


def features_only(X):
    return stack_exits(features=[X.features(k) for k in range(X.layout.n_exits)])


def learn(estimator, X, y, batch_size=200, epochs=1, classes=CLASSES, **arguments):
    for _ in range(epochs):
        for batch in X.batches(batch_size):
            own = {name: values[batch] for name, values in arguments.items()}
            estimator.partial_fit(X[batch], y[batch], classes=classes, **own)
    return estimator


def answers(estimator, X):
    return np.asarray(estimator.transform(X)) if hasattr(estimator, "transform") else estimator.exit_scores(X)


@pytest.fixture(params=[*POLICIES, *HEADS], ids=repr)
def template(request):
    return request.param


def data_for(template, data):
    X, y = data
    return (features_only(X) if isinstance(template, ExitHeads) else X), y


class TestConventions:
    def test_the_same_calls_give_the_same(self, template, data):
        X, y = data_for(template, data)
        one, other = (learn(clone(template), X, y) for _ in range(2))
        np.testing.assert_array_equal(answers(one, X), answers(other, X))

    def test_goes_on_after_it_was_saved(self, template, data, tmp_path):
        X, y = data_for(template, data)
        half = learn(clone(template), X[:300], y[:300])
        joblib.dump(half, tmp_path / "half.joblib")
        saved = [pickle.loads(pickle.dumps(half)), joblib.load(tmp_path / "half.joblib")]
        learn(half, X[300:], y[300:], classes=None)
        for loaded in saved:
            learn(loaded, X[300:], y[300:], classes=None)
            np.testing.assert_array_equal(answers(loaded, X), answers(half, X))

    def test_goes_on_after_skops(self, template, data):
        io = pytest.importorskip("skops.io")
        X, y = data_for(template, data)
        half = learn(clone(template), X[:300], y[:300])
        loaded = io.loads(io.dumps(half), trusted=skexit.TRUSTED_TYPES)
        for estimator in (half, loaded):
            learn(estimator, X[300:], y[300:], classes=None)
        np.testing.assert_array_equal(answers(loaded, X), answers(half, X))

    def test_a_copy_learns_for_itself(self, template, data):
        X, y = data_for(template, data)
        half = learn(clone(template), X[:300], y[:300])
        before = answers(half, X)
        learn(copy.copy(half), X[300:], y[300:])
        np.testing.assert_array_equal(answers(half, X), before)

    def test_fit_forgets(self, template, data):
        X, y = data_for(template, data)
        small = clone(template).set_params(max_epochs=1)
        found = learn(clone(small), X, y).fit(X, y)
        np.testing.assert_array_equal(answers(found, X), answers(clone(small).fit(X, y), X))
        found.partial_fit(X, y)
        np.testing.assert_array_equal(answers(found, X), answers(clone(small).partial_fit(X, y, CLASSES), X))

    def test_clone_forgets(self, template, data):
        X, y = data_for(template, data)
        learned = learn(clone(template), X, y)
        again = learn(clone(learned), X, y)
        np.testing.assert_array_equal(answers(again, X), answers(learned, X))

    def test_classes(self, template, data):
        X, y = data_for(template, data)
        if not isinstance(template, ExitHeads):
            with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
                clone(template).partial_fit(X, y)
        few = y < 2
        estimator = clone(template).partial_fit(X[few], y[few], classes=CLASSES)
        assert estimator.classes_.tolist() == CLASSES
        estimator.partial_fit(X, y)
        with pytest.raises(
            ValueError, match=r"classes=\[0, 1\] are not those of the first call to partial_fit, \[0, 1"
        ):
            estimator.partial_fit(X, y, classes=[0, 1])
        with pytest.raises(ValueError, match="y has the class 7"):
            estimator.partial_fit(X, np.where(y == 0, 7, y))
        with pytest.raises(ValueError, match="layout"):
            estimator.partial_fit(make_exits(50, 2, 3, 0)[0], y[:50])

    def test_names_of_classes_are_sorted(self, template, data):
        X, y = data_for(template, data)
        names = np.array(["a", "b", "c"])
        named = learn(clone(template), X, names[y], classes=["c", "a", "b"])
        np.testing.assert_array_equal(answers(named, X), answers(learn(clone(template), X, y), X))

    def test_a_batch_that_is_refused_changes_nothing_learned(self, template, data):
        X, y = data_for(template, data)
        half = learn(clone(template), X[:300], y[:300], 300)
        before = answers(half, X)
        bad = np.asarray(X[300:]).copy()
        bad[3] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            half.partial_fit(skexit.ExitArray.from_array(bad, X.layout), y[300:])
        np.testing.assert_array_equal(answers(half, X), before)
        learn(half, X[300:], y[300:], 300)
        np.testing.assert_array_equal(answers(half, X), answers(learn(clone(template), X, y, 300), X))

    @pytest.mark.parametrize("n_rows", [1, 9])
    def test_small_batches(self, template, data, n_rows):
        X, y = data_for(template, data)
        assert np.isfinite(answers(learn(clone(template), X[:27], y[:27], n_rows), X)).all()


class TestHeads:
    @pytest.mark.parametrize("template", [HEADS[0], ExitHeads(cascade=True), HEADS[-1]], ids=repr)
    def test_as_right_as_fit(self, template):
        """On new rows, over seeds and exits."""
        gains = []
        for seed in range(3):
            X, y = make_exits(2000, n_exits=3, n_classes=3, random_state=seed)
            X, new_X = features_only(X)[:600], features_only(X)[600:]
            heads = clone(template).set_params(random_state=seed)
            fitted, learned = clone(heads).fit(X, y[:600]), learn(clone(heads), X, y[:600], epochs=6)
            for k in range(3):
                right = [
                    (found.transform(new_X).logits(k).argmax(axis=1) == y[600:]).mean() for found in (learned, fitted)
                ]
                gains.append(right[0] - right[1])
        assert np.mean(gains) > -0.01
        assert np.min(gains) > -0.03

    def test_exits_keep_their_logits(self, data):
        X, y = data
        frozen = stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)])
        heads = learn(ExitHeads(random_state=0), frozen, y)
        assert heads.networks_[2] is None
        np.testing.assert_array_equal(heads.transform(frozen).logits(2), X.logits(2))

    def test_weights_count(self, data):
        X, y = features_only(data[0]), data[1]
        weight = np.where(y == 0, 0.0, 2.0)
        heads = learn(ExitHeads(random_state=0), X, y, sample_weight=weight, epochs=3)
        assert (heads.transform(X).logits(2).argmax(axis=1) != 0).mean() > 0.95

    @pytest.mark.parametrize("options", [{"training": "boosted"}, {"solver": "lbfgs"}, {"calibrated": True}], ids=str)
    def test_what_needs_all_rows_is_refused(self, options, data):
        heads = ExitHeads(**options)
        assert not hasattr(heads, "partial_fit")
        with pytest.raises(AttributeError, match="has no attribute 'partial_fit'") as error:
            heads.partial_fit(features_only(data[0]), data[1])
        assert f"not available with {next(iter(options))}=" in str(error.value.__cause__)


class TestEM:
    @settings(max_examples=5, deadline=None)
    @given(
        edges=st.sets(st.integers(1, 399), max_size=6),
        seed=st.integers(0, 100),
        budget=st.sampled_from([None, 0.5, 0.8]),
    )
    def test_assignments_equal_those_of_fit(self, edges, seed, budget):
        """However rows come in batches: only counts of patterns matter."""
        X, y = make_exits(400, n_exits=4, n_classes=3, random_state=seed)
        weight = np.random.default_rng(seed).integers(0, 4, size=400).astype(float)
        weight[[0, *edges]] = 1  # no batch without weight
        options = {"budget": budget, "confidence_weight": 1.0, "max_epochs": 1, "router_hidden": ()}
        fitted = EMExitAssigner(**options, random_state=0).fit(X, y, weight)
        learned = EMExitAssigner(**options, random_state=0)
        for start, stop in zip([0, *sorted(edges)], [*sorted(edges), 400], strict=True):
            learned.partial_fit(X[start:stop], y[start:stop], CLASSES, weight[start:stop])
        np.testing.assert_array_equal(learned.exit_prior_, fitted.exit_prior_)
        np.testing.assert_array_equal(learned.log_likelihood_, fitted.log_likelihood_)
        assert learned.lam_ == fitted.lam_
        np.testing.assert_array_equal(learned.assignments(X, y), fitted.assignments(X, y))

    def test_more_exits_than_codes(self):
        X, y = make_exits(200, n_exits=22, n_classes=3, random_state=0)
        options = {"max_epochs": 1, "router_hidden": (), "random_state": 0}
        learned = learn(EMExitAssigner(**options), X, y, 50)
        np.testing.assert_array_equal(learned.exit_prior_, EMExitAssigner(**options).fit(X, y).exit_prior_)


class TestPolicies:
    @pytest.mark.parametrize(
        "template", [EMExitAssigner(budget=BUDGET, confidence_weight=0), EENetPolicy(BUDGET)], ids=repr
    )
    def test_as_right_as_fit(self, template):
        """On new rows and at the cost of the budget, over seeds."""
        gains, costs = [], []
        for seed in range(2):
            X, y = make_exits(4000, n_exits=3, n_classes=3, random_state=seed)
            policy = clone(template).set_params(random_state=seed)
            fitted = clone(policy).fit(X[:1500], y[:1500])
            learned = learn(clone(policy), X[:1500], y[:1500], 500, epochs=12)
            gains.append(learned.score(X[1500:], y[1500:]) - fitted.score(X[1500:], y[1500:]))
            costs.append(learned.mean_cost(X[1500:]) - fitted.mean_cost(X[1500:]))
        assert np.mean(gains) > -0.01
        assert abs(np.mean(costs)) < 0.01

    def test_the_weight_of_the_confidence_is_chosen(self):
        """Features tell what the confidence does not: where they are told from the held-out rows, they count."""
        X, y = make_exits(3000, n_exits=3, n_classes=3, random_state=2)
        policy = learn(EMExitAssigner(budget=BUDGET, random_state=0), X, y, 500, epochs=3)
        assert policy.confidence_weight_ < np.inf
        alone = learn(EMExitAssigner(budget=BUDGET, confidence_weight=np.inf, random_state=0), X, y, 1000)
        assert policy.score(X, y) > alone.score(X, y) + 0.02

    @pytest.mark.parametrize("template", [POLICIES[0], POLICIES[2]], ids=repr)
    def test_budget_is_met_on_all_rows_that_are_kept(self, template, data):
        X, y = data
        learned = learn(clone(template), X, y)
        for policy in (learned, learned.with_budget(0.8)):
            assert policy.budget - 1 / len(y) <= policy.mean_cost(X) <= policy.budget + 1e-9

    @pytest.mark.parametrize("template", [POLICIES[0], POLICIES[2]], ids=repr)
    @pytest.mark.parametrize("seed", range(3))
    def test_budget_is_met_within_the_error_of_a_sample(self, template, seed, monkeypatch):
        n_kept = 300
        monkeypatch.setattr(skexit.incremental, "_MOST_ROWS", n_kept)
        X, y = make_exits(3000, n_exits=3, n_classes=3, random_state=seed)
        policy = learn(
            clone(template).set_params(random_state=seed, router_hidden=())
            if isinstance(template, EMExitAssigner)
            else clone(template).set_params(random_state=seed),
            X,
            y,
            500,
        )
        assert len(policy._fitting_state.reservoir.keys) == n_kept
        standard_error = np.std(policy.costs_[policy.predict_exit(X)]) / np.sqrt(n_kept)
        assert abs(policy.mean_cost(X) - BUDGET) < 4 * standard_error

    def test_networks_do_not_learn_from_what_is_held_out(self, data):
        """Other labels of these rows change the thresholds and the counts, but no network of EENet."""
        X, y = data
        one = learn(EENetPolicy(BUDGET, init="random", random_state=0), X, y)
        held_out = one._fitting_state.reservoir.keys_of(X) < 0.1
        assert 20 < held_out.sum() < 120
        other = learn(EENetPolicy(BUDGET, init="random", random_state=0), X, np.where(held_out, (y + 1) % 3, y))
        np.testing.assert_array_equal(one.exit_scores(X), other.exit_scores(X))
        assert one.losses_ != other.losses_

    @pytest.mark.parametrize("template", [POLICIES[0], POLICIES[2]], ids=repr)
    def test_frozen_heads_are_used_as_they_are(self, template, data):
        X, y = features_only(data[0]), data[1]
        heads = ExitHeads().fit(X[:200], y[:200])
        learned = learn(clone(template).set_params(heads=FrozenEstimator(heads)), X, y)
        np.testing.assert_array_equal(learned.heads_.transform(X).logits(1), heads.transform(X).logits(1))
        np.testing.assert_array_equal(learned.predict_at_exits(X)[:, 1], heads.transform(X).logits(1).argmax(axis=1))
        assert BUDGET - 1 / len(y) <= learned.mean_cost(X) <= BUDGET + 1e-9

    @pytest.mark.parametrize("template", [POLICIES[0], POLICIES[2]], ids=repr)
    def test_heads_learn_with_the_policy(self, template, data):
        X, y = features_only(data[0]), data[1]
        learned = learn(clone(template), X, y)
        alone = learn(ExitHeads(random_state=0), X, y)
        np.testing.assert_allclose(learned.heads_.transform(X).logits(1), alone.transform(X).logits(1), rtol=1e-6)
        assert learned.mean_cost(X) <= BUDGET + 1e-9

    def test_heads_that_cannot_are_refused(self, data):
        X, y = features_only(data[0]), data[1]
        with pytest.raises(ValueError, match=r"heads=ExitEnsemble\(\) have no partial_fit"):
            EENetPolicy(heads=skexit.ExitEnsemble(), random_state=0).partial_fit(X, y, CLASSES)

    def test_calibration_is_dropped(self, data):
        X, y = data
        policy = learn(EENetPolicy(BUDGET, random_state=0), X, y).calibrate(X, y)
        learn(policy, X, y)
        assert policy.temperatures_.tolist() == [1, 1, 1]

    def test_others_have_no_partial_fit(self):
        assert not any(hasattr(policy, "partial_fit") for policy in (StaticExit(), ThresholdPolicy()))


class TestReservoir:
    @settings(max_examples=30, deadline=None)
    @given(
        edges=st.sets(st.integers(1, 99), max_size=5),
        most=st.integers(1, 120),
        copies=st.integers(1, 3),
        distinct=st.integers(1, 100),
    )
    def test_does_not_depend_on_batches(self, edges, most, copies, distinct):
        """It is the rows with the smallest keys, each once, with the weight of all its copies."""
        rng = np.random.default_rng(most)
        X = stack_exits(features=[rng.normal(size=(distinct, 2))])[np.arange(100) % distinct]
        weight = rng.integers(1, 4, size=100).astype(float)
        labels = np.arange(100) % distinct
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(skexit.incremental, "_MOST_ROWS", most)
            reservoir = Reservoir(seed=3)
            keys = reservoir.keys_of(X)
            for _ in range(copies):
                for start, stop in zip([0, *sorted(edges)], [*sorted(edges), 100], strict=True):
                    reservoir = reservoir.add(X[start:stop], labels[start:stop], weight[start:stop], keys[start:stop])
        kept = np.unique(keys)[:most]
        np.testing.assert_array_equal(reservoir.keys, kept)
        for position, key in enumerate(kept):
            rows = np.flatnonzero(keys == key)
            np.testing.assert_array_equal(reservoir.values[position], np.asarray(X)[rows[0]])
            assert reservoir.labels[position] == labels[rows[0]]
            if most >= len(np.unique(keys)):
                assert reservoir.weight[position] == copies * weight[rows].sum()

    def test_is_bounded_by_numbers(self, monkeypatch):
        monkeypatch.setattr(skexit.incremental, "_MOST_NUMBERS", 100)
        X = stack_exits(features=[np.random.default_rng(0).normal(size=(200, 10))])
        reservoir = Reservoir(0)
        reservoir = reservoir.add(X, np.zeros(200, dtype=int), np.ones(200), reservoir.keys_of(X))
        assert reservoir.values.shape == (10, 10)
