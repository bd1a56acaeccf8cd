"""ExitEnsemble and use_most_confident: answers that make use of earlier exits."""

import numpy as np
import pytest
from instances import make_exits
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV

import skexit.data._arrays
import skexit.data._lazy
import skexit.heads._ensemble
import skexit.heads._transformer
from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    OptimalStoppingPolicy,
    ThresholdPolicy,
    stack_exits,
)
from skexit.uncertainty import expected_calibration_error, softmax


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=600, n_exits=4, n_classes=3, random_state=0)


@pytest.fixture(scope="module")
def new():
    return make_exits(n_samples=600, n_exits=4, n_classes=3, random_state=1)


def without_logits(X):
    """The features of all exits, and the logits of the last only."""
    return stack_exits([None] * 3 + [X.logits(3)], [X.features(k) for k in range(4)], costs=[1e3, 2e3, 3e3, 4e3])


def stacked(X):
    return np.stack([X.logits(k) for k in range(X.layout.n_exits)], axis=1)


class TestMixture:
    def test_is_the_formula(self, data):
        """Equation 3 of Zero Time Waste, row by row."""
        X, y = data
        ensemble = ExitEnsemble().fit(X, y)
        mixed = stacked(ensemble.transform(X))
        logits = stacked(X)
        for row in range(0, 600, 60):
            for k in range(4):
                products = np.exp(ensemble.biases_[k])
                for j in range(k + 1):
                    products = products * softmax(logits[row, j]) ** ensemble.weights_[k, j]
                np.testing.assert_allclose(softmax(mixed[row, k]), products / products.sum())

    def test_has_the_least_loss(self, data):
        """No weights and biases do better, by another optimiser that starts elsewhere."""
        X, y = data
        weight = np.random.default_rng(0).exponential(size=len(y))
        ensemble = ExitEnsemble().fit(X, y, sample_weight=weight)
        seen = log_softmax(stacked(X), axis=2)

        def loss(parameters, k):
            logits = np.einsum("j,njc->nc", parameters[: k + 1], seen[:, : k + 1]) + parameters[k + 1 :]
            entropy = -np.average(log_softmax(logits, axis=1)[np.arange(len(y)), y], weights=weight)
            return entropy + 0.5e-4 * parameters[k + 1 :] @ parameters[k + 1 :]

        for k in range(4):
            bounds = [(0, None)] * (k + 1) + [(None, None)] * 3
            best = minimize(
                loss,
                np.full(k + 4, 0.3),
                args=k,
                method="Nelder-Mead",
                bounds=bounds,
                tol=1e-9,
                options={"maxiter": 20000, "maxfev": 20000},
            )
            found = loss(np.append(ensemble.weights_[k, : k + 1], ensemble.biases_[k]), k)
            assert found <= best.fun + 1e-7
        assert (ensemble.weights_ >= 0).all()
        assert (np.triu(ensemble.weights_, 1) == 0).all()

    def test_explains_new_rows_better_than_any_single_exit(self, data, new):
        X, y = data
        Z, labels = new
        mixed = ExitEnsemble().fit(X, y).transform(Z)
        for k in range(1, 4):
            losses = [log_loss(labels, softmax(Z.logits(j))) for j in range(k + 1)]
            assert log_loss(labels, softmax(mixed.logits(k))) < min(losses)

    def test_of_independent_exits_is_their_product(self):
        """Two exits that see independent evidence: by Bayes' rule both weights are one."""
        rng = np.random.default_rng(0)
        y = rng.integers(2, size=100_000)
        evidence = rng.normal(size=(100_000, 2)) + (2 * y - 1)[:, None]  # log-odds 2 x
        logits = np.stack([-evidence, evidence], axis=2)
        weights = ExitEnsemble().fit(stack_exits(logits), y).weights_
        np.testing.assert_allclose(weights, [[1, 0], [1, 1]], atol=0.03)

    def test_probabilities_are_calibrated(self):
        """Logits that are four times too large."""
        rng = np.random.default_rng(0)
        y = rng.integers(3, size=8000)
        X = stack_exits(4 * (rng.normal(size=(8000, 2, 3)) + np.eye(3)[y][:, None]))
        mixed = ExitEnsemble().fit(X[:4000], y[:4000]).transform(X[4000:])
        for k in range(2):
            before, after = (expected_calibration_error(y[4000:], softmax(V.logits(k))) for V in (X[4000:], mixed))
            assert after < 0.03
            assert before > 0.2

    def test_many_rows_are_thinned(self, data, monkeypatch):
        X, y = data
        monkeypatch.setattr(skexit.data._arrays, "_ENOUGH_NUMBERS", 4 * 3 * 100)
        rows = np.linspace(0, 599, 100).astype(int)
        found, expected = ExitEnsemble().fit(X, y), ExitEnsemble().fit(X[rows], y[rows])
        np.testing.assert_array_equal(found.weights_, expected.weights_)


