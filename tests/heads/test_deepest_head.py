"""Heads that learn from the deepest head, where the network has no logits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import KFold
from tasks import COSTS, memorable_task, noisy_task, overfitted_task

import skexit._nn._mini_batches
from skexit import ConvExitHeads, ExitHeads, stack_exits
from skexit.heads._teacher_folds import teacher_splits

ALONE = {
    "linear": ExitHeads(),
    "linear by mini-batches": ExitHeads(solver="adam", max_epochs=2),
    "one hidden layer": ExitHeads((6,), max_epochs=2),
    "convolutions": ConvExitHeads((4,), (1,), max_epochs=2),
}
KINDS = ALONE | {
    "linear cascade": ExitHeads(cascade=True),
    "cascade": ExitHeads((6,), cascade=True, max_epochs=2),
    "boosted": ExitHeads(training="boosted"),
}
KIND = pytest.mark.parametrize("heads", KINDS.values(), ids=list(KINDS))


def logits_of(X):
    return np.stack([X.logits(k) for k in range(X.layout.n_exits)])


def same(one, other):
    np.testing.assert_array_equal(logits_of(one), logits_of(other))


class TestTeacher:
    def test_does_not_know_the_labels_of_the_rows_that_it_teaches(self):
        """Heads that learn from it alone do not learn random labels by heart."""
        accuracies = []
        for seed in range(5):
            X, y = memorable_task(60, seed)
            heads = ExitHeads(distillation=1, l2=0.01, random_state=seed).fit(X, y)
            logits = heads.transform(X)
            accuracies.append([np.mean(logits.logits(k).argmax(axis=1) == y) for k in range(2)])
        first, last = np.mean(accuracies, axis=0)
        assert first < 0.7
        assert last == 1

    def test_does_not_know_the_labels_of_their_groups(self):
        accuracies = []
        for seed in range(5):
            X, y = memorable_task(40, seed)
            twice = np.repeat(np.arange(40), 2)
            X, y = X[twice], y[twice]
            heads = ExitHeads(distillation=1, l2=0.01, random_state=seed)
            for groups in (twice, None):
                heads.fit(X, y, groups=groups)
                accuracies.append(np.mean(heads.transform(X).logits(0).argmax(axis=1) == y))
        assert np.mean(accuracies[::2]) < 0.65
        assert np.mean(accuracies[1::2]) > 0.75  # two thirds of the copies are in other folds

    @KIND
    def test_nor_do_cross_fitted_logits_depend_on_the_labels_of_their_fold(self, heads):
        X, y, _ = noisy_task(60)
        heads = clone(heads).set_params(cv=KFold(2), distillation=0.8, random_state=0)
        changed = np.where(np.arange(60) < 30, (y + 1) % 3, y)
        one, other = heads.fit_transform(X, y), clone(heads).fit_transform(X, changed)
        np.testing.assert_array_equal(logits_of(one)[:, :30], logits_of(other)[:, :30])
        assert (logits_of(one)[:, 30:] != logits_of(other)[:, 30:]).any()

    @given(
        labels=st.lists(st.integers(-1, 3), max_size=30),
        n_groups=st.none() | st.integers(1, 8),
        seed=st.integers(0, 10),
    )
    @settings(max_examples=50, deadline=None)
    def test_learns_from_other_rows_with_labels(self, labels, n_groups, seed):
        labels = np.array(labels, dtype=np.int64)
        groups = None if n_groups is None else np.random.default_rng(seed).integers(n_groups, size=len(labels))
        splits = teacher_splits(labels, groups)
        numbers = np.arange(len(labels)) if groups is None else groups
        if splits:
            np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in splits])), np.arange(len(labels)))
        elif groups is None:
            assert (labels >= 0).sum() < 3
        for train, test in splits:
            assert len(train)
            assert (labels[train] >= 0).all()
            assert not set(numbers[train]) & set(numbers[test])

    @pytest.mark.parametrize("labels_of", [1, 3], ids=["all labels", "few labels"])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_linear_heads_reach_the_least_of_the_loss(self, labels_of, weighted):
        X, y, _ = noisy_task(90, labels_of=labels_of)
        weight = np.random.default_rng(0).uniform(0.5, 2, size=90) if weighted else np.ones(90)
        heads = ExitHeads(distillation=0.5, temperature=3, l2=0.02).fit(X, y, sample_weight=weight)
        teacher = np.empty((90, 3))
        for train, test in teacher_splits(y, None):
            alone = ExitHeads(distillation=0, l2=0.02).fit(X.select_exits([2])[train], y[train], weight[train])
            teacher[test] = alone.transform(X.select_exits([2])[test]).logits(0)
        targets, share, features = softmax(teacher / 3, axis=1), weight / weight.sum(), X.features(1)
        mean = share @ features
        scaled = (features - mean) / np.sqrt(share @ (features - mean) ** 2)

        def loss(parameters):
            z = scaled @ parameters[:36].reshape(12, 3) + parameters[36:]
            of_teacher = -9 * (targets * log_softmax(z / 3, axis=1)).sum(axis=1)
            of_labels = np.where(y < 0, 0, -log_softmax(z, axis=1)[np.arange(90), y])
            d = 0.5 * (1 - COSTS[1])
            return share @ ((1 - d) * of_labels + d * of_teacher) + 0.01 * (parameters[:36] ** 2).sum()

        best = minimize(loss, np.zeros(39)).x
        expected = scaled @ best[:36].reshape(12, 3) + best[36:]
        np.testing.assert_allclose(softmax(heads.networks_[1](features), 1), softmax(expected, 1), atol=2e-3)


class TestDeepestHead:
    @pytest.mark.parametrize("heads", ALONE.values(), ids=list(ALONE))
    def test_learns_from_labels_alone(self, heads):
        X, y, _ = noisy_task(60)
        taught = clone(heads).set_params(random_state=0, distillation=0.65).fit(X, y).transform(X)
        alone = clone(heads).set_params(random_state=0, distillation=0).fit(X, y).transform(X)
        np.testing.assert_array_equal(taught.logits(2), alone.logits(2))
        assert (taught.logits(0) != alone.logits(0)).any()

    @pytest.mark.parametrize("heads", [ExitHeads(), ExitHeads(cascade=True)], ids=["linear", "linear cascade"])
    def test_leaves_out_rows_without_labels(self, heads):
        X, y, _ = noisy_task(90, labels_of=2)
        heads = clone(heads).set_params(random_state=0, distillation=0.65)
        taught = heads.fit(X, y).transform(X).logits(2)
        alone = clone(heads).fit(X[y >= 0], y[y >= 0]).transform(X).logits(2)
        np.testing.assert_array_equal(taught, alone)


class TestShare:
    @KIND
    def test_is_on_where_no_exit_has_logits(self, heads):
        X, y = overfitted_task(300)
        heads = clone(heads).set_params(random_state=0).fit(X, y)
        assert heads.distillation_ == 0.65
        same(heads.transform(X), clone(heads).set_params(distillation=0.65).fit(X, y).transform(X))

    @pytest.mark.parametrize("order", [(2, 1, 0), (2, 2, 2)], ids=["first best", "alike"])
    def test_auto_is_off_where_the_deepest_features_are_not_best(self, order):
        X, y, _ = noisy_task(300)
        X = stack_exits(features=[X.features(k) for k in order], costs=COSTS)
        assert ExitHeads(random_state=0).fit(X, y).distillation_ == 0

    @pytest.mark.parametrize("n_parts", [2, 4, 8])
    def test_auto_is_off_where_exits_see_different_parts(self, n_parts):
        """The teacher does not see what the other heads see."""
        X, y = load_digits(return_X_y=True)
        assert ExitHeads(layout=n_parts, random_state=0).fit(X[:600], y[:600]).distillation_ == 0

    def test_auto_is_off_where_labels_are_random(self):
        X, y = memorable_task(100)
        assert ExitHeads(random_state=0).fit(X, y).distillation_ == 0

    @pytest.mark.parametrize("n_samples", range(3, 12))
    def test_auto_is_off_where_rows_are_too_few_for_a_trial(self, n_samples):
        X, y = overfitted_task(n_samples)
        assert ExitHeads(random_state=0).fit(X, y % 2).distillation_ == 0

    @pytest.mark.parametrize("n_groups", [2, 3, 5])
    def test_auto_is_off_where_groups_are_too_few_for_a_trial(self, n_groups):
        X, y = overfitted_task(300)
        assert ExitHeads(random_state=0).fit(X, y, groups=np.arange(300) % n_groups).distillation_ == 0

    def test_logits_of_an_earlier_exit_do_not_teach(self):
        X, y = overfitted_task(300)
        features = [X.features(k) for k in range(3)]
        X = stack_exits([5 * np.eye(3)[y], None, None], features, costs=COSTS)
        heads = ExitHeads(random_state=0).fit(X, y)
        assert heads.distillation_ == 0.65
        without = stack_exits(features=features, costs=COSTS)
        alike = clone(heads).fit(without, y).transform(without)
        same(heads.transform(X).select_exits([1, 2]), alike.select_exits([1, 2]))

    @pytest.mark.parametrize("distillation", ["auto", 0.5])
    def test_is_off_where_no_other_head_learns(self, distillation):
        X, y, _ = noisy_task(60)
        logits = 5 * np.eye(3)[y]
        heads = ExitHeads(distillation=distillation)
        for pupils in (stack_exits([logits, None], [X.features(0), X.features(2)]), X.select_exits([2])):
            assert heads.fit(pupils, y).distillation_ == 0

    @pytest.mark.parametrize("groups", [None, np.arange(60) % 2], ids=["two rows", "two groups"])
    def test_is_off_where_rows_are_too_few(self, groups):
        X, y, _ = noisy_task(60)
        if groups is None:
            X, y = X[[0, 1]], np.array([0, 1])
        heads = ExitHeads(distillation=0.5).fit(X, y, groups=groups)
        assert heads.distillation_ == 0
        same(heads.transform(X), ExitHeads(distillation=0).fit(X, y).transform(X))

    def test_folds_may_have_too_few_rows(self):
        X = noisy_task(3)[0]
        heads = ExitHeads(cv=3, distillation=0.65, random_state=0)
        logits = logits_of(heads.fit_transform(X, np.array([0, 1, 2])))
        assert heads.distillation_ == 0.65
        assert np.isfinite(logits).all()

    def test_calls_of_partial_fit_learn_from_labels_alone(self):
        X, y, _ = noisy_task(60, labels_of=2)
        heads = ExitHeads(solver="adam", random_state=0)
        one, other = clone(heads).partial_fit(X, y), clone(heads).set_params(distillation=0).partial_fit(X, y)
        assert one.distillation_ == 0
        same(one.transform(X), other.transform(X))
        with pytest.raises(
            ValueError,
            match=r"distillation=0\.5 teaches heads in partial_fit with the network's own logits, but the last exit of "
            r"X has none\. Use distillation='auto' or 0, call fit, in which the deepest head teaches",
        ):
            clone(heads).set_params(distillation=0.5).partial_fit(X, y)
        assert clone(heads).set_params(distillation=0.5).fit(X, y).distillation_ == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "heads", [ExitHeads(), ExitHeads((6,), cascade=True, max_epochs=20)], ids=["linear", "cascade"]
)
def test_heads_learn_what_few_labels_do_not_tell(heads):
    """On few rows with wrong labels, the heads before the last are better than those that learn from labels alone."""
    gains = []
    for seed in range(8):
        X, y, truth = noisy_task(1040, seed, n_classes=4)
        accuracies = []
        for distillation in (0.65, 0):
            taught = clone(heads).set_params(distillation=distillation, random_state=seed).fit(X[:40], y[:40])
            new = taught.transform(X[40:])
            accuracies.append([np.mean(new.logits(k).argmax(axis=1) == truth[40:]) for k in (0, 1)])
        gains.append(np.subtract(*accuracies))
    assert np.mean(gains) > 0.01


@KIND
def test_zero_weight_leaves_out(heads):
    X, y, _ = noisy_task(60)
    heads = clone(heads).set_params(random_state=0)
    used = np.arange(60) % 4 > 0
    weighted = heads.fit_transform(X, y, used.astype(float))
    np.testing.assert_array_equal(logits_of(weighted)[:, used], logits_of(clone(heads).fit_transform(X[used], y[used])))


@pytest.mark.parametrize("heads", [ExitHeads((4,), cascade=True, max_epochs=2), ExitHeads(solver="adam", max_epochs=2)])
def test_batches_larger_than_memory(heads, monkeypatch):
    X, y, _ = noisy_task(90, labels_of=2)
    heads = clone(heads).set_params(random_state=0)
    kept = logits_of(heads.fit_transform(X, y))
    monkeypatch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 0)
    np.testing.assert_allclose(logits_of(heads.fit_transform(X, y)), kept, rtol=1e-4, atol=1e-5)
