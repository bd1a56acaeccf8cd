"""Boosted heads: each adds to half of the sum before it, and is the best that can be added."""

from functools import partial

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from scipy.special import log_softmax
from test_heads import make_features

import skexit._nn._mini_batches
import skexit.data._arrays
import skexit.data._lazy
import skexit.heads._training
from skexit import ExitHeads, stack_exits
from skexit.heads._boosting import PREDICTION_REWEIGHTING, fit_addition
from skexit.heads._distillation import label_loss_and_errors
from skexit.uncertainty import fit_temperature

HIDDEN = pytest.mark.parametrize("sizes", [(), (5,), (5, 4)], ids=str)


def boosted(hidden_layer_sizes=(), **parameters):
    return ExitHeads(hidden_layer_sizes, training="boosted", distillation=0, max_epochs=2, random_state=0, **parameters)


def complementary(n_samples=900, seed=0):
    """Each of three exits has a feature for one of three classes, and none of the others."""
    rng = np.random.default_rng(seed)
    y = rng.integers(4, size=n_samples)
    features = [2 * np.eye(4)[y][:, [k]] + rng.normal(size=(n_samples, 1)) for k in range(3)]
    return stack_exits(features=features), y


def loss_of_addition(parameters, inputs, labels, weight, offset, l2):
    """Penalised cross-entropy of an addition, as it is defined."""
    weights, biases = parameters.reshape(-1, offset.shape[1])[:-1], parameters.reshape(-1, offset.shape[1])[-1]
    of_rows = -log_softmax(offset + inputs @ weights + biases, axis=1)[np.arange(len(labels)), labels]
    return np.average(of_rows, weights=weight) + l2 / 2 * (weights**2).sum()


class TestAddition:
    @pytest.mark.parametrize("n_classes", [2, 4])
    @pytest.mark.parametrize("l2", [3e-3, 0.5])
    def test_reaches_the_least_loss(self, n_classes, l2):
        rng = np.random.default_rng(0)
        inputs, labels = rng.normal(size=(60, 2)), np.arange(60) % n_classes
        weight, offset = rng.exponential(size=60), rng.normal(scale=2, size=(60, n_classes))
        arguments = (inputs, labels, weight, offset, l2)
        loss = partial(label_loss_and_errors, labels=labels)
        parts = fit_addition(inputs, loss, weight, offset, l2)
        found = np.concatenate([part.reshape(-1, n_classes) for part in parts]).ravel()
        best = minimize(
            loss_of_addition, np.zeros(3 * n_classes), args=arguments, method="BFGS", options={"gtol": 1e-7}
        )
        assert loss_of_addition(found, *arguments) == pytest.approx(best.fun, abs=1e-7)
        assert abs(approx_fprime(found, loss_of_addition, 1e-6, *arguments)).max() < 1e-4

    def test_of_each_exit(self):
        """The heads that are kept are those that scipy finds for the sum of the heads before."""
        X, y = make_features(150, own_logits=False)
        weight = np.random.default_rng(1).exponential(size=len(y))
        heads = boosted(l2=0.02).fit(X, y, sample_weight=weight)
        offset = np.zeros((len(y), 3))
        for k, network in enumerate(heads.networks_):
            features = X.features(k)
            mean = np.average(features, axis=0, weights=weight)
            scaled = (features - mean) / np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weight))
            arguments = (scaled, y, weight, offset, 0.02)
            best = minimize(loss_of_addition, np.zeros((scaled.shape[1] + 1) * 3), args=arguments, method="BFGS")
            parameters = best.x.reshape(-1, 3)
            np.testing.assert_allclose(
                np.exp(log_softmax(offset + network(features), axis=1)),
                np.exp(log_softmax(offset + scaled @ parameters[:-1] + parameters[-1], axis=1)),
                atol=3e-3,
            )
            offset = 0.5 * (offset + network(features))


