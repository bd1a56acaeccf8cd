"""Every public estimator keeps scikit-learn's conventions and the policy contract."""

import copy
import subprocess
import sys
from functools import cache

import joblib
import numpy as np
import pytest
from instances import EXACT_HEADS, POLICIES, estimators, make_exits
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from skexit import ExitArray, ExitHeads, ExitLayout, stack_exits
from skexit.policies._decision import ExitDecision
from skexit.testing import parametrize_policy_checks
from skexit.uncertainty import softmax
from skexit.uncertainty._conformal import ConformalScores

# PABEE's votes are tied, and so fall short of most budgets.
pytestmark = pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")


# Plain arrays say nothing of exits.
without_exits = pytest.mark.filterwarnings(
    "ignore::skexit.exceptions.LayoutLostWarning", "ignore:no exit of X that needs a head has a map:UserWarning"
)


@without_exits
@parametrize_with_checks(estimators())
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@without_exits
@parametrize_with_checks(EXACT_HEADS)
def test_scikit_learn_checks_of_boosted_heads(estimator, check):
    check(estimator)


@parametrize_policy_checks(POLICIES)
def test_policy_checks(policy, check):
    check(policy)


@pytest.fixture(scope="module")
def data():
    return make_data()


@cache
def make_data():
    return make_exits(n_samples=300, n_exits=4, n_classes=3, random_state=0)


@cache
def fit(index):
    """The policy of that index, fitted once for all tests."""
    return clone(POLICIES[index]).fit(*make_data())


@pytest.fixture(scope="module", params=range(len(POLICIES)), ids=map(repr, POLICIES))
def fitted(request):
    return fit(request.param)


def test_answers_are_those_of_the_exit(fitted, data):
    X, _ = data
    exits, probabilities = fitted.predict_exit(X), fitted.predict_proba(X)
    for row, exit in enumerate(exits):
        logits = X.logits(exit, [row])[0]
        expected = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(probabilities[row], expected)
    np.testing.assert_array_equal(fitted.predict(X), fitted.classes_[probabilities.argmax(axis=1)])


def test_answers_at_exits_are_those_of_all_exits(fitted, data):
    X, _ = data
    answers = fitted.predict_at_exits(X)
    logits = np.stack([X.logits(k) for k in range(X.layout.n_exits)], axis=1)
    np.testing.assert_array_equal(answers, fitted.classes_[logits.argmax(axis=2)])
    np.testing.assert_array_equal(answers[np.arange(len(X)), fitted.predict_exit(X)], fitted.predict(X))


@pytest.fixture(scope="module")
def on_features(data):
    """Features, logits at the last exit alone, and names for classes, not in the order of the alphabet."""
    X, y = data
    names = np.array(["c", "a", "b"])
    features = stack_exits(
        [None, None, None, X.logits(3)],
        [X.features(k) for k in range(4)],
        costs=X.layout.costs * 1e4,
        cost_unit="MACs",
        classes=names,
    )
    return features, names[y]


@pytest.fixture(scope="module")
def with_heads(fitted, on_features):
    """Fitted on the first 200 rows, with heads."""
    X, y = on_features
    return clone(fitted).fit(X[:200], y[:200])


def test_answers_at_exits_are_class_labels_also_with_heads(with_heads, on_features):
    X, _ = on_features
    with_logits = with_heads.heads_.transform(X)
    answers = with_heads.predict_at_exits(X)
    for k in range(4):
        expected = with_logits.layout.classes[with_logits.logits(k).argmax(axis=1)]
        np.testing.assert_array_equal(answers[:, k], expected)
    with pytest.raises(NotFittedError):
        clone(with_heads).predict_at_exits(X)


