"""Pipelines with the methods of their policy, and the one to start with."""

import io

import joblib
import numpy as np
import pytest
import sklearn
from instances import POLICIES, make_exits
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline

from skexit import (
    TRUSTED_TYPES,
    ExitEnsemble,
    ExitHeads,
    ExitPipeline,
    OptimalStoppingPolicy,
    StaticExit,
    ThresholdPolicy,
    make_exit_pipeline,
    recommended_heads,
    recommended_pipeline,
    stack_exits,
)
from skexit.model_selection import accuracy_and_cost, best_within, budget_curve, neg_mean_cost_scorer
from skexit.plotting import ExitDistributionDisplay
from skexit.runtime import policy_from_json, policy_to_json
from skexit.runtime._decisions import Decisions

#: Methods of a policy that take X.
METHODS = ("predict_exit", "predict_at_exits", "exit_scores", "mean_cost", "predict_set", "predict_proba", "predict")
ATTRIBUTES = ("thresholds_", "costs_", "exit_distribution_", "temperatures_", "classes_")


@pytest.fixture(scope="module")
def data():
    X, y = make_exits(600, 3, 3, 0)
    return stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)]), y


def test_is_heads_ensemble_and_stopping(data):
    X, y = data
    pipeline = recommended_pipeline(0.7, random_state=0)
    heads = recommended_heads(random_state=0)
    assert pipeline["ensemble"].heads.get_params() == heads.get_params()
    # They are the same also after few epochs.
    ensemble = ExitEnsemble(heads.set_params(max_epochs=3))
    pipeline.set_params(ensemble__heads__max_epochs=3).fit(X[:400], y[:400])
    policy = OptimalStoppingPolicy(0.7, random_state=0).fit(ensemble.fit_transform(X[:400], y[:400]), y[:400])
    np.testing.assert_array_equal(pipeline.predict(X), policy.predict(ensemble.transform(X)))
    assert pipeline[-1].exit_distribution_ @ pipeline[-1].costs_ == pytest.approx(0.7, abs=1 / 400)


def test_fitted_heads_are_used_as_they_are(data):
    X, y = data
    heads = ExitHeads((8,), cascade=True, max_epochs=2, random_state=0).fit(X[:300], y[:300])
    pipeline = recommended_pipeline(heads=heads, random_state=0).fit(X[300:], y[300:])
    assert pipeline["ensemble"].heads_.estimator is heads
    with pytest.raises(NotFittedError):
        recommended_pipeline(heads=ExitHeads()).fit(X, y)


def test_recommended_heads_follow_rows_and_classes():
    heads = clone(recommended_heads(random_state=3)).set_params(max_epochs=1)
    assert heads.random_state == 3
    assert not hasattr(heads, "networks_")
    for n_classes in (2, 5):
        X, y = make_exits(60, 3, n_classes, 0)
        heads.fit(stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)]), y)
        assert len(heads.classes_) == n_classes
        assert heads.distillation_ == 0.9


@pytest.mark.parametrize("given", ["logits", "features"])
def test_where_exits_have_all_or_no_logits(given):
    X, y = make_exits(300, 3, 3, 0)
    blocks = [getattr(X, given)(k) for k in range(3)]
    X = stack_exits(**{given: blocks})
    pipeline = recommended_pipeline(0.6, random_state=0).set_params(ensemble__heads__max_epochs=10)
    assert pipeline.fit(X, y).score(X, y) > 0.6


def test_clone_search_and_joblib(data, tmp_path):
    X, y = data
    pipeline = clone(recommended_pipeline(random_state=0)).set_params(ensemble__heads__max_epochs=2)
    search = GridSearchCV(
        pipeline,
        {"ensemble__heads__hidden_layer_sizes": [(), (8,)], "policy__budget": [0.5, 0.6]},
        scoring=accuracy_and_cost(),
        refit=best_within(0.7),
        cv=2,
    ).fit(X, y)
    assert search.best_estimator_.mean_cost(X) == -neg_mean_cost_scorer(search, X)
    joblib.dump(search.best_estimator_, tmp_path / "pipeline.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "pipeline.joblib").predict(X), search.predict(X))


def assert_same_answers(pipeline, other, X):
    for method in METHODS:
        np.testing.assert_array_equal(getattr(pipeline, method)(X), getattr(other, method)(X))


@pytest.fixture(scope="module")
def fitted(data):
    """A fitted pipeline, calibrated; tests leave it as it is."""
    X, y = data
    return make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.6)).fit(X, y).calibrate(X, y)


