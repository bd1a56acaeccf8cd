"""Heads that learn from the network's own logits: the loss, and what it brings."""

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime, minimize
from scipy.special import log_softmax, softmax
from sklearn.base import clone

import skexit._nn._mini_batches
from skexit import ExitHeads, stack_exits
from skexit.heads._distillation import Distillation, HeadLoss
from skexit.uncertainty import fit_temperature

KINDS = {
    "linear": {},
    "linear by mini-batches": {"solver": "adam"},
    "one hidden layer": {"hidden_layer_sizes": (6,)},
    "cascade": {"hidden_layer_sizes": (6,), "cascade": True},
    "linear cascade": {"cascade": True},
    "boosted": {"training": "boosted"},
    "boosted by mini-batches": {"training": "boosted", "solver": "adam"},
}
KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def loss_of_a_row(z, label, t, share, temperature):
    """The loss as it is written in the docstring."""
    of_label = -log_softmax(z)[label]
    of_teacher = -softmax(t / temperature) @ log_softmax(z / temperature)
    return (1 - share) * of_label + share * temperature**2 * of_teacher


def noisy_task(n_samples, seed, noise=0.4, n_classes=3):
    """Two exits with features that tell the class, labels of which many are wrong, and a teacher that knows."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(n_classes, size=n_samples)
    y = np.where(rng.random(n_samples) < noise, rng.integers(n_classes, size=n_samples), truth)
    features = [np.eye(n_classes)[truth] + rng.normal(scale=1 - 0.3 * k, size=(n_samples, 3)) for k in range(3)]
    teacher = 4 * np.eye(n_classes)[truth] + rng.normal(size=(n_samples, n_classes))
    return stack_exits([None, None, teacher], features), y, truth


class TestLoss:
    @pytest.mark.parametrize(("share", "temperature"), [(0.3, 2.0), (1.0, 4.0), (0.9, 0.5)])
    def test_is_that_of_the_docstring(self, share, temperature):
        rng = np.random.default_rng(0)
        z, t, labels = rng.normal(size=(5, 4)), 3 * rng.normal(size=(5, 4)), np.array([0, 3, 1, 1, 2])
        distillation = Distillation(np.array([share]), temperature, t.__getitem__)
        losses, errors = distillation.loss_and_errors(z, labels, distillation.soft_targets(np.arange(5)))
        expected = [loss_of_a_row(*row, share, temperature) for row in zip(z, labels, t, strict=True)]
        np.testing.assert_allclose(losses, expected)
        for row in range(5):
            slope = approx_fprime(z[row], loss_of_a_row, 1e-7, labels[row], t[row], share, temperature)
            np.testing.assert_allclose(errors[row], slope, atol=1e-5)
        rows = np.array([4, 0, 2])
        both = Distillation(np.array([share, 0.2]), temperature, t.__getitem__)
        by_torch = HeadLoss(labels, 4, both)(torch.tensor(np.stack([z[rows], 2 * z[rows]])), rows)
        doubled = [loss_of_a_row(*row, 0.2, temperature) for row in zip(2 * z, labels, t, strict=True)]
        np.testing.assert_allclose(by_torch, (np.array(expected) + doubled)[rows], rtol=1e-5)

    def test_without_a_teacher_is_the_cross_entropy(self):
        logits, labels = torch.randn(2, 6, 3), np.array([0, 1, 2, 2, 1, 0])
        expected = -torch.log_softmax(logits, -1)[:, torch.arange(6), labels].sum(0)
        torch.testing.assert_close(HeadLoss(labels, 3, None)(logits, np.arange(6)), expected)

    def test_linear_heads_reach_the_least(self):
        X, y, _ = noisy_task(80, seed=1)
        heads = ExitHeads(distillation=0.7, temperature=3, l2=0.02).fit(X, y)
        features, teacher = X.features(0), X.logits(2)
        scaled = (features - features.mean(axis=0)) / features.std(axis=0)

        def loss(parameters):
            weights, bias = parameters[:9].reshape(3, 3), parameters[9:]
            rows = zip(scaled @ weights + bias, y, teacher, strict=True)
            return np.mean([loss_of_a_row(*row, 0.7, 3) for row in rows]) + 0.01 * (weights**2).sum()

        best = minimize(loss, np.zeros(12)).x
        expected = scaled @ best[:9].reshape(3, 3) + best[9:]
        expected /= fit_temperature(expected, y)  # as confident as the labels allow
        np.testing.assert_allclose(softmax(heads.networks_[0](features), 1), softmax(expected, 1), atol=2e-3)


@pytest.mark.slow
@KIND
def test_learns_what_the_labels_do_not_tell(kind):
    """On few rows with many wrong labels, heads that hear the teacher are better; without it they are not."""
    gains = []
    for seed in range(6):
        X, y, truth = noisy_task(1100, seed)
        settings = {"max_epochs": 20, "random_state": seed} | kind
        taught = ExitHeads(distillation=0.9, **settings).fit(X[:100], y[:100])
        alone = ExitHeads(distillation=0, **settings).fit(X[:100], y[:100])
        gains += [
            np.mean(new.logits(k).argmax(1) == truth[100:]) - np.mean(old.logits(k).argmax(1) == truth[100:])
            for new, old in [(taught.transform(X[100:]), alone.transform(X[100:]))]
            for k in (0, 1)
        ]
    assert np.mean(gains) > 0.03


def assert_same_heads(one, other):
    for network, expected in zip(one.networks_, other.networks_, strict=True):
        if expected is not None:
            for found, weights in zip(network.weights, expected.weights, strict=True):
                np.testing.assert_array_equal(found, weights)


class TestAuto:
    @KIND
    def test_is_on_where_the_last_exit_has_logits(self, kind):
        X, y, _ = noisy_task(60, seed=0)
        heads = ExitHeads(max_epochs=1, random_state=0, **kind).fit(X, y)
        assert heads.distillation_ == 0.9
        assert_same_heads(heads, clone(heads).set_params(distillation=0.9).fit(X, y))

    @pytest.mark.parametrize("useless", ["untrained", "classes in another order", "constant"])
    @pytest.mark.parametrize("n_samples", [60, 4000])
    def test_is_off_where_features_know_better(self, useless, n_samples):
        X, y, _ = noisy_task(n_samples, seed=0, noise=0.0)
        logits = {
            "untrained": np.random.default_rng(1).normal(size=(n_samples, 3)),
            "classes in another order": X.logits(2)[:, [1, 2, 0]],
            "constant": np.zeros((n_samples, 3)),
        }[useless]
        X = stack_exits([None, None, logits], [X.features(k) for k in range(3)])
        heads = ExitHeads().fit(X, y)
        assert heads.distillation_ == 0
        assert_same_heads(heads, ExitHeads(distillation=0).fit(X, y))

    @pytest.mark.parametrize("labels", [[0, 1], [0, 1, 1, 1], [0, 1, 2] * 4])
    def test_is_on_where_rows_are_too_few_to_tell(self, labels):
        y = np.array(labels)
        features = [np.random.default_rng(k).normal(size=(len(y), 2)) for k in range(2)]
        X = stack_exits([None, 5 * np.eye(3)[y]], features, classes=[0, 1, 2])
        assert ExitHeads().fit(X, y).distillation_ == 0.9

    def test_folds_do_as_the_whole(self):
        """Each trains with the share that was found on all rows."""
        X, y, _ = noisy_task(90, seed=0)
        one = ExitHeads(random_state=0).fit_transform(X, y)
        other = ExitHeads(distillation=0.9, random_state=0).fit_transform(X, y)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))

    def test_calls_of_partial_fit_do_as_the_first(self):
        X, y, _ = noisy_task(90, seed=0)
        heads = ExitHeads(solver="adam", random_state=0).partial_fit(X, y)
        swapped = stack_exits([None, None, X.logits(2)[:, [1, 2, 0]]], [X.features(k) for k in range(3)])
        assert heads.partial_fit(swapped, y).distillation_ == 0.9

    def test_nothing_to_train_needs_nobody_to_teach(self):
        y = np.arange(20) % 3
        assert ExitHeads().fit(stack_exits([5 * np.eye(3)[y]] * 2), y).networks_ == [None, None]


def test_soft_targets_are_read_where_they_are_large(monkeypatch):
    X, y, _ = noisy_task(90, seed=2)
    heads = ExitHeads((4,), cascade=True, distillation=0.8, max_epochs=2, random_state=0)
    kept = heads.fit(X, y).transform(X)
    monkeypatch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 0)
    np.testing.assert_allclose(heads.fit(X, y).transform(X), kept, rtol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"hidden_layer_sizes": (4,), "cascade": True}], ids=["linear", "cascade"])
def test_partial_fit_learns_from_the_teacher(kind):
    X, y, truth = noisy_task(100, seed=3, noise=0.6)
    accuracies = []
    for share in (0.0, 1.0):
        heads = ExitHeads(distillation=share, solver="adam", random_state=0, **kind)
        for _ in range(20):
            heads.partial_fit(X, y)
        accuracies.append(np.mean(heads.transform(X).logits(0).argmax(axis=1) == truth))
    assert accuracies[0] + 0.05 < accuracies[1]


def test_a_class_that_no_label_has_is_known_by_the_teacher():
    X, y, truth = noisy_task(400, seed=4, noise=0)
    heads = ExitHeads(distillation=0.9).fit(X.with_layout(X.layout.replace(classes=[0, 1, 2])), np.where(y == 2, 1, y))
    assert np.mean(heads.transform(X).logits(1).argmax(1) == truth) > 0.6