@pytest.mark.slow
@pytest.mark.parametrize("n_with_logits", [0, 2])
def test_heads_where_no_exit_or_the_last_two_have_logits(fitted, data, n_with_logits):
    X, y = data
    names = np.array(["c", "a", "b"])
    logits = [X.logits(k) if k >= 4 - n_with_logits else None for k in range(4)]
    named = stack_exits(logits, [X.features(k) for k in range(4)], classes=names)
    policy = clone(fitted).fit(named, names[y])
    with_logits = policy.heads_.transform(named)
    answers = policy.predict_at_exits(named)
    for k in range(4):
        np.testing.assert_array_equal(answers[:, k], with_logits.layout.classes[with_logits.logits(k).argmax(axis=1)])
    assert policy.layout_.n_logits == (3, 3, 3, 3)
    np.testing.assert_array_equal(policy.predict_exit(named), policy.predict_exit(np.asarray(named)))


def test_mean_cost_and_score(fitted, data):
    X, y = data
    assert fitted.mean_cost(X) == pytest.approx(np.mean([fitted.costs_[k] for k in fitted.predict_exit(X)]))
    assert fitted.score(X, y) == pytest.approx(np.mean(fitted.predict(X) == y))


def test_an_exit_is_read_only_for_samples_that_reach_it(fitted, data):
    X, _ = data

    class CountingSource:
        def __init__(self):
            self.n_rows, self.dtype = len(X), X.dtype
            self.rows = {}

        def read(self, layout, k, part, rows):
            if part == "logits":
                self.rows.setdefault(k, set()).update(np.arange(self.n_rows)[rows].tolist())
            return X.source.read(layout, k, part, rows)

    source = CountingSource()
    exits = fitted.predict_exit(ExitArray(source, X.layout))
    for k, is_observed in enumerate(ExitDecision(fitted).is_observed):
        assert source.rows.get(k, set()) == set(np.flatnonzero(exits >= k).tolist() if is_observed else [])


def test_fitted_states_need_no_torch(data, tmp_path):
    """Fitted policies are loaded and applied in a process that cannot import torch."""
    X, _ = data
    joblib.dump(([fit(index) for index in range(len(POLICIES))], np.asarray(X), X.layout), tmp_path / "policies.joblib")
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise ImportError('torch is not here')\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import joblib, numpy as np, skexit\n"
        f"policies, X, layout = joblib.load({str(tmp_path / 'policies.joblib')!r})\n"
        "for policy in policies:\n"
        "    print(policy.predict_exit(skexit.ExitArray.from_array(X, layout)).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == [str(fit(index).predict_exit(X).tolist()) for index in range(len(POLICIES))]


def test_another_layout_is_refused(fitted, data):
    X, _ = data
    for n_features in ([3, 5, 4, 4], [3, 4, 4, 4]):  # as many columns, and one less
        other = ExitLayout(n_logits=X.layout.n_logits, n_features=n_features, costs=X.layout.costs)
        with pytest.raises(ValueError, match=r"X has the layout .* was fitted with"):
            fitted.predict(ExitArray(X.source, other))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(fitted, data, value):
    X, y = data
    values = np.asarray(X).copy()
    values[7, X.layout.logit_columns(0).start] = value
    with pytest.raises(ValueError, match="NaN or infinity: the logits of exit 0"):
        clone(fitted).fit(ExitArray.from_array(values, X.layout), y)
    if ExitDecision(fitted).is_observed[0]:
        with pytest.raises(ValueError, match="NaN or infinity: the logits of exit 0"):
            fitted.predict(ExitArray.from_array(values, X.layout))
    else:  # as the live network does, which does not even compute them
        np.testing.assert_array_equal(fitted.predict(ExitArray.from_array(values, X.layout)), fitted.predict(X))


def test_a_class_that_the_layout_does_not_know_is_refused(fitted, data):
    X, y = data
    y = y.copy()
    y[0] = 3
    with pytest.raises(ValueError, match="y has the class 3, which is none of those known"):
        clone(fitted).fit(
            stack_exits([X.logits(k) for k in range(4)], [X.features(k) for k in range(4)], classes=[0, 1, 2]), y
        )


