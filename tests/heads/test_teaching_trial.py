"""The trial that decides whether the deepest head teaches the others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import COSTS, memorable_task, noisy_task, overfitted_task

from skexit import stack_exits
from skexit.heads import _teaching_trial
from skexit.heads._deepest_head import shares_by_exit
from skexit.heads._held_out import exceeds_zero
from skexit.heads._teaching_trial import _Half, _halves, _least_squares, teaching_helps


def helps(X, y, weight=None, groups=None):
    weight = np.ones(len(y)) if weight is None else weight
    return teaching_helps(X, y, weight, groups, shares_by_exit(X.layout, 0.65))


def ridge(features, targets, weight):
    """The same model by the solution of a longer least-squares problem."""
    share = weight / weight.sum()
    mean = share @ features
    scale = np.sqrt(share @ (features - mean) ** 2)
    root = np.sqrt(share)[:, None]
    rows = np.concatenate([root * (features - mean) / scale, np.sqrt(0.03) * np.eye(features.shape[1])])
    centre = share @ targets
    aims = np.concatenate([root * (targets - centre), np.zeros((features.shape[1], targets.shape[1]))])
    coefficients = np.linalg.lstsq(rows, aims, rcond=None)[0]
    return lambda new: (new - mean) / scale @ coefficients + centre


class TestDecision:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("labels_of", [1, 3])
    def test_on_where_other_heads_overfit_wrong_labels(self, seed, labels_of):
        assert helps(*overfitted_task(400, seed, labels_of))

    @pytest.mark.parametrize("seed", range(5))
    def test_off_where_the_deepest_features_are_worst(self, seed):
        X, y, _ = noisy_task(400, seed)
        assert not helps(stack_exits(features=[X.features(k) for k in (2, 1, 0)], costs=COSTS), y)

    @pytest.mark.parametrize("seed", range(5))
    def test_off_where_nothing_can_be_learned(self, seed):
        assert not helps(*memorable_task(60, seed))

    def test_needs_evidence_of_many_rows(self):
        """The same task, of which a few rows prove nothing."""
        decisions = [[helps(*overfitted_task(n_samples, seed)) for seed in range(10)] for n_samples in (20, 600)]
        assert np.mean(decisions, axis=1).tolist() == pytest.approx([0, 1], abs=0.2)

    def test_rows_without_a_label_are_used(self):
        """Rows that the teacher alone explains make it more useful."""
        with_others, alone = [], []
        for seed in range(10):
            X, y = overfitted_task(600, seed, labels_of=10)
            with_others.append(helps(X, y))
            alone.append(helps(X[y >= 0], y[y >= 0]))
        assert sum(with_others) > sum(alone) + 2

    def test_some_of_the_rows_decide(self, monkeypatch):
        X, y = overfitted_task(900, labels_of=2)
        monkeypatch.setattr(_teaching_trial, "_ENOUGH_ROWS", 300)
        rows = _teaching_trial._enough_rows(X, y)
        assert np.sum(y[rows] >= 0) == np.sum(y[rows] < 0) == 300
        assert (np.diff(rows) > 0).all()
        assert helps(X, y, groups=np.arange(900) // 2)

    def test_a_class_may_be_absent_from_some_rows(self):
        X, y = overfitted_task(60)
        y[:] = y % 2
        y[7] = 2
        assert helps(X, y) in (True, False)


class TestParts:
    @settings(deadline=None, max_examples=25)
    @given(seed=st.integers(0, 100), n_rows=st.integers(5, 40), n_features=st.integers(1, 60))
    def test_least_squares(self, seed, n_rows, n_features):
        rng = np.random.default_rng(seed)
        features, targets = rng.normal(3, 5, size=(n_rows, n_features)), rng.normal(size=(n_rows, 2))
        weight, new = rng.uniform(0.1, 3, size=n_rows), rng.normal(3, 5, size=(4, n_features))
        expected = ridge(features, targets, weight)(new)
        np.testing.assert_allclose(_least_squares(features, targets, weight)(new), expected, atol=1e-6)

    @pytest.mark.parametrize("share", [0.2, 0.65, 1.0])
    def test_gains(self, share):
        rng = np.random.default_rng(0)
        labels = np.array([0, 1, 2, -1] * 10)
        targets = np.eye(3)[labels] * (labels >= 0)[:, None]
        weight, taught = rng.uniform(0.5, 2, size=40), rng.random((30, 3))
        features, train, test = rng.normal(size=(40, 5)), np.arange(30), np.arange(30, 40)
        half = _Half(targets, labels >= 0, weight, train, test, [])
        known = train[labels[train] >= 0]
        alone = ridge(features[known], targets[known], weight[known])(features[test])
        aims, importance = taught.copy(), weight[train] * share
        aims[known], importance[known] = (1 - share) * targets[known] + share * taught[known], weight[known]
        pupil = ridge(features[train], aims, importance)(features[test])
        found = half.gains(features, taught, share)
        squared = [((values - targets[test]) ** 2).sum(axis=1) for values in (alone, pupil)]
        np.testing.assert_allclose(found[:, 0], squared[0] - squared[1])
        of_labels = labels[test] >= 0
        right = [values.argmax(axis=1) == labels[test] for values in (alone, pupil)]
        np.testing.assert_array_equal(found[of_labels, 1], np.subtract(*right[::-1], dtype=float)[of_labels])

    @pytest.mark.parametrize("groups", [None, np.arange(60) // 3])
    def test_the_teacher_does_not_know_labels_of_what_it_predicts(self, groups):
        rng = np.random.default_rng(0)
        features, labels, weight = rng.normal(size=(60, 4)), np.arange(60) % 3, np.ones(60)
        numbers = np.arange(60) if groups is None else groups
        for half in _halves(labels, weight, groups):
            assert not set(numbers[half.train]) & set(numbers[half.test])
            for learns, teaches in half.folds:
                assert not set(numbers[half.train[learns]]) & set(numbers[half.train[teaches]])
            taught = sorted(row for _, teaches in half.folds for row in teaches)
            assert taught == list(range(len(half.train)))
            assert half.predictions_of_teacher(features).shape == (len(half.train), 3)

    @given(values=st.lists(st.tuples(st.floats(-2, 2), st.integers(1, 4)), min_size=2, max_size=20))
    def test_a_weight_is_that_many_rows_of_a_group(self, values):
        gains, weight = np.array(values).T
        repeats = weight.astype(int)
        rows = np.arange(len(gains))
        copies = np.repeat(rows, repeats)
        decision = exceeds_zero(gains[copies], np.ones(len(copies)), copies, 2)
        mean = weight @ gains / weight.sum()
        error = np.sqrt(((weight * (gains - mean)) ** 2).sum()) / weight.sum()
        if abs(mean - 2 * error) > 1e-9:
            assert exceeds_zero(gains, weight, rows, 2) == decision == (mean > 2 * error)
