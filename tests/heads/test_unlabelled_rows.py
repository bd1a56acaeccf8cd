"""Rows without a label: -1 in y."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

import skexit._nn._mini_batches
from skexit import (
    EENetPolicy,
    ExitEnsemble,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    ThresholdPolicy,
    stack_exits,
)
from skexit.data._validation import cross_validation_splits
from skexit.uncertainty import fit_temperature

KINDS = {
    "linear": {},
    "linear by mini-batches": {"solver": "adam"},
    "cascade": {"hidden_layer_sizes": (6,), "cascade": True},
    "linear cascade": {"cascade": True},
    "boosted": {"training": "boosted"},
    "scaled": {"temperature_scaling": True},
}
KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def semi_supervised_task(n_samples=90, seed=0, labels_of=2, n_classes=3, **options):
    """Two exits and a teacher that knows; every so manieth row has a label."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n_samples) % n_classes
    centres = np.eye(n_classes)[truth]
    features = [centres + rng.normal(scale=1 - 0.3 * k, size=centres.shape) for k in range(3)]
    teacher = 4 * np.eye(n_classes)[truth] + rng.normal(size=(n_samples, n_classes))
    y = np.where(rng.permutation(n_samples) % labels_of == 0, truth, -1)
    return stack_exits([None, None, teacher], features, **options), y, truth


def same(one, other):
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


class TestHeads:
    def test_linear_heads_reach_the_least_of_the_loss(self):
        X, y, _ = semi_supervised_task()
        heads = ExitHeads(distillation=0.4, temperature=2, l2=0.02).fit(X, y)
        features, targets = X.features(0), softmax(X.logits(2) / 2, axis=1)
        scaled = (features - features.mean(axis=0)) / features.std(axis=0)

        def loss(parameters):
            weights, bias = parameters[:9].reshape(3, 3), parameters[9:]
            z = scaled @ weights + bias
            of_teacher = -4 * (targets * log_softmax(z / 2, axis=1)).sum(axis=1)
            of_labels = np.where(y < 0, 0, -log_softmax(z, axis=1)[np.arange(len(y)), y])
            return np.mean(0.6 * of_labels + 0.4 * of_teacher) + 0.01 * (weights**2).sum()

        best = minimize(loss, np.zeros(12)).x
        expected = scaled @ best[:9].reshape(3, 3) + best[9:]
        expected /= fit_temperature(expected[y >= 0], y[y >= 0])
        np.testing.assert_allclose(softmax(heads.networks_[0](features), 1), softmax(expected, 1), atol=2e-3)

    @KIND
    def test_labels_alone_leave_them_out(self, kind):
        X, y, _ = semi_supervised_task()
        heads = ExitHeads(distillation=0, max_epochs=2, random_state=0, **kind)
        labelled = y >= 0
        alone = clone(heads).fit(X[labelled], y[labelled])
        same(heads.fit(X, y).transform(X), alone.transform(X))
        crossed = np.asarray(clone(heads).fit_transform(X, y))
        same(crossed[labelled], clone(heads).fit_transform(X[labelled], y[labelled]))
        same(crossed[~labelled], np.asarray(alone.transform(X))[~labelled])

    @KIND
    def test_zero_weight_leaves_out(self, kind):
        X, y, _ = semi_supervised_task()
        heads = ExitHeads(max_epochs=2, random_state=0, **kind)
        used = np.arange(len(y)) % 5 > 0
        same(
            np.asarray(clone(heads).fit_transform(X, y, used.astype(float)))[used],
            clone(heads).fit_transform(X[used], y[used]),
        )

    @KIND
    def test_all_kinds_cross_fit(self, kind):
        X, y, truth = semi_supervised_task(300, labels_of=5)
        added = ExitHeads(max_epochs=10, random_state=0, **kind).fit_transform(X, y)
        assert np.mean(added.logits(1).argmax(axis=1) == truth) > 0.6

    @pytest.mark.slow
    @KIND
    def test_they_teach(self, kind):
        """Heads of few labels are better with rows that have none."""
        gains = []
        for seed in range(5):
            X, y, truth = semi_supervised_task(1500, seed, labels_of=25)
            learn, new = np.arange(500), np.arange(500, 1500)
            labelled = learn[y[learn] >= 0]
            heads = ExitHeads(max_epochs=20, random_state=0, **kind)
            more, fewer = (clone(heads).fit(X[rows], y[rows]).transform(X[new]) for rows in (learn, labelled))
            gains.append(
                [
                    np.mean(more.logits(k).argmax(1) == truth[new]) - np.mean(fewer.logits(k).argmax(1) == truth[new])
                    for k in (0, 1)
                ]
            )
        assert np.mean(gains) > 0.01

    def test_teacher_is_judged_by_the_labelled(self):
        X, y, truth = semi_supervised_task(600, labels_of=10)
        nonsense = np.where((y >= 0)[:, None], X.logits(2)[:, [1, 2, 0]], X.logits(2))
        X = stack_exits([None, None, nonsense], [X.features(k) for k in range(3)])
        assert ExitHeads().fit(X, truth).distillation_ == 0.9
        assert ExitHeads().fit(X, y).distillation_ == 0

    def test_batches_larger_than_memory(self, monkeypatch):
        X, y, _ = semi_supervised_task()
        heads = ExitHeads((4,), cascade=True, max_epochs=2, random_state=0)
        kept = np.asarray(heads.fit_transform(X, y))
        monkeypatch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 0)
        np.testing.assert_allclose(np.asarray(heads.fit_transform(X, y)), kept, rtol=1e-5)

    def test_no_label_at_all_is_refused(self):
        X, y, _ = semi_supervised_task()
        with pytest.raises(ValueError, match=r"y is -1 in every row, .* Give the labels of some rows"):
            ExitHeads().fit(X, np.full(len(y), -1))


