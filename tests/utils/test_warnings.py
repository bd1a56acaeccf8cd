"""Warnings point at the user's line."""

import hashlib
import inspect
import json

import joblib
import numpy as np
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from skexit import RiskControlledPolicy, ThresholdPolicy, stack_exits
from skexit.runtime import policy_from_json, policy_to_json

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
    document = json.loads(policy_to_json(ThresholdPolicy(budget=0.5).fit(X, LABELS))) | {"skexit_version": "0.0.1"}
    del document["sha256"]
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    policy_from_json(json.dumps(document | {"sha256": digest}))


def _load_joblib_of_another_version(X, path):
    policy = ThresholdPolicy(budget=0.5).fit(X, LABELS)
    state = type(policy).__getstate__
    try:
        type(policy).__getstate__ = lambda self: state(self) | {"_skexit_version": "0.0.1"}
        joblib.dump(policy, path)
    finally:
        del type(policy).__getstate__
    joblib.load(path)


@pytest.mark.parametrize(
    "act", [_fit, _fit_in_pipeline, _cross_validate, _control_risk, _change_budget, _read_json_of_another_version]
)
def test_points_at_the_users_line(act):
    with pytest.warns(UserWarning, match=r"tied scores|no budget qualifies|saved by skexit") as caught:
        act(_tied())
    lines = range(inspect.getsourcelines(act)[1], inspect.getsourcelines(act)[1] + len(inspect.getsourcelines(act)[0]))
    assert {warning.filename for warning in caught} == {__file__}
    assert all(warning.lineno in lines for warning in caught)


def test_joblib_points_at_the_users_line(tmp_path):
    with pytest.warns(UserWarning, match=r"saved by skexit 0\.0\.1") as caught:
        _load_joblib_of_another_version(_tied(), tmp_path / "policy.joblib")
    assert [warning.filename for warning in caught] == [__file__]
