"""Warnings point at the user's line."""

import ast
import inspect
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, StackingClassifier
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline

import skexit
from skexit import (
    EMExitAssigner,
    ExitHeads,
    ExitLayout,
    RiskControlledPolicy,
    ThresholdPolicy,
    make_exit_pipeline,
    stack_exits,
)
from skexit.exceptions import InconsistentVersionWarning
from skexit.runtime import policy_from_json, policy_to_json
from skexit.uncertainty import fit_temperature

LABELS = np.arange(90) % 3


def _tied():
    """Two exits whose answers are all alike, so that no budget between their costs can be met."""
    return stack_exits(np.zeros((90, 2, 3)))


def _fit(X):
    ThresholdPolicy(budget=0.75).fit(X, LABELS)


def _fit_in_pipeline(X):
    make_pipeline("passthrough", ThresholdPolicy(budget=0.75)).fit(X, LABELS)


def _cross_validate(X):
    cross_val_score(ThresholdPolicy(budget=0.75), X, LABELS, cv=2)


def _control_risk(X):
    RiskControlledPolicy(ThresholdPolicy(), alpha=0.01).fit(X, LABELS)


def _change_budget(X):
    ThresholdPolicy(budget=0.5).fit(X, LABELS).with_budget(0.75)


def _read_json_of_another_version(X):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skexit._version.__version__", "0.0.1")
        text = policy_to_json(ThresholdPolicy(budget=0.5).fit(X, LABELS))
    policy_from_json(text)


def _load_joblib_of_another_version(X, path):
    policy = ThresholdPolicy(budget=0.5).fit(X, LABELS)
    state = type(policy).__getstate__
    try:
        type(policy).__getstate__ = lambda self: state(self) | {"_skexit_version": "0.0.1"}
        joblib.dump(policy, path)
    finally:
        del type(policy).__getstate__
    joblib.load(path)


def _read_frame_without_attrs(X):
    frame = X.to_frame()
    frame.attrs.clear()
    ThresholdPolicy(budget=1.0).fit(frame, LABELS)


def _pass_probabilities(X):
    ThresholdPolicy(budget=1.0).fit(np.full((90, 2, 3), 1 / 3), LABELS)


def _pass_logits_as_features(X):
    logits = np.tile(np.eye(3)[LABELS], 2) + np.random.default_rng(0).normal(size=(90, 6))
    ThresholdPolicy(budget=1.0, layout=2).fit(logits, LABELS)


def _pass_targets_of_regression(X):
    ExitHeads((2,), max_epochs=1).fit(stack_exits(features=np.ones((90, 2, 3))), np.arange(90) // 2 * 40)


def _lose_the_exits(X):
    ThresholdPolicy(budget=0.75).fit(np.ones((90, 6)), LABELS)


def _lose_the_exits_before_heads(X):
    make_exit_pipeline(ExitHeads(), ThresholdPolicy(budget=0.75)).fit(np.ones((90, 6)), LABELS)


def _predict_at_other_costs(X):
    counted = X.with_layout(ExitLayout([3, 3], cost_unit="MACs", costs=[1e6, 2e6]))
    policy = ThresholdPolicy(budget=1.0).fit(counted, LABELS)
    policy.predict(X.with_layout(ExitLayout([3, 3], cost_unit="MACs", costs=[1e6, 3e6])))


def _buy_expensive_heads(X):
    layout = ExitLayout([0, 0], [3, 3], cost_unit="MACs", costs=[10, 20])
    ThresholdPolicy(budget=1.0, layout=layout).fit(np.ones((90, 6)), LABELS)


def _train_routers_in_vain(X):
    EMExitAssigner(budget=0.75, max_epochs=1, random_state=0).fit(X, LABELS)


def _reach_a_bound(X):
    fit_temperature(-1e3 * np.eye(3)[LABELS], LABELS)


def _search(X):
    GridSearchCV(ThresholdPolicy(), {"budget": [0.75]}, cv=2).fit(X, LABELS)


def _search_in_a_pipeline(X):
    GridSearchCV(make_pipeline(ThresholdPolicy()), {"thresholdpolicy__budget": [0.75]}, cv=2, refit=False).fit(
        X, LABELS
    )


def _predict_by_cross_validation(X):
    cross_val_predict(ThresholdPolicy(budget=0.75), X, LABELS, cv=2)


def _fit_an_exit_pipeline(X):
    make_exit_pipeline(ThresholdPolicy(budget=0.75)).fit(X, LABELS)


def _bag(X):
    BaggingClassifier(ThresholdPolicy(budget=0.75, layout=X.layout), n_estimators=2).fit(X, LABELS)


def _calibrate(X):
    CalibratedClassifierCV(ThresholdPolicy(budget=0.75), cv=2).fit(X, LABELS)


def _stack(X):
    StackingClassifier([("policy", ThresholdPolicy(budget=0.75, layout=X.layout))], cv=2).fit(X, LABELS)


@pytest.mark.parametrize(
    "act",
    [
        *(_fit, _fit_in_pipeline, _cross_validate, _control_risk, _change_budget, _read_json_of_another_version),
        *(_read_frame_without_attrs, _pass_probabilities, _pass_logits_as_features, _pass_targets_of_regression),
        *(_lose_the_exits, _lose_the_exits_before_heads, _predict_at_other_costs, _buy_expensive_heads),
        *(_train_routers_in_vain, _reach_a_bound, _search, _search_in_a_pipeline, _predict_by_cross_validation),
        *(_fit_an_exit_pipeline, _bag, _calibrate, _stack),
    ],
)
def test_points_at_the_users_line(act):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act(_tied())
    assert caught
    lines = range(inspect.getsourcelines(act)[1], inspect.getsourcelines(act)[1] + len(inspect.getsourcelines(act)[0]))
    for warning in caught:
        assert warning.filename == __file__, f"{warning.filename}:{warning.lineno}: {warning.message}"
        assert warning.lineno in lines


def test_joblib_points_at_the_users_line(tmp_path):
    with pytest.warns(UserWarning, match=r"saved by skexit 0\.0\.1") as caught:
        _load_joblib_of_another_version(_tied(), tmp_path / "policy.joblib")
    assert [warning.filename for warning in caught] == [__file__]


def test_skops_points_at_the_users_line(tmp_path):
    policy = ThresholdPolicy(budget=0.5).fit(_tied(), LABELS)
    state = type(policy).__getstate__
    try:
        type(policy).__getstate__ = lambda self: state(self) | {"_skexit_version": "0.0.1"}
        written = skops.io.dumps(policy)
    finally:
        del type(policy).__getstate__
    with pytest.warns(InconsistentVersionWarning) as caught:
        skops.io.loads(written, trusted=skops.io.get_untrusted_types(data=written))
    assert [warning.filename for warning in caught] == [__file__]


def test_every_warning_goes_through_warn():
    """A bare ``warnings.warn`` points into skexit, and is not left out by ``silenced``."""
    package = Path(skexit.__file__).parent
    # The checks of policies warn at their caller, which is a runner of tests, of checks that they skip.
    allowed = [package / "utils" / "_warnings.py", package / "testing" / "_run.py"]
    bare = [
        f"{path}:{node.lineno}"
        for path in package.rglob("*.py")
        if path not in allowed
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("warn", "warn_explicit"))
        or (isinstance(node, ast.ImportFrom) and node.module == "warnings")
    ]
    assert not bare
