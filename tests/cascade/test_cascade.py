"""A cascade of models: the same exits from cached answers and from models that run only for the samples that stay."""

import io
import subprocess
import sys
from functools import cache

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from skexit import (
    TRUSTED_TYPES,
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    JEIGatedEnsemble,
    ModelCascade,
    OptimalStoppingPolicy,
    RandomExit,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    make_exit_pipeline,
    stack_exits,
)
from skexit.model_selection import accuracy_and_cost, best_within
from skexit.policies._access import check_fits

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")]

POLICIES = [
    ThresholdPolicy(budget=0.5),
    ThresholdPolicy("margin", budget=0.4, use_most_confident=True),
    ThresholdPolicy("vote", budget=0.6),
    StaticExit(1),
    RandomExit(budget=0.5, random_state=0),
    OptimalStoppingPolicy(budget=0.4, random_state=0),
    EMExitAssigner(budget=0.5, random_state=0, max_epochs=3),
    EENetPolicy(budget=0.5, random_state=0, max_epochs=3),
    JEIGatedEnsemble(budget=0.5, random_state=0, max_epochs=3),
    RiskControlledPolicy(OptimalStoppingPolicy(random_state=0), alpha=0.05, random_state=0),
]


class Counting(ClassifierMixin, BaseEstimator):
    """A fitted classifier that notes how many rows it was given, and how many at a time at most."""

    def __init__(self, estimator):
        self.estimator = estimator
        self.classes_ = estimator.classes_
        self.n_rows, self.largest = 0, 0

    def predict_proba(self, X):
        self.n_rows += len(X)
        self.largest = max(self.largest, len(X))
        return self.estimator.predict_proba(X)


@cache
def digits():
    images, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return images[order] / 16, y[order]


@cache
def fitted_models(names=False):
    """A small, a medium and a large classifier of digits, fitted on 500 rows."""
    images, y = digits()
    y = y.astype(str) if names else y
    models = GaussianNB(var_smoothing=0.1), LogisticRegression(C=0.1), SVC(decision_function_shape="ovr")
    return tuple(model.fit(images[:500], y[:500]) for model in models)


def rows_to_fit():
    images, y = digits()
    return images[500:1000], y[500:1000]


def make_cascade(**parameters):
    return ModelCascade(**({"models": list(fitted_models()), "costs": [1, 3, 10], "cost_unit": "MACs"} | parameters))


def expected_logits(images):
    """An independent computation of what the models say."""
    small, medium, large = fitted_models()
    probabilities = [np.maximum(model.predict_proba(images), 1e-12) for model in (small, medium)]
    return [*np.log(probabilities), large.decision_function(images)]


def test_X_has_the_logits_of_each_model_and_its_costs():
    images, _ = rows_to_fit()
    X = make_cascade().fit_transform(images)
    for k, expected in enumerate(expected_logits(images)):
        np.testing.assert_allclose(X.logits(k), expected, atol=1e-9)
    assert X.layout.costs.tolist() == [1, 4, 14]
    assert X.layout.network_cost == 10
    assert X.layout.cost_unit == "MACs"
    assert X.layout.classes.tolist() == list(range(10))
    assert not X.layout.head_costs.any()


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_live_exits_are_those_of_cached_answers(policy):
    images, y = rows_to_fit()
    cascade = make_cascade()
    X = cascade.fit_transform(images)
    policy = clone(policy).fit(X, y)
    new = digits()[0][1000:]
    cached = stack_exits(expected_logits(new), costs=X.layout.costs, cost_unit="MACs", classes=range(10))
    cached = cached.with_layout(X.layout)
    for method in ("predict_exit", "predict"):
        np.testing.assert_array_equal(getattr(policy, method)(cascade.transform(new)), getattr(policy, method)(cached))
    np.testing.assert_allclose(
        policy.predict_proba(cascade.transform(new)), policy.predict_proba(cached), rtol=1e-6, atol=1e-9
    )
    pipeline = make_exit_pipeline(cascade, policy)
    np.testing.assert_array_equal(pipeline.predict_exit(new), policy.predict_exit(cached))
    assert pipeline.mean_cost(new) == policy.mean_cost(cached)