def test_budgets(fitted, data):
    X, y = data
    if not hasattr(fitted, "with_budget"):
        pytest.skip("has no budget")
    for budget in (0.3, 0.55, 0.8, 1.0):
        policy = fitted.with_budget(budget)
        # Votes are tied, and some policies spend no more where that makes answers worse.
        ends = policy.thresholds_[0] == getattr(policy, "rewarding_threshold_", None)
        if policy.get_params().get("criterion") != "vote" and not ends:
            assert policy.mean_cost(X) >= budget - 1 / len(X) - 1e-9
    for wrong in (0, -0.1, 1.01, np.nan):
        with pytest.raises(ValueError, match=r"budget=.* must be in \(0, 1\]"):
            fitted.with_budget(wrong)
        with pytest.raises(ValueError, match=r"budget=.* must be in \(0, 1\]"):
            clone(fitted).set_params(budget=wrong).fit(X, y)
    with pytest.raises(ValueError, match=r"budget=0\.1 is below the cost of the first exit, 0\.25"):
        fitted.with_budget(0.1)


def test_heads_are_fitted_where_logits_are_missing(with_heads, on_features):
    X, _ = on_features
    layout = with_heads.layout_
    assert isinstance(with_heads.heads_, ExitHeads)
    assert layout.n_logits == (3, 3, 3, 3)
    assert (layout.costs >= X.layout.costs).all()
    assert layout.costs[-1] - X.layout.costs[-1] == 3 * 4 * 3  # three heads, 4 features, 3 classes
    exits = with_heads.predict_exit(X)
    np.testing.assert_array_equal(exits, with_heads.predict_exit(np.asarray(X)))
    at_last = exits == 3
    expected = X.layout.classes[X.logits(3)[at_last].argmax(axis=1)]
    np.testing.assert_array_equal(with_heads.predict(X)[at_last], expected)


SET_METHODS = ["general", "ims", "strict", "gated"]


@pytest.fixture(scope="module")
def calibration_data():
    X, y = make_exits(n_samples=200, n_exits=4, n_classes=3, random_state=1)
    return ExitArray.from_array(5 * np.asarray(X), X.layout), y  # too sure of themselves


@pytest.fixture(scope="module")
def calibrated(fitted, calibration_data):
    return copy.deepcopy(fitted).calibrate(*calibration_data)


def test_calibration_changes_no_decision(fitted, calibrated, data):
    X, _ = data
    np.testing.assert_array_equal(calibrated.thresholds_, fitted.thresholds_)
    for method in ("predict", "predict_exit", "exit_scores"):
        np.testing.assert_array_equal(getattr(calibrated, method)(X), getattr(fitted, method)(X))


def test_calibrated_probabilities_are_those_of_the_temperatures(calibrated, data):
    X, _ = data
    assert calibrated.temperatures_.shape == (4,)
    assert (calibrated.temperatures_ != 1).all()
    exits = calibrated.predict_exit(X)
    logits = np.stack([X.logits(k) for k in range(4)], axis=1)[np.arange(len(X)), exits]
    expected = softmax(logits / calibrated.temperatures_[exits][:, None])
    np.testing.assert_allclose(calibrated.predict_proba(X), expected)


def test_conformal_scores_are_those_of_the_calibration_rows(calibrated, calibration_data):
    X, y = calibration_data
    np.testing.assert_array_equal(calibrated.conformal_scores_.exits, calibrated.predict_exit(X))
    for k in range(4):
        expected = 1 - softmax(X.logits(k) / calibrated.temperatures_[k])[np.arange(len(X)), y]
        np.testing.assert_allclose(calibrated.conformal_scores_.scores[:, k], expected, atol=1e-12)