class TestExitPipeline:
    @pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
    @pytest.mark.parametrize("policy", POLICIES, ids=repr)
    def test_has_the_methods_and_attributes_of_its_policy(self, policy):
        X, y = make_exits(200, 3, 3, 0)
        ensemble = ExitEnsemble()
        logits = ensemble.fit_transform(X, y)
        alone = clone(policy).fit(logits, y).calibrate(logits, y)
        pipeline = make_exit_pipeline(ensemble, clone(policy)).fit(X, y).calibrate(X, y)
        for method in METHODS:
            np.testing.assert_array_equal(getattr(pipeline, method)(X), getattr(alone, method)(logits))
        for name in ATTRIBUTES:
            np.testing.assert_array_equal(getattr(pipeline, name), getattr(alone, name))
        assert (pipeline.layout_, pipeline.layout_fingerprint_) == (alone.layout_, X.layout.fingerprint)
        assert hasattr(pipeline, "with_budget") == hasattr(alone, "with_budget")
        if hasattr(alone, "with_budget"):
            copied = pipeline.with_budget(0.9)
            assert type(copied) is ExitPipeline
            np.testing.assert_array_equal(copied.predict_exit(X), alone.with_budget(0.9).predict_exit(logits))
            np.testing.assert_array_equal(pipeline.thresholds_, alone.thresholds_)
            with pytest.raises(NotFittedError):
                copied.predict_set(X)

    def test_parameters_reach_the_policy(self, fitted, data):
        X, y = data
        policy, logits = fitted[-1], fitted[0].transform(X)
        weight = np.arange(len(y))
        assert fitted.mean_cost(X, weight) == policy.mean_cost(logits, sample_weight=weight)
        np.testing.assert_array_equal(
            fitted.predict_set(X, alpha=0.3, method="ims"), policy.predict_set(logits, 0.3, "ims")
        )
        pipeline = fitted.with_budget(0.7).calibrate(X, y, temperature=False)
        np.testing.assert_array_equal(pipeline.temperatures_, np.ones(3))

    def test_without_fit_state(self, fitted, data):
        X, _ = data
        light = fitted.without_fit_state()
        assert type(light) is ExitPipeline
        assert len(dumped(light)) < len(dumped(fitted))
        np.testing.assert_array_equal(light.predict_proba(X), fitted.predict_proba(X))
        with pytest.raises(ValueError, match="has no fit_state_, which with_budget"):
            light.with_budget(0.9)
        assert light[0].fit_state_ is None
        assert fitted.with_budget(0.9).mean_cost(X) > fitted.mean_cost(X)

    def test_before_fit(self, data):
        pipeline = make_exit_pipeline(ExitEnsemble(), ThresholdPolicy())
        for method in METHODS:
            with pytest.raises(NotFittedError):
                getattr(pipeline, method)(data[0])
        for call in (pipeline.without_fit_state, lambda: pipeline.with_budget(0.5), lambda: pipeline.calibrate(*data)):
            with pytest.raises(NotFittedError):
                call()
        assert not any(hasattr(pipeline, name) for name in (*ATTRIBUTES, "layout_", "layout_fingerprint_"))

    @pytest.mark.parametrize("last", [LogisticRegression(), "passthrough", None, ExitEnsemble()], ids=repr)
    def test_what_the_last_step_lacks_is_not_there(self, last):
        pipeline = ExitPipeline([("ensemble", ExitEnsemble()), ("last", last)])
        assert not any(hasattr(pipeline, name) for name in ("predict_exit", "mean_cost", "with_budget", "calibrate"))
        with pytest.raises(AttributeError, match="has no attribute 'predict_exit'"):
            _ = pipeline.predict_exit
        assert not hasattr(make_exit_pipeline(StaticExit()), "with_budget")

    def test_steps_that_scikit_learn_knows(self, data):
        X, y = data
        heads, policy = ExitHeads(random_state=0), ThresholdPolicy(budget=0.6)
        expected = make_exit_pipeline(clone(heads), clone(policy)).fit(X, y).predict_exit(X)
        search = GridSearchCV(make_pipeline(clone(policy)), {"thresholdpolicy__budget": [0.6]})
        frozen = FrozenEstimator(make_pipeline(clone(heads), clone(policy)).fit(X, y))
        for steps in (
            ["passthrough", clone(heads), None, clone(policy)],
            [clone(heads), search],
            [make_pipeline(clone(heads)), make_exit_pipeline(clone(policy))],
            [frozen],
        ):
            pipeline = ExitPipeline([(f"step{number}", step) for number, step in enumerate(steps)]).fit(X, y)
            np.testing.assert_array_equal(pipeline.predict_exit(X), expected)
            assert pipeline.with_budget(0.9).mean_cost(X) > pipeline.mean_cost(X)
            assert [type(step) for step in Decisions(pipeline).steps] == [ExitHeads, ThresholdPolicy]

    def test_is_a_pipeline_of_scikit_learn(self, fitted, data, tmp_path):
        X, y = data
        assert isinstance(fitted, Pipeline)
        assert type(fitted[:1]) is type(fitted[-1:]) is ExitPipeline
        np.testing.assert_array_equal(fitted[-1:].predict_exit(fitted[:1].transform(X)), fitted.predict_exit(X))
        copied = clone(fitted).set_params(thresholdpolicy__budget=0.9, memory=str(tmp_path), verbose=True)
        assert type(copied) is ExitPipeline
        for _ in range(2):  # the second time from the memory
            assert copied.fit(X, y).mean_cost(X) == fitted.with_budget(0.9).mean_cost(X)
        html = fitted._repr_html_()
        assert "ExitPipeline" in html
        assert "<summary>Exits</summary>" in html

    def test_metadata_routing(self, data):
        X, y = data
        weight = np.where(np.arange(len(y)) % 2, 5.0, 1.0)
        expected = make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.6))
        expected.fit(X, y, exitheads__sample_weight=weight, thresholdpolicy__sample_weight=weight)
        with sklearn.config_context(enable_metadata_routing=True):
            heads = ExitHeads(random_state=0).set_fit_request(sample_weight=True)
            pipeline = make_exit_pipeline(heads, ThresholdPolicy(budget=0.6).set_fit_request(sample_weight=True))
            pipeline.fit(X, y, sample_weight=weight)
            assert pipeline.mean_cost(X, weight) == expected.mean_cost(X, weight)

    def test_saving(self, fitted, data):
        X, y = data
        assert_same_answers(joblib.load(io.BytesIO(dumped(fitted))), fitted, X)
        skops_io = pytest.importorskip("skops.io")
        assert_same_answers(skops_io.loads(skops_io.dumps(fitted), trusted=TRUSTED_TYPES), fitted, X)
        again = policy_from_json(policy_to_json(fitted))
        assert type(again) is ExitPipeline
        assert_same_answers(again.calibrate(X, y), fitted, X)

    def test_in_the_rest_of_the_package(self, fitted, data):
        X, y = data
        assert accuracy_and_cost()(fitted, X, y)["mean_cost"] == fitted.mean_cost(X)
        curve = budget_curve(fitted, X, y, [0.5, 0.9], cv=2)
        np.testing.assert_allclose(curve.costs.mean(axis=1), [0.5, 0.9], atol=0.1)
        display = ExitDistributionDisplay.from_estimators({"pipeline": fitted}, X)
        np.testing.assert_allclose(display.shares[0], np.bincount(fitted.predict_exit(X)) / len(X))


def dumped(estimator):
    file = io.BytesIO()
    joblib.dump(estimator, file)
    return file.getvalue()