@given(order=st.permutations(range(60)), batch_size=st.integers(1, 70))
@settings(max_examples=20)
def test_neither_order_nor_batch_size_matters(order, batch_size):
    images, y = rows_to_fit()
    cascade = make_cascade()
    policy = ThresholdPolicy(budget=0.5).fit(cascade.fit_transform(images), y)
    new = digits()[0][1000:1060]
    expected = policy.predict_exit(cascade.fit_transform(new))
    other = make_cascade(batch_size=batch_size).fit(images).transform(new[order])
    np.testing.assert_array_equal(policy.predict_exit(other), expected[order])
    np.testing.assert_array_equal(policy.predict_exit(other[::-1]), expected[order][::-1])
    np.testing.assert_array_equal(policy.predict_exit(other[[3, 3, 1]]), expected[order][[3, 3, 1]])


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_model_runs_once_for_each_sample_that_gets_there(ensemble):
    images, y = rows_to_fit()
    new = digits()[0][1000:]
    models = [
        Counting(model) for model in (*fitted_models()[:2], RandomForestClassifier(10, random_state=0).fit(images, y))
    ]
    cascade = ModelCascade(models, costs=[1, 3, 10], batch_size=64)
    steps = [cascade, *([ExitEnsemble()] if ensemble else []), ThresholdPolicy("entropy", budget=0.5)]
    pipeline = make_exit_pipeline(*steps).fit(images, y)
    for model in models:
        model.n_rows = 0
    exits = pipeline.predict_exit(new)
    assert [model.n_rows for model in models] == [(exits >= k).sum() for k in range(3)]
    assert max(model.largest for model in models) == 64


def test_answers_are_kept():
    images, y = rows_to_fit()
    models = [Counting(model) for model in fitted_models()[:2]]
    cascade = ModelCascade(models, costs=[1, 5])
    policy = ThresholdPolicy(budget=0.5).fit(cascade.fit_transform(images), y)
    X = cascade.transform(digits()[0][1000:])
    for model in models:
        model.n_rows = 0
    exits = policy.predict_exit(X)
    policy.predict(X)
    np.testing.assert_array_equal(policy.predict_exit(X[::2]), exits[::2])
    assert [model.n_rows for model in models] == [len(X), (exits == 1).sum()]
    np.asarray(X)
    assert [model.n_rows for model in models] == [len(X), len(X)]


def test_a_model_where_nobody_may_leave_is_not_run():
    images, y = rows_to_fit()
    models = [Counting(model) for model in fitted_models()[:2]]
    pipeline = make_exit_pipeline(ModelCascade(models, costs=[1, 2]), StaticExit(1)).fit(images, y)
    before = models[0].n_rows
    pipeline.predict(images)
    assert models[0].n_rows == before


def test_decide_takes_the_answers_of_the_models():
    images, y = rows_to_fit()
    pipeline = make_exit_pipeline(make_cascade(), ThresholdPolicy(budget=0.5)).fit(images, y)
    new = digits()[0][1000:]
    exits, running, state = np.empty(len(new), dtype=int), np.arange(len(new)), None
    for k in range(3):
        leaves, state = pipeline.decide(k, expected_logits(new)[k][running], state=state)
        exits[running[leaves]] = k
        running = running[~leaves]
    np.testing.assert_array_equal(exits, pipeline.predict_exit(new))


class InOtherOrder(BaseEstimator):
    """A classifier that gives its classes in another order."""

    def __init__(self, estimator, order):
        self.estimator, self.order = estimator, order
        self.classes_ = estimator.classes_[order]

    def predict_proba(self, X):
        return self.estimator.predict_proba(X)[:, self.order]


@pytest.mark.parametrize("names", [False, True])
def test_classes_may_come_in_any_order(names):
    images, _ = rows_to_fit()
    small, medium, _ = fitted_models(names)
    order = np.random.default_rng(0).permutation(10)
    plain = ModelCascade([small, medium], costs=[1, 2]).fit_transform(images)
    other = ModelCascade([InOtherOrder(small, order), medium], costs=[1, 2]).fit_transform(images)
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(other))
    classes = small.classes_[order]
    given = ModelCascade([small, medium], costs=[1, 2], classes=classes).fit_transform(images)
    assert given.layout.classes.tolist() == classes.tolist()
    np.testing.assert_array_equal(given.logits(1), plain.logits(1)[:, order])


def test_a_model_that_lacks_a_class_is_refused():
    images, y = rows_to_fit()
    lacking = GaussianNB().fit(images[y != 7], y[y != 7])
    with pytest.raises(
        ValueError, match=r"'?small'? lacks the class 7, which models\[1\] \(LogisticRegression\) has.*Fit it"
    ):
        ModelCascade([("small", lacking), fitted_models()[1]]).fit(images)
    with pytest.raises(ValueError, match=r"classes lacks the class 9, which models\[0\].*Give all classes"):
        make_cascade(classes=range(9)).fit(images)
    with pytest.raises(ValueError, match=r"models\[0\] \(GaussianNB\) lacks the class 10, which classes has"):
        make_cascade(classes=range(11)).fit(images)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (GaussianNB(), r"models\[0\] \(GaussianNB\) has no classes_: it is not fitted, or not a classifier"),
        (Ridge().fit([[0.0], [1.0]], [0, 1]), "not a classifier"),
        (
            VotingClassifier([("a", GaussianNB())]).fit([[0.0], [1.0]], [0, 1]),
            "neither predict_proba nor decision_function.*voting='soft'",
        ),
        (KNeighborsClassifier(1).fit([[0.0], [1.0]], [[0, 1], [1, 0]]), "predicts several targets"),
    ],
)
def test_models_that_cannot_serve_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        ModelCascade([model], costs=[1]).fit(np.zeros((3, 1)))