@pytest.mark.parametrize("method", SET_METHODS)
def test_sets(calibrated, data, method):
    X, _ = data
    probabilities, exits = calibrated.predict_proba(X), calibrated.predict_exit(X)
    smaller = np.zeros((len(X), 3), dtype=bool)
    for alpha in (0.5, 0.2, 0.05, 0.001):
        sets = calibrated.predict_set(X, alpha, method)
        assert sets.shape == (len(X), 3)
        assert sets.dtype == bool
        thresholds = calibrated.conformal_scores_.thresholds(alpha, method)
        np.testing.assert_array_equal(sets, 1 - probabilities <= thresholds[exits][:, None])
        predicted = probabilities.argmax(axis=1)
        np.testing.assert_array_equal(sets[np.arange(len(X)), predicted], sets.any(axis=1))
        assert (sets >= smaller).all()
        smaller = sets
    np.testing.assert_array_equal(calibrated.predict_set(X), calibrated.predict_set(X, 0.05, "gated"))


def test_calibration_is_dropped_where_other_samples_may_leave(calibrated, data):
    X, y = data
    others = [copy.deepcopy(calibrated).fit(X, y)]
    if hasattr(calibrated, "with_budget"):
        others.append(calibrated.with_budget(0.8))
    for policy in others:
        assert policy.temperatures_.tolist() == [1, 1, 1, 1]
        with pytest.raises(NotFittedError, match="is not calibrated"):
            policy.predict_set(X)
    assert vars(clone(calibrated)).keys() == calibrated.get_params(deep=False).keys()
    assert (calibrated.temperatures_ != 1).all()
    calibrated.predict_set(X)


def test_calibration_survives_persistence(calibrated, data, tmp_path):
    X, _ = data
    joblib.dump(calibrated, tmp_path / "policy.joblib")
    loaded = joblib.load(tmp_path / "policy.joblib")
    np.testing.assert_array_equal(loaded.predict_proba(X), calibrated.predict_proba(X))
    np.testing.assert_array_equal(loaded.predict_set(X, 0.1), calibrated.predict_set(X, 0.1))
    assert isinstance(loaded.conformal_scores_, ConformalScores)


def test_errors_of_calibration(fitted, calibrated, data):
    X, y = data
    name = type(fitted).__name__
    for method, arguments in [("calibrate", (X, y)), ("predict_set", (X,))]:
        with pytest.raises(NotFittedError, match=f"This {name} instance is not fitted yet"):
            getattr(clone(fitted), method)(*arguments)
    message = (
        f"^This {name} is not calibrated. Call 'calibrate' on rows that were not used in fitting before 'predict_set'.$"
    )
    with pytest.raises(NotFittedError, match=message):
        fitted.predict_set(X)
    with pytest.raises(ValueError, match=r"^method='loose' must be 'general', 'ims', 'strict' or 'gated'\.$"):
        calibrated.predict_set(X, method="loose")
    with pytest.raises(ValueError, match=r"^alpha=1 must be between 0 and 1"):
        calibrated.predict_set(X, alpha=1)
    policy = copy.deepcopy(fitted)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[300, 299\]"):
        policy.calibrate(X, y[:-1])
    with pytest.raises(ValueError, match="y has the class 3, which is none of those known"):
        policy.calibrate(X, np.where(y == 2, 3, y))
    with pytest.raises(NotFittedError):
        policy.predict_set(X)  # what was refused has left nothing behind


def test_calibration_rows_may_lack_classes(fitted, data):
    X, y = data
    policy = copy.deepcopy(fitted).calibrate(X[y == 1], y[y == 1])
    assert policy.predict_set(X).shape == (len(X), 3)
    assert np.isfinite(policy.predict_proba(X)).all()


def test_calibration_with_heads_of_its_own(with_heads, on_features):
    X, y = on_features
    policy = copy.deepcopy(with_heads).calibrate(X[200:], y[200:])
    exits = policy.predict_exit(X)
    logits = np.stack([policy.heads_.transform(X).logits(k) for k in range(4)], axis=1)
    expected = softmax(logits[np.arange(300), exits] / policy.temperatures_[exits][:, None])
    np.testing.assert_allclose(policy.predict_proba(X), expected)
    np.testing.assert_array_equal(policy.conformal_scores_.exits, exits[200:])
    assert policy.predict_set(np.asarray(X), 0.2).shape == (300, 3)
