"""Heads that learn from a batch of rows at a time."""

import copy
import pickle

import joblib
import numpy as np
import pytest
from instances import make_exits
from sklearn.base import clone

import skexit
from skexit import ExitHeads, stack_exits

CLASSES = [0, 1, 2]
HEADS = [
    ExitHeads(random_state=0),
    ExitHeads((8,), dropout=0.1, random_state=0),
    ExitHeads((8, 5), cascade=True, dropout=0.1, random_state=0),
    ExitHeads((8,), cascade=True, random_state=0),
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
    return np.asarray(estimator.transform(X))


@pytest.fixture(params=HEADS, ids=repr)
def template(request):
    return request.param


class TestConventions:
    def test_the_same_calls_give_the_same(self, template, data):
        X, y = features_only(data[0]), data[1]
        one, other = (learn(clone(template), X, y) for _ in range(2))
        np.testing.assert_array_equal(answers(one, X), answers(other, X))

    def test_goes_on_after_it_was_saved(self, template, data, tmp_path):
        X, y = features_only(data[0]), data[1]
        half = learn(clone(template), X[:300], y[:300])
        joblib.dump(half, tmp_path / "half.joblib")
        saved = [pickle.loads(pickle.dumps(half)), joblib.load(tmp_path / "half.joblib")]
        learn(half, X[300:], y[300:], classes=None)
        for loaded in saved:
            learn(loaded, X[300:], y[300:], classes=None)
            np.testing.assert_array_equal(answers(loaded, X), answers(half, X))

    def test_goes_on_after_skops(self, template, data):
        io = pytest.importorskip("skops.io")
        X, y = features_only(data[0]), data[1]
        half = learn(clone(template), X[:300], y[:300])
        loaded = io.loads(io.dumps(half), trusted=skexit.TRUSTED_TYPES)
        for estimator in (half, loaded):
            learn(estimator, X[300:], y[300:], classes=None)
        np.testing.assert_array_equal(answers(loaded, X), answers(half, X))

    def test_a_copy_learns_for_itself(self, template, data):
        X, y = features_only(data[0]), data[1]
        half = learn(clone(template), X[:300], y[:300])
        before = answers(half, X)
        learn(copy.copy(half), X[300:], y[300:])
        np.testing.assert_array_equal(answers(half, X), before)

    def test_fit_forgets(self, template, data):
        X, y = features_only(data[0]), data[1]
        small = clone(template).set_params(max_epochs=1)
        found = learn(clone(small), X, y).fit(X, y)
        np.testing.assert_array_equal(answers(found, X), answers(clone(small).fit(X, y), X))
        found.partial_fit(X, y)
        np.testing.assert_array_equal(answers(found, X), answers(clone(small).partial_fit(X, y, CLASSES), X))

    def test_clone_forgets(self, template, data):
        X, y = features_only(data[0]), data[1]
        learned = learn(clone(template), X, y)
        again = learn(clone(learned), X, y)
        np.testing.assert_array_equal(answers(again, X), answers(learned, X))

    def test_classes(self, template, data):
        X, y = features_only(data[0]), data[1]
        assert clone(template).partial_fit(X, y).classes_.tolist() == CLASSES
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
            estimator.partial_fit(features_only(make_exits(50, 2, 3, 0)[0]), y[:50])

    def test_names_of_classes_are_sorted(self, template, data):
        X, y = features_only(data[0]), data[1]
        names = np.array(["a", "b", "c"])
        named = learn(clone(template), X, names[y], classes=["c", "a", "b"])
        np.testing.assert_array_equal(answers(named, X), answers(learn(clone(template), X, y), X))

    def test_a_batch_that_is_refused_changes_nothing_learned(self, template, data):
        X, y = features_only(data[0]), data[1]
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
        X, y = features_only(data[0]), data[1]
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

    @pytest.mark.parametrize(
        "options", [{"training": "boosted"}, {"solver": "lbfgs"}, {"temperature_scaling": True}], ids=str
    )
    def test_what_needs_all_rows_is_refused(self, options, data):
        heads = ExitHeads(**options)
        assert not hasattr(heads, "partial_fit")
        with pytest.raises(AttributeError, match="has no attribute 'partial_fit'") as error:
            heads.partial_fit(features_only(data[0]), data[1])
        assert f"not available with {next(iter(options))}=" in str(error.value.__cause__)
