"""Early-exit failure prediction: whether scores tell where it is right to stop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from skexit.metrics import early_exit_failure_prediction, exit_auroc


@given(st.integers(0, 10_000), st.integers(2, 5))
def test_against_scikit_learn(seed, n_exits):
    rng = np.random.default_rng(seed)
    correct = rng.random((30, n_exits)) < 0.5
    scores = rng.integers(5, size=(30, n_exits)).astype(float)
    measured = early_exit_failure_prediction(correct, scores)
    for k in range(n_exits):
        target = [bool(row[k]) or not any(row[k + 1 :]) for row in correct.tolist()]
        if len(set(target)) == 1:
            assert np.isnan(measured[k])
        else:
            assert measured[k] == pytest.approx(roc_auc_score(target, scores[:, k]))


def test_last_exit():
    """There, it is always right to stop."""
    assert np.isnan(early_exit_failure_prediction([[True, False], [False, True]], [[1, 0], [0, 1]])[-1])


def test_what_no_exit_gets_right_should_stop():
    """Low scores for it are an advantage for exit_auroc, and count against the scores here."""
    correct = np.array([[True, True], [False, True], [False, False]])
    low, high = [[2.0, 2], [1, 1], [0, 0]], [[2.0, 2], [1, 1], [3, 3]]
    assert [exit_auroc(correct, scores)[0] for scores in (low, high)] == [1, 0.5]
    assert [early_exit_failure_prediction(correct, scores)[0] for scores in (low, high)] == [0.5, 1]


def test_single_exit():
    assert np.isnan(early_exit_failure_prediction([[True], [False]], [[1.0], [0.0]])).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"correct has dtype int64; pass booleans"):
        early_exit_failure_prediction([[1, 0]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match=r"scores has shape \(1, 1\) and correct \(1, 2\)"):
        early_exit_failure_prediction([[True, False]], [[0.5]])