def test_votes_of_pairs_are_refused():
    images, y = rows_to_fit()
    pairs = SVC(decision_function_shape="ovo").fit(images, y)
    with pytest.raises(ValueError, match=r"shape \(256, 45\) for 256 rows.*decision_function_shape='ovr'"):
        ModelCascade([pairs], costs=[1]).fit(images)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"models": []}, "has no model"),
        ({"costs": [1, 2]}, "give the cost of each of 3 models alone"),
        ({"costs": [1, 0, 2]}, "must be positive and finite"),
        ({"costs": [1, np.nan, 2]}, "must be positive and finite"),
        ({"costs": None}, "cost_unit='MACs' needs costs in that unit"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        make_cascade(**parameters).fit(rows_to_fit()[0])


def test_inputs_without_rows_and_what_is_not_fitted_are_refused():
    with pytest.raises(ValueError, match="0 sample"):
        make_cascade().fit(np.empty((0, 64)))
    with pytest.raises(ValueError, match="different numbers of rows"):
        make_cascade().fit({"a": np.zeros((3, 64)), "b": np.zeros((2, 64))})
    with pytest.raises(NotFittedError):
        make_cascade().transform(rows_to_fit()[0])


def test_costs_are_measured():
    images, y = rows_to_fit()

    class Slow(Counting):
        def predict_proba(self, X):
            joblib.hash(np.zeros(10**7))  # some ten milliseconds
            return super().predict_proba(X)

    slow = Slow(fitted_models()[1])
    cascade = ModelCascade([fitted_models()[0], slow], batch_size=100).fit(images)
    assert cascade.layout_out_.cost_unit == "ms"
    assert slow.largest == 100
    assert 0 < cascade.model_costs_[0] < cascade.model_costs_[1]
    np.testing.assert_allclose(cascade.layout_out_.costs, np.cumsum(cascade.model_costs_))
    assert cascade.layout_out_.network_cost == cascade.model_costs_[1]
    policy = ThresholdPolicy(budget=0.5).fit(cascade.transform(images), y)
    assert policy.costs_[-1] > 1
    assert policy.mean_cost(cascade.transform(images)) == pytest.approx(0.5, abs=0.02)


def test_a_cheap_last_model_is_worth_a_warning():
    images, _ = rows_to_fit()
    with pytest.warns(UserWarning, match=r"models\[1\] \(LogisticRegression\) costs 30 and the last model 10"):
        make_cascade(costs=[1, 30, 10]).fit(images)


def test_data_frames_sparse_matrices_and_lists():
    images, y = rows_to_fit()
    frame = pd.DataFrame(images, index=np.arange(len(images))[::-1]).rename(columns=str)
    models = [GaussianNB(var_smoothing=0.1).fit(frame, y), LogisticRegression(C=0.1).fit(frame, y)]
    pipeline = make_exit_pipeline(ModelCascade(models, costs=[1, 5]), ThresholdPolicy(budget=0.5)).fit(frame, y)
    exits = pipeline.predict_exit(frame)
    assert set(exits) == {0, 1}
    np.testing.assert_array_equal(pipeline.predict_exit(frame[::-1]), exits[::-1])
    output = clone(pipeline[0]).set_output(transform="pandas").fit_transform(frame)
    assert output.index.equals(frame.index)
    np.testing.assert_array_equal(clone(pipeline[-1]).fit(output, y).predict_exit(output), exits)

    linear = [RidgeClassifier(100).fit(images, y), LogisticRegression(C=0.1).fit(images, y)]
    pipeline = make_exit_pipeline(ModelCascade(linear, costs=[1, 5]), ThresholdPolicy(budget=0.5)).fit(images, y)
    exits = pipeline.predict_exit(images)
    for container in (sp.csr_matrix, sp.coo_array, sp.dok_matrix):
        np.testing.assert_array_equal(pipeline.predict_exit(container(images)), exits)
    np.testing.assert_array_equal(pipeline.predict_exit(images.tolist()), exits)


@pytest.mark.parametrize("container", [list, tuple, np.array, pd.Series])
def test_texts(container):
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=300)
    words = np.array([["bad", "good"][label] if rng.random() < 0.7 else "so" for label in y.tolist()])
    texts = container([f"{word} {other}" for word, other in zip(words, rng.permutation(words), strict=True)])
    models = [
        make_pipeline(CountVectorizer(vocabulary=["bad", "good"]), MultinomialNB()).fit(texts, y),
        make_pipeline(CountVectorizer(ngram_range=(1, 2)), LinearSVC()).fit(texts, y),
    ]
    pipeline = make_exit_pipeline(ModelCascade(models, costs=[1, 3]), ThresholdPolicy(budget=0.7)).fit(texts, y)
    X = pipeline[0].fit_transform(texts)
    np.testing.assert_allclose(X.logits(1)[:, 1] - X.logits(1)[:, 0], models[1].decision_function(texts))
    np.testing.assert_array_equal(pipeline.predict_exit(texts), pipeline[-1].predict_exit(X))
    assert pipeline.score(texts, y) > 0.7