class TestSum:
    @HIDDEN
    @pytest.mark.parametrize("own", [(), (1,), (0, 2)], ids=str)
    def test_is_half_the_sum_before_and_the_head(self, sizes, own):
        """An exit that has logits keeps them, and does not enter the sum."""
        X, y = make_features(150)
        X = stack_exits([X.logits(2) if k in own else None for k in range(3)], [X.features(k) for k in range(3)])
        heads = boosted(sizes).fit(X, y)
        added = heads.transform(X)
        total = np.zeros((len(y), 3))
        for k, network in enumerate(heads.networks_):
            if k in own:
                assert network is None
                np.testing.assert_array_equal(added.logits(k), X.logits(k))
            else:
                total = 0.5 * total + network(X.features(k))
                np.testing.assert_allclose(added.logits(k), total, rtol=1e-10)
        assert PREDICTION_REWEIGHTING == 0.5

    def test_with_linear_heads_that_see_earlier_features(self):
        X, y = make_features(150, own_logits=False)
        heads = boosted(cascade=True).fit(X, y)
        total = np.zeros((len(y), 3))
        for k, network in enumerate(heads.networks_):
            total = 0.5 * total + network(np.hstack([X.features(j) for j in range(k + 1)]))
            np.testing.assert_allclose(heads.transform(X).logits(k), total, rtol=1e-10)

    def test_starts_as_separate_heads_do(self):
        X, y = make_features()
        one, other = boosted().fit(X, y), ExitHeads(distillation=0).fit(X, y)
        np.testing.assert_array_equal(one.transform(X).logits(0), other.transform(X).logits(0))
        assert abs(one.transform(X).logits(1) - other.transform(X).logits(1)).max() > 0.1

    @HIDDEN
    def test_each_head_is_trained_on_the_sum_of_all_rows(self, sizes, monkeypatch):
        """Row numbers of batches are those of the offset."""
        X, y = make_features(own_logits=False)
        expected = np.asarray(boosted(sizes).fit(X, y).transform(X))
        monkeypatch.setattr(skexit.data._arrays, "BATCH_ROWS", 17)
        np.testing.assert_allclose(np.asarray(boosted(sizes).fit(X, y).transform(X)), expected, rtol=1e-6)

    @pytest.mark.parametrize(
        "options", [{}, {"solver": "adam", "max_epochs": 2}, {"hidden_layer_sizes": (8,), "max_epochs": 2}]
    )
    def test_what_heads_say_need_not_be_kept(self, options, monkeypatch):
        X, y = make_features(own_logits=False)
        heads = ExitHeads(training="boosted", random_state=0, **options)
        expected = np.asarray(heads.fit(X, y).transform(X))
        monkeypatch.setattr(skexit.data._lazy, "LARGEST_BYTES", 0)
        np.testing.assert_allclose(np.asarray(heads.fit(X, y).transform(X)), expected, rtol=1e-6)

    @HIDDEN
    def test_samples_may_leave(self, sizes):
        """What is remembered of the samples that are left gives the logits of ``transform``."""
        X, y = make_features(own_logits=False)
        heads = boosted(sizes).fit(X, y)
        rows, memory = np.arange(len(y)), {}
        for k in range(3):
            found = heads.exit_logits(k, None, X.features(k, rows), memory)
            np.testing.assert_allclose(found, heads.transform(X).logits(k, rows), rtol=1e-10)
            rows, memory = rows[k::2], {name: values[k::2] for name, values in memory.items()}


class TestAccuracy:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "options", [{}, {"solver": "adam", "max_epochs": 20}, {"hidden_layer_sizes": (8,), "max_epochs": 20}]
    )
    def test_later_exits_know_what_earlier_saw(self, options):
        (X, y), (new, new_y) = complementary(), complementary(seed=1)
        accuracy = {
            training: [
                (ExitHeads(training=training, random_state=0, **options).fit(X, y).transform(new).logits(k).argmax(1) == new_y).mean()
                for k in range(3)
            ]
            for training in ("separate", "boosted")
        }  # fmt: skip
        assert accuracy["boosted"][0] == pytest.approx(accuracy["separate"][0], abs=0.02)
        assert accuracy["boosted"][1] > accuracy["separate"][1] + 0.06
        assert accuracy["boosted"][2] > accuracy["separate"][2] + 0.1

    @pytest.mark.parametrize("options", [{}, {"solver": "adam"}, {"hidden_layer_sizes": (8,)}], ids=str)
    def test_a_head_that_sees_nothing_new_adds_what_halving_took(self, options):
        X, y = make_features(600)
        same = stack_exits(features=[X.features(0)] * 3)
        added = ExitHeads(training="boosted", l2=1e-4, random_state=0, **options).fit(same, y).transform(same)
        first, last = (log_softmax(added.logits(k), axis=1) for k in (0, 2))
        assert abs(last - first).mean() < 0.3  # three heads alike in sum: 1

    @pytest.mark.parametrize("solver", ["lbfgs", "adam"])
    def test_solvers_come_to_the_same(self, solver):
        X, y = make_features(600, own_logits=False)
        found = ExitHeads(training="boosted", solver=solver, distillation=0, random_state=0).fit(X, y).transform(X)
        expected = boosted().fit(X, y).transform(X)
        for k in range(3):
            loss, least = (-log_softmax(Z.logits(k), axis=1)[np.arange(600), y].mean() for Z in (found, expected))
            assert loss == pytest.approx(least, abs=0.04)


