"""The tools of scikit-learn that the guide lists, on an ExitArray, its DataFrame and a plain array."""

import warnings

import numpy as np
import pytest
from instances import make_exits
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import RFE
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.semi_supervised import SelfTrainingClassifier

from skexit import ThresholdPolicy
from skexit.exceptions import LayoutLostWarning

X, y = make_exits(n_samples=150, n_exits=3, n_classes=3, random_state=0)
BINARY, OF_TWO = make_exits(n_samples=150, n_exits=3, n_classes=2, random_state=0)
BUDGETS = {"budget": [0.6, 0.8]}


def fitted(make):
    return lambda policy, X, y: make(policy).fit(X, y).predict(X)


AS_IT_IS = {
    "GridSearchCV": fitted(lambda policy: GridSearchCV(policy, BUDGETS, cv=2)),
    "RandomizedSearchCV": fitted(lambda policy: RandomizedSearchCV(policy, BUDGETS, cv=2, n_iter=2)),
    "HalvingGridSearchCV": fitted(
        lambda policy: HalvingGridSearchCV(policy, BUDGETS, cv=2, min_resources=60, random_state=0)
    ),
    "cross_val_score": lambda policy, X, y: cross_val_score(policy, X, y, cv=2),
    "cross_validate": lambda policy, X, y: cross_validate(policy, X, y, cv=2)["test_score"],
    "cross_val_predict": lambda policy, X, y: cross_val_predict(policy, X, y, cv=2, method="predict_proba"),
    "learning_curve": lambda policy, X, y: learning_curve(policy, X, y, cv=2, train_sizes=[0.5, 1.0])[1],
    "validation_curve": lambda policy, X, y: validation_curve(
        policy, X, y, param_name="budget", param_range=[0.6, 0.8], cv=2
    )[1],
    "permutation_test_score": lambda policy, X, y: permutation_test_score(policy, X, y, cv=2, n_permutations=2)[0],
    "CalibratedClassifierCV": fitted(lambda policy: CalibratedClassifierCV(policy, cv=2)),
    "StackingClassifier": fitted(lambda policy: StackingClassifier([("a", policy)], LogisticRegression(), cv=2)),
    "VotingClassifier": fitted(lambda policy: VotingClassifier([("a", policy)], voting="soft")),
    "OneVsRestClassifier": fitted(OneVsRestClassifier),
    "MultiOutputClassifier": lambda policy, X, y: MultiOutputClassifier(policy).fit(X, np.c_[y, y]).predict(X),
    "permutation_importance": lambda policy, X, y: (
        permutation_importance(policy.fit(X, y), X, y, n_repeats=1, random_state=0).importances_mean
    ),
    "TunedThresholdClassifierCV": fitted(lambda policy: TunedThresholdClassifierCV(policy, cv=2)),
    "FixedThresholdClassifier": fitted(FixedThresholdClassifier),
}
WITH_LAYOUT = {
    "BaggingClassifier": fitted(lambda policy: BaggingClassifier(policy, n_estimators=2, random_state=0)),
    "AdaBoostClassifier": fitted(lambda policy: AdaBoostClassifier(policy, n_estimators=2, random_state=0)),
    "OneVsOneClassifier": fitted(OneVsOneClassifier),
    "SelfTrainingClassifier": lambda policy, X, y: (
        SelfTrainingClassifier(policy).fit(X, np.where(np.arange(len(y)) % 3, y, -1)).predict(X)
    ),
}


def rows_for(name):
    return (BINARY, OF_TWO) if "Threshold" in name else (X, y)


@pytest.mark.parametrize("name", AS_IT_IS)
def test_those_that_need_nothing(name):
    exits, labels = rows_for(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LayoutLostWarning)
        expected = AS_IT_IS[name](ThresholdPolicy(budget=0.7), exits, labels)
        frame = AS_IT_IS[name](ThresholdPolicy(budget=0.7), exits.to_frame(), labels)
        plain = AS_IT_IS[name](ThresholdPolicy(budget=0.7, layout=exits.layout), np.asarray(exits), labels)
    np.testing.assert_allclose(frame, expected)
    np.testing.assert_allclose(plain, expected)


@pytest.mark.parametrize("name", WITH_LAYOUT)
def test_those_that_need_a_layout(name):
    policy = ThresholdPolicy(budget=0.7, layout=X.layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LayoutLostWarning)
        expected = WITH_LAYOUT[name](policy, X, y)
        for rows in (X.to_frame(), np.asarray(X)):
            np.testing.assert_array_equal(WITH_LAYOUT[name](policy, rows, y), expected)
    with pytest.warns(LayoutLostWarning):
        WITH_LAYOUT[name](ThresholdPolicy(budget=0.7), X, y)


def test_partial_dependence():
    policy = ThresholdPolicy(budget=0.7, layout=X.layout).fit(np.asarray(X), y)
    assert partial_dependence(policy, np.asarray(X), [0])["average"].shape[0] == 3


def test_those_that_choose_columns():
    bagging = BaggingClassifier(ThresholdPolicy(budget=0.7, layout=X.layout), max_features=0.5, n_estimators=2)
    with pytest.raises(ValueError, match="layout describes 21 columns but X has 10"):
        bagging.fit(X, y)
    with pytest.raises(ValueError, match="importance_getter"):
        RFE(ThresholdPolicy(budget=0.7, layout=X.layout)).fit(X, y)