class TestTransformer:
    def test_later_exits_do_not_matter(self, data):
        X, y = data
        ensemble = ExitEnsemble().fit(X, y)
        changed = stack_exits(
            np.concatenate([stacked(X)[:, :2], -stacked(X)[:, 2:]], axis=1), [X.features(k) for k in range(4)]
        )
        for k in (0, 1):
            np.testing.assert_array_equal(ensemble.transform(changed).logits(k), ensemble.transform(X).logits(k))

    def test_features_are_kept(self, data):
        X, y = data
        mixed = ExitEnsemble().fit_transform(X, y)
        for k in range(4):
            np.testing.assert_array_equal(mixed.features(k), X.features(k))

    def test_lazy_and_at_once_are_the_same(self, data, monkeypatch):
        X, y = data
        for transformer in (ExitEnsemble(), ExitEnsemble(ExitHeads((8,), cascade=True, max_epochs=2, random_state=0))):
            fitted = transformer.fit(without_logits(X), y)
            at_once = np.asarray(fitted.transform(without_logits(X)))
            monkeypatch.setattr(skexit.data._lazy, "LARGEST_BYTES", 0)
            np.testing.assert_allclose(np.asarray(fitted.transform(without_logits(X))), at_once)
            monkeypatch.undo()

    def test_fit_transform_mixes_cross_fitted_logits(self, data):
        X, y = data
        heads = ExitHeads(random_state=0)
        found = ExitEnsemble(heads).fit_transform(without_logits(X), y)
        expected = ExitEnsemble().fit_transform(clone(heads).fit_transform(without_logits(X), y), y)
        np.testing.assert_allclose(stacked(found), stacked(expected))
        with_logits = heads.fit(without_logits(X), y).transform(without_logits(X))
        assert not np.allclose(stacked(found), stacked(ExitEnsemble().fit_transform(with_logits, y)), atol=0.01)

    def test_frozen_heads_are_used_as_they_are(self, data, new):
        X, y = data
        Z, labels = new
        heads = ExitHeads(random_state=0).fit(without_logits(X), y)
        frozen = ExitEnsemble(FrozenEstimator(heads)).fit(without_logits(Z), labels)
        expected = ExitEnsemble().fit(heads.transform(without_logits(Z)), labels)
        np.testing.assert_array_equal(frozen.weights_, expected.weights_)
        np.testing.assert_array_equal(
            stacked(frozen.transform(without_logits(X))),
            stacked(expected.transform(heads.transform(without_logits(X)))),
        )

    def test_rows_of_zero_weight_fit_nothing(self, data):
        X, y = data
        used = np.random.default_rng(0).uniform(size=len(y)) < 0.7
        ensemble = ExitEnsemble()
        found = ensemble.fit_transform(without_logits(X), y, sample_weight=used.astype(float))
        expected = ExitEnsemble().fit_transform(without_logits(X)[used], y[used])
        np.testing.assert_allclose(np.asarray(found)[used], np.asarray(expected))
        rest = ensemble.transform(without_logits(X))
        np.testing.assert_allclose(np.asarray(found)[~used], np.asarray(rest)[~used])

    def test_costs_are_counted(self, data):
        X, y = data
        features = [X.features(k) for k in range(4)]
        for unit, per_multiply_add in (("MACs", 1), ("FLOPs", 2), ("ms", 0)):
            Z = stack_exits([None] * 3 + [X.logits(3)], features, costs=[1e3, 2e3, 3e3, 4e3], cost_unit=unit)
            costs = ExitEnsemble().fit(Z, y).layout_out_.costs
            heads, mixtures = np.array([12, 24, 36, 36]), np.cumsum([3, 6, 9, 12])
            np.testing.assert_array_equal(costs, Z.layout.costs + per_multiply_add * (heads + mixtures))

    def test_pandas(self, data):
        X, y = data
        ensemble = ExitEnsemble().fit(X, y)
        frame = clone(ensemble).set_output(transform="pandas").fit(X, y).transform(X)
        assert frame.columns.tolist() == ensemble.get_feature_names_out().tolist()
        np.testing.assert_array_equal(frame, np.asarray(ensemble.transform(X)))

    def test_a_single_class(self, data):
        X, y = data
        with pytest.raises(ValueError, match="y has 1 class, 0; pass rows of two classes or more"):
            ExitEnsemble().fit(stack_exits(features=[X.features(0), X.features(1)]), 0 * y)

    def test_heads_that_give_no_logits(self, data):
        X, y = data
        with pytest.raises(ValueError, match="The 'heads' parameter of ExitEnsemble must be"):
            ExitEnsemble(heads=3).fit(X, y)