class TestRows:
    def test_a_weight_is_a_number_of_copies(self):
        X, y = make_features(own_logits=False)
        weight = np.random.default_rng(9).integers(0, 3, size=len(y))
        repeated = np.repeat(np.arange(len(y)), weight)
        weighted = boosted().fit(X, y, sample_weight=weight).transform(X)
        expected = boosted().fit(X[repeated], y[repeated]).transform(X)
        for k in range(3):
            np.testing.assert_allclose(*(log_softmax(Z.logits(k), axis=1) for Z in (weighted, expected)), atol=5e-3)

    @pytest.mark.parametrize("options", [{}, {"solver": "adam"}, {"hidden_layer_sizes": (5,)}], ids=str)
    def test_cross_fitted_logits_are_those_of_the_folds(self, options):
        X, y = make_features()
        folds = [(np.arange(120), np.arange(120, 240)), (np.arange(120, 240), np.arange(120))]
        found = boosted(cv=folds, **options).fit_transform(X, y)
        of_folds = []
        for train, test in folds:
            expected = boosted(**options).fit(X[train], y[train]).transform(X[test])
            scales = [np.median(found[test].logits(k) / expected.logits(k)) for k in range(3)]  # of each exit
            for k in range(3):
                np.testing.assert_allclose(found[test].logits(k), scales[k] * expected.logits(k), rtol=1e-9)
            of_folds.append(scales)
        np.testing.assert_allclose(*of_folds)

    @pytest.mark.parametrize("solver", ["lbfgs", "adam"])
    def test_absent_classes_are_improbable_at_all_exits(self, solver):
        X, y = make_features(n_classes=4)
        present = y != 2
        added = boosted(solver=solver).set_params(max_epochs=30).fit(X[present], y[present]).transform(X)
        for k in (0, 1):
            assert np.exp(log_softmax(added.logits(k), axis=1))[:, 2].mean() < 0.05

    def test_classes_that_occur_are_as_without_those_that_do_not(self):
        X, y = make_features(n_classes=4)
        X = X.with_layout(X.layout.replace(classes=[0, 1, 2, 3]))
        present = y != 2
        y = y[present]
        found = boosted().fit(X[present], y).transform(X[present])
        others = stack_exits(features=[X.features(k, present) for k in range(3)])
        expected = boosted().fit(others, np.where(y == 3, 2, y)).transform(others)
        for k in (0, 1):
            np.testing.assert_allclose(
                log_softmax(found.logits(k)[:, [0, 1, 3]], axis=1), log_softmax(expected.logits(k), axis=1), atol=1e-3
            )

    def test_features_larger_than_memory(self, monkeypatch):
        X, y = make_features()
        expected = np.asarray(boosted(solver="adam").fit(X, y).transform(X))
        monkeypatch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(skexit.heads._training, "_IN_MEMORY_BYTES", 0)
        np.testing.assert_allclose(np.asarray(boosted().fit(X, y).transform(X)), expected, rtol=1e-9)


class TestCalibrated:
    @HIDDEN
    def test_divides_the_sum_at_each_exit(self, sizes):
        """And not what later heads add to."""
        X, y = make_features(own_logits=False)
        raw = boosted(sizes, cv=3)
        cross_fitted = raw.fit_transform(X, y)
        heads = boosted(sizes, cv=3, temperature_scaling=True)
        found = heads.fit_transform(X, y)
        for k in range(3):
            temperature = fit_temperature(cross_fitted.logits(k), y)
            np.testing.assert_allclose(found.logits(k), cross_fitted.logits(k) / temperature)
            np.testing.assert_allclose(heads.transform(X).logits(k), raw.transform(X).logits(k) / temperature)


def test_heads_that_are_trained_together_are_refused():
    with pytest.raises(
        ValueError,
        match=r"^training='boosted' trains one head after another, but cascade=True with hidden_layer_sizes=\(5,\) "
        r"trains all together; use cascade=False, or hidden_layer_sizes=\(\)\.$",
    ):
        boosted((5,), cascade=True).fit(*make_features())
