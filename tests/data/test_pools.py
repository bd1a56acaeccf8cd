"""Names of exits and their pooling, from a layout to the policies that are fitted on it."""

import io
import pickle
import re

import joblib
import numpy as np
import pytest
from rows import make_rows
from sklearn.preprocessing import StandardScaler
from skops.io import dumps, loads

from skexit import (
    TRUSTED_TYPES,
    ExitArray,
    ExitEnsemble,
    ExitHeads,
    ExitLayout,
    ExitTransformer,
    ThresholdPolicy,
    make_exit_pipeline,
    stack_exits,
)
from skexit.runtime import policy_from_json, policy_to_json

NAMES, POOLS = ("stem", "layer1", "layer2"), ("avg+max", "max", None)


@pytest.fixture(scope="module")
def rows():
    logits, y = make_rows(60)
    rng = np.random.default_rng(0)
    X = stack_exits([None, None, logits.logits(3)], [rng.normal(size=(60, 4)) + y[:, None] for _ in range(3)])
    return X.with_layout(X.layout.replace(exit_names=NAMES, pools=POOLS)), y


def known(layout):
    return layout.exit_names, layout.pools


def with_pools(X, pools):
    return X.with_layout(X.layout.replace(pools=pools))


def test_rows_and_files_keep_them(rows):
    X, _ = rows
    for same in (X[5:], X[[1, 0]], X[X.features(0)[:, 0] > 0], pickle.loads(pickle.dumps(X)), X[:0]):
        assert known(same.layout) == (NAMES, POOLS)
    assert X.exit_names == list(NAMES)
    assert known(ExitArray.from_frame(X.to_frame()).layout) == (NAMES, POOLS)
    assert known(ExitLayout.from_dict(X.layout.to_dict())) == (NAMES, POOLS)
    assert known(X.layout.replace(costs=[1, 2, 3], cost_unit="ms")) == (NAMES, POOLS)


def test_selected_exits_keep_theirs_and_their_maps(rows):
    X, _ = rows
    X = X.with_layout(X.layout.replace(feature_maps=[(0, 1, 2, 2), None, (0, 4, 1, 1)]))
    selected = X.select_exits([0, 2]).layout
    assert known(selected) == (("stem", "layer2"), ("avg+max", None))
    assert selected.feature_maps == ((0, 1, 2, 2), (0, 4, 1, 1))


def test_other_features_are_no_longer_pooled(rows):
    X, _ = rows
    assert known(X.layout.replace(n_features=[1, 2, 3])) == (NAMES, None)
    assert known(ExitTransformer(StandardScaler()).fit(X).transform(X).layout) == (NAMES, None)


def through_joblib(policy):
    file = io.BytesIO()
    joblib.dump(policy, file)
    file.seek(0)
    return joblib.load(file)


SAVED = {
    "as fitted": lambda policy: policy,
    "pickle": lambda policy: pickle.loads(pickle.dumps(policy)),
    "joblib": through_joblib,
    "skops": lambda policy: loads(dumps(policy), trusted=TRUSTED_TYPES),
    "JSON": lambda policy: policy_from_json(policy_to_json(policy)),
}


@pytest.mark.parametrize("save", SAVED.values(), ids=SAVED)
def test_policies_keep_them(rows, save):
    policy = save(ThresholdPolicy(budget=0.8, heads=ExitHeads()).fit(*rows))
    assert known(policy.layout_) == known(policy.heads_.layout_) == (NAMES, POOLS)
    assert policy.layout_fingerprint_ == rows[0].layout.fingerprint


ESTIMATORS = [
    ThresholdPolicy(budget=0.8, heads=ExitHeads()),
    ExitEnsemble(ExitHeads()),
    make_exit_pipeline(ExitHeads(), ThresholdPolicy(budget=0.8)),
    make_exit_pipeline(ExitTransformer(StandardScaler()), ExitHeads(), ThresholdPolicy(budget=0.8)),
]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("as_frame", [False, True])
def test_features_that_were_pooled_otherwise(rows, estimator, as_frame):
    X, y = rows
    fitted = estimator.fit(X, y)
    other = with_pools(X, ("avg+max", "avg", None))
    message = r"the features of exit 'layer1' in X were pooled by 'avg', but \w+ was fitted on features that were "
    message += r"pooled by 'max'. Extract X with pool='max', or fit \w+ again."
    method = fitted.predict if hasattr(fitted, "predict") else fitted.transform
    with pytest.raises(ValueError, match=f"^{message}$"):
        method(other.to_frame() if as_frame else other)


def test_only_what_both_know_is_compared(rows):
    X, y = rows
    plain = X.layout.replace(exit_names=None, pools=None)
    for fitted, new in [
        (X, np.asarray(X)),
        (X, X.with_layout(plain)),
        (X.with_layout(plain), X),
        (X, with_pools(X, (None, "max", "max"))),
        (X, X.with_layout(X.layout.replace(exit_names=["a", "b", "c"]))),
    ]:
        policy = ESTIMATORS[0].fit(fitted, y)
        np.testing.assert_array_equal(policy.predict(new), policy.predict(fitted))


def test_a_layout_for_fit_leaves_them(rows):
    X, y = rows
    layout = ExitLayout(X.layout.n_logits, X.layout.n_features, costs=[1, 2, 4], cost_unit="ms")
    assert known(ThresholdPolicy(heads=ExitHeads(), layout=layout).fit(X, y).layout_) == (NAMES, POOLS)


def test_the_cure_with_a_number_of_an_exit(rows):
    X, y = rows
    fitted = ExitHeads().fit(X.with_layout(X.layout.replace(exit_names=None)), y)
    other = X.with_layout(X.layout.replace(exit_names=None, pools=["avg", "max", None]))
    message = "the features of exit 0 in X were pooled by 'avg', but ExitHeads was fitted on features that were pooled "
    message += "by 'avg+max'. Extract X with pool=['avg', 'max'], or fit ExitHeads again."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fitted.transform(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_names": ["a"]}, "exit_names has 1 entries for 3 exits; give one for each exit."),
        ({"exit_names": "abc"}, "exit_names='abc' must be a list with the name of each exit, or None."),
        ({"exit_names": [1, 2, 3]}, "exit_names=[1, 2, 3] must be a list with the name of each exit, or None."),
        ({"pools": ["avg"] * 2}, "pools has 2 entries for 3 exits; give one for each exit."),
        (
            {"pools": "avg"},
            "pools='avg' must be a list with the pooling of each exit, such as 'avg' or 'avg+max', or None.",
        ),
    ],
)
def test_wrong_ones(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ExitLayout([2, 2, 2], **changes)