def test_a_search_over_budgets_leaves_the_models_fitted():
    images, y = rows_to_fit()
    pipeline = make_exit_pipeline(make_cascade(), ThresholdPolicy())
    search = GridSearchCV(
        pipeline,
        {"thresholdpolicy__budget": [0.2, 0.5, 0.9]},
        scoring=accuracy_and_cost(),
        refit=best_within(0.6),
        cv=3,
    ).fit(images, y)
    assert search.best_params_["thresholdpolicy__budget"] <= 0.6
    new, y_new = digits()[0][1000:], digits()[1][1000:]
    assert search.best_estimator_.mean_cost(new) == pytest.approx(0.5, abs=0.1)
    assert (
        search.predict(new).tolist() == search.best_estimator_[-1].predict(make_cascade().fit_transform(new)).tolist()
    )
    assert check_fits(search, new, y_new) is None


def test_a_frozen_cascade_keeps_what_it_measured():
    images, y = rows_to_fit()
    cascade = ModelCascade(list(fitted_models())).fit(images)
    pipeline = make_exit_pipeline(FrozenEstimator(cascade), ThresholdPolicy(budget=0.9)).fit(images, y)
    np.testing.assert_array_equal(pipeline.costs_, cascade.layout_out_.cost_fractions)


def test_clone_and_parameters():
    cascade = make_cascade().set_output(transform="pandas").fit(rows_to_fit()[0])
    cloned = clone(cascade)
    assert cloned.models is cascade.models
    assert not hasattr(cloned, "layout_out_")
    assert isinstance(cloned.fit_transform(rows_to_fit()[0]), pd.DataFrame)
    assert cloned.set_params(batch_size=3).batch_size == 3
    assert cascade.batch_size == 256
    names = cascade.get_feature_names_out()
    assert names[0] == "exit0__logit0"
    assert len(names) == 30
    assert "LogisticRegression" in cascade._repr_html_()


def test_joblib():
    images, y = rows_to_fit()
    pipeline = make_exit_pipeline(make_cascade(), ThresholdPolicy(budget=0.5)).fit(images, y)
    file = io.BytesIO()
    joblib.dump((pipeline, pipeline[0].transform(images)), file)
    loaded, X = joblib.load(file)
    np.testing.assert_array_equal(loaded.predict_exit(images), pipeline.predict_exit(images))
    np.testing.assert_array_equal(loaded[-1].predict_exit(X), pipeline.predict_exit(images))
    assert loaded.layout_fingerprint_ == pipeline.layout_fingerprint_
    light = loaded.without_fit_state()
    np.testing.assert_array_equal(light.predict(images), pipeline.predict(images))


def test_skops():
    skops_io = pytest.importorskip("skops.io")
    images, y = rows_to_fit()
    pipeline = make_exit_pipeline(make_cascade(), ThresholdPolicy(budget=0.5)).fit(images, y)
    loaded = skops_io.loads(skops_io.dumps(pipeline), trusted=TRUSTED_TYPES)
    np.testing.assert_array_equal(loaded.predict_exit(images), pipeline.predict_exit(images))


def test_classifiers_need_no_torch():
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise ImportError('torch is not here')\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import numpy as np\n"
        "from sklearn.naive_bayes import GaussianNB\n"
        "from skexit import ModelCascade\n"
        "X, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2\n"
        "model = GaussianNB().fit(X, y)\n"
        "print(ModelCascade([model, model]).fit_transform(X).shape)"
    )
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "(20, 4)"


class OfAnyInput(ClassifierMixin, BaseEstimator):
    """A fitted classifier that takes what scikit-learn's checks pass."""

    def __init__(self, scale=1.0):
        self.scale = scale
        self.classes_ = np.array([0, 1])

    def predict_proba(self, X):
        means = X.mean(axis=1) if sp.issparse(X) else np.asarray(X, dtype=float).reshape(len(X), -1).mean(axis=1)
        p = 1 / (1 + np.exp(-self.scale * np.asarray(means).ravel().clip(-5, 5)))
        return np.column_stack([1 - p, p])


@parametrize_with_checks([ModelCascade([OfAnyInput(), OfAnyInput(2.0)], costs=[1, 2])])
def test_scikit_learn_checks(estimator, check):
    check(estimator)