class TestMinusOne:
    """What says that -1 is a class, or none."""

    @pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float32, np.float64])
    def test_of_any_type(self, dtype):
        X, y, _ = semi_supervised_task(classes=[0, 1, 2])
        heads = ExitHeads().fit(X, y.astype(dtype))
        assert heads.classes_.tolist() == [0, 1, 2]
        same(heads.transform(X), ExitHeads().fit(X, y).transform(X))

    @pytest.mark.parametrize("unsigned", [np.uint8, np.bool_])
    def test_classes_that_have_no_minus(self, unsigned):
        X, y, _ = semi_supervised_task(n_classes=2, classes=[0, 1])
        other = X.with_layout(X.layout.replace(classes=np.array([0, 1]).astype(unsigned)))
        one = ExitEnsemble(ExitHeads(random_state=0)).fit(X, y)
        same(one.transform(X), ExitEnsemble(ExitHeads(random_state=0)).fit(other, y).transform(other))

    def test_among_strings(self):
        names = np.array(["ant", "bee", "cat"])
        X, y, _ = semi_supervised_task(classes=names)
        labels = np.where(y < 0, -1, names[y].astype(object))
        heads = ExitHeads().fit(X, labels)
        assert heads.classes_.tolist() == names.tolist()
        numbered = X.with_layout(X.layout.replace(classes=[0, 1, 2]))
        same(heads.transform(X), ExitHeads().fit(numbered, y).transform(numbered))
        policy = make_pipeline(ExitEnsemble(ExitHeads(random_state=0)), ThresholdPolicy(budget=0.8)).fit(X, labels)
        assert set(policy.predict(X)) == set(names)
        with pytest.raises(ValueError, match="y has the class '-1', which is none of those known"):
            ExitHeads().fit(X, labels.astype(str))

    def test_is_a_class_that_the_layout_has(self):
        X, y, _ = semi_supervised_task(classes=[-1, 0, 1], labels_of=1)
        assert ExitHeads().fit(X, y - 1).classes_.tolist() == [-1, 0, 1]

    def test_is_a_class_where_nothing_says_which_are(self):
        X, y, _ = semi_supervised_task()
        X = stack_exits(features=[X.features(k) for k in range(3)])
        assert ExitHeads().fit(X, y).classes_.tolist() == [-1, 0, 1, 2]

    def test_is_refused_where_it_may_be_either(self):
        X, y, _ = semi_supervised_task()
        with pytest.raises(ValueError, match=r"unclear which logit .* classes=\[\.\.\.\]"):
            ExitHeads().fit(X, np.where(y == 2, 1, y))