@pytest.fixture(scope="module", params=["own", "of heads"])
def first_step(request, data, new):
    """Rows to fit and new ones, and an ensemble's output on both, as the first step of a pipeline gives it."""
    (X, y), (Z, _) = data, new
    if request.param == "of heads":
        X, Z = without_logits(X), without_logits(Z)
    ensemble = ExitEnsemble()
    return X, Z, ensemble.fit_transform(X, y), ensemble.transform(Z)


class TestWithPolicies:
    POLICIES = (
        ThresholdPolicy("margin", budget=0.7),
        OptimalStoppingPolicy(0.7, random_state=0),
        EMExitAssigner(budget=0.7, random_state=0, max_epochs=2),
        EENetPolicy(0.7, random_state=0, max_epochs=2),
    )

    @pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
    def test_as_heads_is_as_after_it(self, data, first_step, policy):
        X, Z, mixed_X, mixed_Z = first_step
        y = data[1]
        within = clone(policy).set_params(heads=ExitEnsemble()).fit(X, y)
        after = clone(policy).fit(mixed_X, y)
        np.testing.assert_allclose(within.predict_proba(Z), after.predict_proba(mixed_Z))
        np.testing.assert_array_equal(within.predict_exit(Z), after.predict_exit(mixed_Z))
        np.testing.assert_array_equal(within.predict_at_exits(Z), after.predict_at_exits(mixed_Z))

    def test_frozen_heads_in_a_policy(self, data, new):
        X, y = data
        Z, labels = new
        heads = ExitHeads(random_state=0).fit(without_logits(X), y)
        within = ThresholdPolicy(budget=0.6, heads=FrozenEstimator(heads)).fit(without_logits(Z), labels)
        expected = ThresholdPolicy(budget=0.6).fit(heads.transform(without_logits(Z)), labels)
        np.testing.assert_array_equal(within.thresholds_, expected.thresholds_)
        np.testing.assert_array_equal(
            within.predict(without_logits(X)), expected.predict(heads.transform(without_logits(X)))
        )

    def test_grid_search(self, data):
        X, y = data
        search = GridSearchCV(
            ThresholdPolicy(heads=ExitEnsemble()), {"heads": [None, ExitEnsemble()], "budget": [0.5, 0.8]}, cv=3
        ).fit(X, y)
        assert isinstance(search.best_params_["heads"], ExitEnsemble)


class TestRecall:
    @staticmethod
    def slow_most_confident(logits):
        """Of every row at every exit, the logits of the most confident exit so far."""
        most_confident = np.empty_like(logits)
        for row, exits in enumerate(logits):
            for k in range(len(exits)):
                confidences = [softmax(exits[j]).max() for j in range(k + 1)]
                most_confident[row, k] = exits[int(np.argmax(confidences))]
        return most_confident

    @pytest.mark.parametrize("policy", TestWithPolicies.POLICIES, ids=lambda policy: type(policy).__name__)
    def test_is_a_policy_on_most_confident_logits(self, data, new, policy):
        X, y = data
        Z, _ = new
        features = [[V.features(k) for k in range(4)] for V in (X, Z)]
        slow = [
            stack_exits(self.slow_most_confident(stacked(V)), parts) for V, parts in zip((X, Z), features, strict=True)
        ]
        found = clone(policy).set_params(use_most_confident=True).fit(X, y)
        expected = clone(policy).fit(slow[0], y)
        np.testing.assert_allclose(found.thresholds_, expected.thresholds_)
        np.testing.assert_allclose(found.exit_scores(Z), expected.exit_scores(slow[1]))
        np.testing.assert_array_equal(found.predict(Z), expected.predict(slow[1]))
        np.testing.assert_array_equal(found.predict_at_exits(Z), expected.predict_at_exits(slow[1]))
        np.testing.assert_allclose(found.with_budget(0.5).thresholds_, expected.with_budget(0.5).thresholds_)

    @pytest.mark.parametrize("policy", TestWithPolicies.POLICIES, ids=lambda policy: type(policy).__name__)
    def test_with_heads(self, data, new, policy):
        X, y = data
        Z = without_logits(new[0])
        heads = ExitHeads(random_state=0)
        within = clone(policy).set_params(use_most_confident=True, heads=heads).fit(without_logits(X), y)
        before = (
            clone(policy).set_params(use_most_confident=True).fit(clone(heads).fit_transform(without_logits(X), y), y)
        )
        np.testing.assert_array_equal(within.predict(Z), before.predict(within.heads_.transform(Z)))

    def test_the_last_exit_is_not_always_the_answer(self, data):
        X, y = data
        policy = OptimalStoppingPolicy(1.0, use_most_confident=True, random_state=0).fit(X, y)
        most_confident = self.slow_most_confident(stacked(X))
        np.testing.assert_array_equal(policy.predict_at_exits(X), most_confident.argmax(axis=2))
        assert (most_confident[:, 3].argmax(axis=1) != X.logits(3).argmax(axis=1)).any()