class TestFolds:
    @pytest.mark.parametrize("n_unlabelled", [2, 4, 50])
    def test_are_stratified_by_the_labelled(self, n_unlabelled):
        labels = np.concatenate([np.repeat([0, 1, 2], [10, 20, 5]), np.full(n_unlabelled, -1)])
        for _, test in cross_validation_splits(5, labels, 0):
            assert np.bincount(labels[test][labels[test] >= 0]).tolist() == [2, 4, 1]

    def test_groups_stay_together(self):
        labels, groups = np.tile([0, 1, -1, -1], 30), np.repeat(np.arange(40), 3)
        for train, test in cross_validation_splits(5, labels, 0, groups):
            assert not set(groups[train]) & set(groups[test])


class TestPartialFit:
    @pytest.mark.parametrize("kind", [{}, {"hidden_layer_sizes": (4,), "cascade": True}], ids=["linear", "cascade"])
    def test_calls_without_labels_teach(self, kind):
        X, y, truth = semi_supervised_task(600, labels_of=10, classes=[0, 1, 2])
        heads = ExitHeads(solver="adam", random_state=0, **kind).partial_fit(X[:100], y[:100])
        before = heads.transform(X[500:]).logits(1)
        for _ in range(10):
            heads.partial_fit(X[100:500], np.full(400, -1))
        after = heads.transform(X[500:]).logits(1)
        right = [np.mean(logits.argmax(axis=1) == truth[500:]) for logits in (before, after)]
        assert right[1] > max(right[0], 0.7)

    def test_of_labels_alone(self):
        X, y, _ = semi_supervised_task(classes=[0, 1, 2])
        heads = ExitHeads(solver="adam", distillation=0, random_state=0)
        labelled = y >= 0
        one, other = clone(heads).partial_fit(X, y), clone(heads).partial_fit(X[labelled], y[labelled])
        same(one.transform(X), other.transform(X))
        with pytest.raises(ValueError, match=r"y is -1 in every row.* learn from labels alone"):
            one.partial_fit(X, np.full(len(y), -1))


POLICIES = [
    ThresholdPolicy(budget=0.7),
    OptimalStoppingPolicy(0.7, random_state=0),
    EENetPolicy(0.7, random_state=0),
    JEIGatedEnsemble(budget=0.7, max_epochs=2, random_state=0),
    RiskControlledPolicy(alpha=0.2, delta=0.3, random_state=0),
]


class TestPolicies:
    @pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
    def test_leave_them_out(self, policy):
        X, y, _ = semi_supervised_task(200)
        X = ExitHeads(random_state=0).fit_transform(X, y)
        groups = np.arange(200) // 2
        labelled = y >= 0
        one = clone(policy).fit(X, y, groups=groups)
        other = clone(policy).fit(X[labelled], y[labelled], groups=groups[labelled])
        same(one.thresholds_, other.thresholds_)
        same(one.predict_exit(X), other.predict_exit(X))

    def test_heads_before_them_learn_from_all(self):
        X, y, _ = semi_supervised_task(200)
        pipeline = make_pipeline(ExitEnsemble(ExitHeads(random_state=0)), ThresholdPolicy(budget=0.8)).fit(X, y)
        same(pipeline[0].heads_.transform(X), ExitHeads(random_state=0).fit(X, y).transform(X))
        alone = ThresholdPolicy(budget=0.8).fit(pipeline[0].fit_transform(X, y)[y >= 0], y[y >= 0])
        same(pipeline[-1].thresholds_, alone.thresholds_)

    def test_ensemble_mixes_by_the_labelled(self):
        X, y, _ = semi_supervised_task(200)
        X = ExitHeads(random_state=0).fit_transform(X, y)
        one, other = ExitEnsemble().fit(X, y), ExitEnsemble().fit(X[y >= 0], y[y >= 0])
        np.testing.assert_allclose(one.weights_, other.weights_, rtol=1e-6)
