"""ExitHeads: what the heads are, what they see, and that no row's logits come from itself."""

import re

import joblib
import numpy as np
import pandas as pd
import pytest
from instances import HEADS
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import skexit._nn._mini_batches
import skexit.data._arrays
import skexit.data._lazy
import skexit.heads._training
import skexit.heads._transformer
from skexit import ExitArray, ExitHeads, ExitLayout, FeatureCache, ThresholdPolicy, stack_exits
from skexit.cache import CacheWriter
from skexit.datasets import load_cifar10_resnet56
from skexit.uncertainty import fit_temperature

WIDTHS = (3, 5, 2)


def make_features(n_samples=240, n_classes=3, seed=0, own_logits=True, **options):
    """Three exits with features on scales of their own; the last has logits."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n_samples)
    features = []
    for k, width in enumerate(WIDTHS):
        centres = np.random.default_rng(k).normal(size=(n_classes, width))
        features.append(10.0**k * (rng.normal(size=(n_samples, width)) + centres[y]) + k)
    logits = [None, None, rng.normal(size=(n_samples, n_classes)) + 3 * np.eye(n_classes)[y]] if own_logits else None
    return stack_exits(logits, features, **options), y


def only_first_head(X):
    """Two exits, of which only the first has no logits."""
    return stack_exits([None, X.logits(2)], [X.features(0), X.features(2)])


def as_softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def slow_head(features, y, weight=None, l2=3e-3):
    """What a linear head is said to be: scikit-learn's logistic regression on standardised features."""
    weight = np.ones(len(y)) if weight is None else weight
    scaler = StandardScaler().fit(features, sample_weight=weight)
    model = LogisticRegression(C=1 / (l2 * weight.sum()), max_iter=1000, tol=1e-8)
    model.fit(scaler.transform(features), y, sample_weight=weight)
    return lambda new: model.predict_proba(scaler.transform(new))


def scale_of(logits, others):
    """The number that others are multiplied by, the same for all of them."""
    scale = np.sum(logits * others) / np.sum(others**2)
    np.testing.assert_allclose(logits, scale * others, rtol=1e-6)
    return scale


class TestLinearHeads:
    @pytest.mark.parametrize("n_classes", [2, 3, 5])
    @pytest.mark.parametrize("l2", [1e-3, 1.0])
    def test_are_logistic_regressions_on_standardised_features(self, n_classes, l2):
        X, y = make_features(n_classes=n_classes)
        new, _ = make_features(n_classes=n_classes, seed=1)
        added = ExitHeads(l2=l2, distillation=0).fit(X, y).transform(new)
        for k in (0, 1):
            expected = slow_head(X.features(k), y, l2=l2)(new.features(k))
            np.testing.assert_allclose(as_softmax(added.logits(k)), expected, atol=2e-3)

    def test_weights(self):
        X, y = make_features()
        weight = np.random.default_rng(0).exponential(size=len(y))
        added = ExitHeads(distillation=0).fit(X, y, sample_weight=weight).transform(X)
        np.testing.assert_allclose(
            as_softmax(added.logits(0)), slow_head(X.features(0), y, weight)(X.features(0)), atol=2e-3
        )

    def test_no_penalty(self):
        X, y = make_features()
        model = LogisticRegression(C=np.inf, max_iter=1000).fit(X.features(0), y)
        np.testing.assert_allclose(
            as_softmax(ExitHeads(l2=0, distillation=0).fit(X, y).transform(X).logits(0)),
            model.predict_proba(X.features(0)),
            atol=2e-3,
        )

    def test_cascaded_heads_see_the_features_of_earlier_exits(self):
        X, y = make_features()
        added = ExitHeads(cascade=True, distillation=0).fit(X, y).transform(X)
        joined = stack_exits(features=[np.hstack([X.features(j) for j in range(k + 1)]) for k in range(3)])
        expected = ExitHeads(distillation=0).fit(joined, y).transform(joined)
        for k in (0, 1):
            np.testing.assert_allclose(added.logits(k), expected.logits(k))

    @pytest.mark.parametrize("cascade", [False, True])
    def test_later_features_do_not_matter(self, cascade):
        X, y = make_features()
        changed = stack_exits([None, None, X.logits(2)], [X.features(0), X.features(1), 0 * X.features(2)])
        for k in (0, 1):
            one, other = (clone(ExitHeads(cascade=cascade)).fit(Z, y).transform(Z).logits(k) for Z in (X, changed))
            np.testing.assert_array_equal(one, other)


class TestOwnLogits:
    @pytest.mark.parametrize("method", ["transform", "fit_transform"])
    def test_are_kept(self, method):
        X, y = make_features()
        heads = ExitHeads(random_state=0).fit(X, y)
        added = heads.transform(X) if method == "transform" else heads.fit_transform(X, y)
        np.testing.assert_array_equal(added.logits(2), X.logits(2))
        assert heads.networks_[2] is None
        for k in range(3):
            np.testing.assert_array_equal(added.features(k), X.features(k))

    def test_of_every_exit_leave_nothing_to_train(self):
        X = stack_exits(np.random.default_rng(0).normal(size=(20, 2, 3)))
        y = np.arange(20) % 3
        np.testing.assert_array_equal(np.asarray(ExitHeads().fit_transform(X, y)), np.asarray(X))

    def test_classes_are_sorted_whatever_the_order_of_the_logits(self):
        X, y = make_features(classes=["eel", "cat", "dog"])
        labels = np.array(["eel", "cat", "dog"])[y]
        heads = ExitHeads().fit(X, labels)
        assert heads.classes_.tolist() == ["cat", "dog", "eel"]
        assert heads.layout_out_.classes.tolist() == ["cat", "dog", "eel"]
        numbered, _ = make_features()
        expected = ExitHeads().fit(numbered, y).transform(numbered)
        for k in range(X.layout.n_exits):
            np.testing.assert_allclose(
                as_softmax(heads.transform(X).logits(k)), as_softmax(expected.logits(k))[:, [1, 2, 0]], atol=2e-3
            )


class TestCrossFitting:
    @pytest.mark.parametrize("cv", [3, KFold(4), StratifiedKFold(3, shuffle=True, random_state=1)], ids=repr)
    def test_equals_a_loop_over_the_folds(self, cv):
        X, y = make_features()
        found = ExitHeads(cv=cv, random_state=0).fit_transform(X, y)
        splitter = StratifiedKFold(3, shuffle=True, random_state=0) if cv == 3 else cv
        of_folds = []
        for train, test in splitter.split(np.zeros(len(y)), y):
            expected = ExitHeads().fit(X[train], y[train]).transform(X[test])
            scales = [scale_of(found[test].logits(k), expected.logits(k)) for k in range(3)]
            assert scales[2] == pytest.approx(1)  # the exit's own logits
            of_folds.append(scales)
        np.testing.assert_allclose(of_folds, [of_folds[0]] * len(of_folds))

    @pytest.mark.slow
    def test_budgets_hold_on_new_rows(self):
        X, y = load_cifar10_resnet56(return_X_y=True)
        budgets, costs = (0.4, 0.5, 0.6, 0.7), []
        for seed in range(6):
            rows = np.random.default_rng(seed).permutation(len(X))
            heads = ExitHeads(random_state=seed)
            policy = ThresholdPolicy().fit(heads.fit_transform(X[rows[:300]], y[rows[:300]]), y[rows[:300]])
            new = heads.transform(X[rows[2500:]])
            costs.append([policy.with_budget(budget).mean_cost(new) for budget in budgets])
        assert abs(np.mean(costs) - np.mean(budgets)) < 0.015

    @pytest.mark.parametrize("n_samples", [2, 3, 4])
    def test_a_handful_of_rows(self, n_samples):
        X = stack_exits(features=[np.arange(n_samples)[:, None], np.ones((n_samples, 1))])
        added = ExitHeads(cv=2).fit_transform(X, np.arange(n_samples) % 2)
        assert np.isfinite(np.asarray(added)).all()

    def test_an_iterable_of_folds(self):
        X, y = make_features()
        folds = list(KFold(3).split(y))
        found = ExitHeads(cv=folds).fit_transform(X, y)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(ExitHeads(cv=KFold(3)).fit_transform(X, y)))

    @pytest.mark.parametrize("solver", ["lbfgs", "adam"])
    def test_labels_that_nothing_explains_are_guessed_at_chance(self, solver):
        """Many features and random labels: what a head says of its own rows is nearly always right, and means nothing."""
        accuracies = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            X = stack_exits(features=[rng.normal(size=(100, 120)), rng.normal(size=(100, 120))])
            y = rng.permutation(np.arange(100) % 2)
            heads = ExitHeads(distillation=0, random_state=seed, solver=solver, max_epochs=10, cv=3)
            own, others = heads.fit(X, y).transform(X), heads.fit_transform(X, y)
            accuracies += [[(Z.logits(k).argmax(axis=1) == y).mean() for Z in (own, others)] for k in (0, 1)]
        own, cross_fitted = np.mean(accuracies, axis=0)
        assert own > 0.97
        # Standard error of 600 guesses: 0.02. Balanced folds leave a guess a little under one half.
        assert cross_fitted == pytest.approx(0.5, abs=0.08)

    def test_a_single_exit_needs_none(self):
        X, y = make_features()
        X = stack_exits(features=[X.features(0)])
        heads = ExitHeads()
        np.testing.assert_array_equal(np.asarray(heads.fit_transform(X, y)), np.asarray(heads.transform(X)))

    def test_the_heads_kept_are_those_of_all_rows(self):
        X, y = make_features()
        heads = ExitHeads(random_state=0)
        heads.fit_transform(X, y)
        np.testing.assert_array_equal(np.asarray(heads.transform(X)), np.asarray(ExitHeads().fit(X, y).transform(X)))

    @pytest.mark.parametrize("solver", ["lbfgs", "adam"])
    def test_a_class_too_rare_for_the_folds(self, solver):
        X, y = make_features(n_classes=2)
        y[:] = 0
        y[5] = 1
        added = ExitHeads(random_state=0, solver=solver, max_epochs=2).fit_transform(X, y)
        assert np.isfinite(np.asarray(added)).all()
        assert added.logits(0).argmax(axis=1)[5] == 0


class TestAbsentClasses:
    @pytest.mark.parametrize("solver", ["lbfgs", "adam"])
    def test_are_improbable(self, solver):
        X, y = make_features(n_classes=4)
        present = y != 2
        heads = ExitHeads(solver=solver).fit(X[present], y[present])
        assert heads.classes_.tolist() == [0, 1, 2, 3]
        probabilities = as_softmax(heads.transform(X).logits(0))
        assert probabilities[:, 2].mean() < 0.05

    def test_the_others_are_as_without_it(self):
        X, y = make_features(n_classes=4)
        present = y != 2
        logits = ExitHeads(distillation=0).fit(X[present], y[present]).transform(X).logits(0)[:, [0, 1, 3]]
        expected = slow_head(X[present].features(0), y[present])(X.features(0))
        np.testing.assert_allclose(as_softmax(logits), expected, atol=2e-3)

    def test_a_class_that_the_layout_does_not_know_is_refused(self):
        X, y = make_features(n_classes=3, classes=[0, 1, 2])
        y[0] = 5
        with pytest.raises(ValueError, match=r"y has the class 5, which is none of those known, \[0, 1, 2\]"):
            ExitHeads().fit(X, y)

    def test_classes_that_cannot_be_matched_to_logits_are_refused(self):
        X, y = make_features(n_classes=3)
        with pytest.raises(
            ValueError,
            match=r"y has 2 classes, 'a' to 'b', and X logits for 3, .* stack_exits\(\.\.\., classes=\[\.\.\.\]\)",
        ):
            ExitHeads().fit(X, np.array(["a", "b"])[y % 2])


class TestCosts:
    COSTS = (100.0, 1000.0, 5000.0)

    @pytest.mark.parametrize(
        ("unit", "options", "heads"),
        [
            ("MACs", {}, (3 * 4, 3 * 4 + 5 * 4, 3 * 4 + 5 * 4)),
            ("FLOPs", {}, (2 * 12, 2 * 32, 2 * 32)),
            ("MACs", {"cascade": True}, (12, 12 + (3 + 5) * 4, 12 + 8 * 4)),
            ("MACs", {"hidden_layer_sizes": (7,), "max_epochs": 1}, (3 * 7 + 7 * 4, 49 + 5 * 7 + 7 * 4, 49 + 63)),
            (
                "FLOPs",
                {"hidden_layer_sizes": (7,), "cascade": True, "max_epochs": 1},
                (98, 98 + 2 * ((5 + 7) * 7 + 7 * 4), 98 + 224),
            ),
            (
                "MACs",
                {"hidden_layer_sizes": (7, 6), "max_epochs": 1},
                (3 * 7 + 7 * 6 + 6 * 4, 87 + 5 * 7 + 7 * 6 + 6 * 4, 87 + 101),
            ),
            (
                "MACs",
                {"hidden_layer_sizes": (7, 6), "cascade": True, "max_epochs": 1},
                (87, 87 + (5 + 6) * 7 + 7 * 6 + 6 * 4, 87 + 143),
            ),
            ("ms", {}, (0, 0, 0)),
            ("joules", {}, (0, 0, 0)),
        ],
    )
    def test_by_hand(self, unit, options, heads):
        """Four classes; the last exit has its own logits, so that only two heads cost anything."""
        X, y = make_features(n_classes=4, costs=self.COSTS, cost_unit=unit)
        fitted = ExitHeads(**options).fit(X, y)
        np.testing.assert_array_equal(fitted.layout_out_.costs, np.add(self.COSTS, heads))
        assert fitted.layout_out_.cost_unit == unit
        np.testing.assert_array_equal(fitted.transform(X).layout.costs, fitted.layout_out_.costs)

    def test_fractions_are_left_alone(self):
        assert ExitHeads().fit(*make_features()).layout_out_.costs.tolist() == [1 / 3, 2 / 3, 1]


class TestAdam:
    def test_reaches_the_loss_of_lbfgs(self):
        X, y = make_features(600)
        new, new_y = make_features(600, seed=1)
        for seed in range(3):
            losses = {
                solver: [
                    log_loss(new_y, as_softmax(heads.transform(new).logits(k)))
                    for heads in [ExitHeads(solver=solver, random_state=seed).fit(X, y)]
                    for k in (0, 1)
                ]
                for solver in ("lbfgs", "adam")
            }
            np.testing.assert_allclose(losses["adam"], losses["lbfgs"], atol=0.03)

    @pytest.mark.slow
    def test_a_hidden_layer_learns_what_no_line_separates(self):
        rng = np.random.default_rng(0)
        features = rng.normal(size=(600, 2))
        y = (features.prod(axis=1) > 0).astype(int)
        X = stack_exits(features=[features, features])
        accuracy = {
            sizes: (ExitHeads(sizes, random_state=0, cv=3).fit_transform(X, y).logits(0).argmax(axis=1) == y).mean()
            for sizes in ((), (16,))
        }
        assert accuracy[()] < 0.65
        assert accuracy[16,] > 0.9

    def test_same_seed_same_logits(self):
        X, y = make_features()
        outputs = [
            np.asarray(ExitHeads((4,), max_epochs=2, random_state=seed).fit_transform(X, y)) for seed in (0, 0, 1)
        ]
        np.testing.assert_array_equal(outputs[0], outputs[1])
        assert not np.array_equal(outputs[0], outputs[2])

    def test_lbfgs_has_no_hidden_layer(self):
        with pytest.raises(
            ValueError, match=r"solver='lbfgs' fits linear heads only, but hidden_layer_sizes=\(3,\); use solver='adam'"
        ):
            ExitHeads((3,), solver="lbfgs").fit(*make_features())


class TestCascade:
    """Heads whose last hidden layer goes on to the next exit."""

    @staticmethod
    def slow_logits(heads, X):
        """The recurrence, one row and one exit at a time."""
        rows = []
        for row in range(len(X)):
            hidden, logits = np.zeros(0), []
            for k, network in enumerate(heads.networks_):
                if network is None:
                    logits.append(X.logits(k, [row])[0])
                    continue
                hidden = np.concatenate([X.features(k, [row])[0], hidden])
                *layers, last = zip(network.weights, network.biases, strict=True)
                for weights, biases in layers:
                    hidden = np.maximum(hidden @ weights + biases, 0)
                logits.append(hidden @ last[0] + last[1])
            rows.append(logits)
        return np.array(rows)

    @pytest.mark.parametrize("own", [(2,), (1,), ()], ids=str)
    @pytest.mark.parametrize("sizes", [(6,), (6, 4), (4, 5, 3)], ids=str)
    def test_is_the_recurrence(self, own, sizes):
        X, y = make_features()
        X = stack_exits([X.logits(2) if k in own else None for k in range(3)], [X.features(k) for k in range(3)])
        heads = ExitHeads(sizes, cascade=True, max_epochs=2, random_state=0).fit(X, y)
        assert [[len(bias) for bias in network.biases] for network in heads.networks_ if network is not None] == [
            [*sizes, 3]
        ] * (3 - len(own))
        found = heads.transform(X)
        expected = self.slow_logits(heads, X)
        for k in range(3):
            np.testing.assert_allclose(found.logits(k), expected[:, k])

    def test_a_later_exit_sees_what_an_earlier_saw(self):
        """Each exit has one of two features, of which only the product tells the class."""
        rng = np.random.default_rng(0)
        features = rng.normal(size=(1500, 2))
        y = (features.prod(axis=1) > 0).astype(int)
        X = stack_exits(features=[features[:, :1], features[:, 1:]])
        accuracy = {
            cascade: (
                ExitHeads((32,), cascade=cascade, random_state=0).fit(X[:1000], y[:1000]).transform(X[1000:]).logits(1)
            ).argmax(axis=1)
            == y[1000:]
            for cascade in (False, True)
        }
        assert accuracy[False].mean() < 0.6
        assert accuracy[True].mean() > 0.85

    @pytest.mark.parametrize("dropout", [0.0, 0.4])
    @pytest.mark.parametrize("sizes", [(6,), (6, 4), (4, 5, 3)], ids=str)
    def test_gradient_is_that_of_torch(self, sizes, dropout):
        torch = pytest.importorskip("torch")
        from skexit._nn._dense import kept_units
        from skexit.heads._cascade import Cascade

        generator, widths = torch.Generator().manual_seed(0), [3, 2, 4]
        model = Cascade(widths, sizes, 3, dropout, generator)
        weights, biases = model.parameters()
        biases.detach().normal_(generator=generator)
        features, state = torch.randn(7, 9, generator=generator), generator.get_state()
        (model(features) ** 2).sum().backward()
        kept = iter(kept_units([(7, size) for _ in widths for size in sizes], dropout, generator.set_state(state)))
        leaves, logits, hidden = [], [], features[:, :0]
        for own, head in zip(features.split(widths, dim=1), model.heads, strict=True):
            units = torch.cat([own, hidden], dim=1)
            for layer, (weight, bias) in enumerate(head):
                leaves.append((weight.clone().requires_grad_(), bias.clone().requires_grad_()))
                hidden, units = units, units @ leaves[-1][0].t() + leaves[-1][1]
                if layer < len(head) - 1:
                    units = torch.relu(units) * next(kept)
            logits.append(units)
        (torch.stack(logits) ** 2).sum().backward()
        for found, of_layers in zip((weights, biases), zip(*leaves, strict=True), strict=True):
            expected = torch.cat([leaf.grad.flatten() for leaf in of_layers])
            torch.testing.assert_close(found.grad.flatten(), expected, rtol=1e-4, atol=1e-4)

    def test_later_features_do_not_matter_once_trained(self):
        X, y = make_features()
        heads = ExitHeads((6,), cascade=True, max_epochs=2, random_state=0).fit(X, y)
        changed = stack_exits([None, None, X.logits(2)], [X.features(0), 0 * X.features(1), X.features(2)])
        one, other = heads.transform(X), heads.transform(changed)
        np.testing.assert_array_equal(one.logits(0), other.logits(0))
        assert not np.array_equal(one.logits(1), other.logits(1))

    def test_half_precision_where_features_are_too_large_for_single(self, monkeypatch):
        X, y = make_features()
        heads = ExitHeads((6,), cascade=True, max_epochs=5, random_state=0)
        single = heads.fit(X, y).transform(X).logits(1)
        n_trained = sum(X.layout.n_features[k] for k in range(2))
        monkeypatch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 2 * len(y) * n_trained)
        half = clone(heads).fit(X, y).transform(X).logits(1)
        np.testing.assert_allclose(half, single, atol=0.05)
        assert not np.array_equal(half, single)

    def test_a_feature_far_out_does_no_harm(self, monkeypatch):
        """Half precision ends at 65504: a row 10 ** 6 standard deviations away must not become infinite."""
        X, y = make_features(2000)
        values = np.asarray(X).astype(np.float32)
        values[:, 0] = np.r_[6e4, np.zeros(1999)]
        monkeypatch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 2 * values.size)
        heads = ExitHeads((4,), cascade=True, max_epochs=1, random_state=0)
        far = ExitArray.from_array(values, X.layout)
        assert np.isfinite(np.asarray(heads.fit_transform(far, y))).all()


class TestDropout:
    @pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
    def test_leaves_out_its_share_and_keeps_the_mean(self, dropout):
        torch = pytest.importorskip("torch")
        from skexit._nn._dense import kept_units

        first, second = kept_units([(100, 101), (50, 3)], dropout, torch.Generator().manual_seed(0))
        assert (first.shape, second.shape) == ((100, 101), (50, 3))
        assert first.unique().tolist() == pytest.approx([0, 1 / (1 - dropout)])
        assert (first == 0).double().mean().item() == pytest.approx(dropout, abs=0.02)  # five standard errors
        assert abs(np.corrcoef((first[:, :-1] == 0).flatten(), (first[:, 1:] == 0).flatten())[0, 1]) < 0.05

    @pytest.mark.slow
    def test_keeps_a_wide_head_from_learning_its_rows_by_heart(self):
        (X, y), (new, new_y) = make_features(150), make_features(600, seed=1)
        X, new = only_first_head(X), only_first_head(new)
        losses = {
            dropout: np.mean([
                log_loss(new_y, as_softmax(
                    ExitHeads((64,), dropout=dropout, l2=0, max_epochs=60, random_state=seed)
                    .fit(X, y).transform(new).logits(0)
                ))
                for seed in range(3)
            ])
            for dropout in (0.0, 0.5)
        }  # fmt: skip
        assert losses[0.5] < losses[0.0]

    def test_same_seed_same_logits_and_torch_is_left_alone(self):
        torch = pytest.importorskip("torch")
        X, y = make_features()
        state = torch.get_rng_state()
        outputs = [
            np.asarray(ExitHeads((4,), cascade=True, dropout=0.5, max_epochs=2, random_state=0).fit(X, y).transform(X))
            for _ in range(2)
        ]
        np.testing.assert_array_equal(*outputs)
        assert torch.equal(state, torch.get_rng_state())

    def test_is_a_share(self):
        with pytest.raises(ValueError, match="The 'dropout' parameter of ExitHeads must be"):
            ExitHeads((4,), dropout=1.0).fit(*make_features())


class TestCalibrate:
    @pytest.mark.parametrize(
        "options", [{}, {"hidden_layer_sizes": (32,), "cascade": True, "max_epochs": 5, "l2": 0}], ids=str
    )
    def test_divides_by_the_temperature_of_cross_fitted_logits(self, options):
        X, y = make_features(own_logits=False)
        raw = ExitHeads(random_state=0, cv=3, **options)
        cross_fitted = raw.fit_transform(X, y)
        heads = ExitHeads(random_state=0, cv=3, temperature_scaling=True, **options)
        found, fitted = heads.fit_transform(X, y), clone(heads).fit(X, y).transform(X)
        for k in range(3):
            temperature = fit_temperature(cross_fitted.logits(k), y)
            np.testing.assert_allclose(found.logits(k), cross_fitted.logits(k) / temperature)
            np.testing.assert_allclose(fitted.logits(k), raw.transform(X).logits(k) / temperature)
            np.testing.assert_allclose(heads.transform(X).logits(k), fitted.logits(k))

    @pytest.mark.slow
    def test_helps_a_head_that_is_too_sure(self):
        (X, y), (new, new_y) = make_features(150), make_features(600, seed=1)
        X, new = only_first_head(X), only_first_head(new)
        losses = {
            scaled: log_loss(
                new_y,
                as_softmax(
                    ExitHeads((64,), l2=0, max_epochs=60, distillation=0, temperature_scaling=scaled, random_state=0)
                    .fit(X, y)
                    .transform(new)
                    .logits(0)
                ),
            )
            for scaled in (False, True)
        }
        assert losses[True] < 0.9 * losses[False]


class TestAuto:
    @pytest.mark.parametrize(
        ("n_rows", "l2", "max_epochs"),
        [(1, 3e-3, 30), (5_000, 3e-3, 30), (50_000, 3e-4, 10), (150_000, 1e-4, 8), (10**6, 1.5e-5, 8)],
    )
    def test_follows_the_number_of_rows(self, n_rows, l2, max_epochs):
        X, y = make_features(30)
        training = ExitHeads().fit(X, y)._head_training().by_mini_batches(n_rows, "ExitHeads")
        assert (training.l2, training.max_epochs) == (pytest.approx(l2), max_epochs)
        given = ExitHeads(l2=0.5, max_epochs=2).fit(X, y)._head_training().by_mini_batches(n_rows, "ExitHeads")
        assert (given.l2, given.max_epochs) == (0.5, 2)

    @pytest.mark.parametrize(("n_rows", "share"), [(1, 0.4), (5_000, 0.4), (20_000, 0.2), (500_000, 0.04)])
    def test_dropout_follows_the_number_of_rows(self, n_rows, share):
        X, y = make_features(30)
        assert ExitHeads(dropout="auto").fit(X, y)._head_training().dropout_share(n_rows) == pytest.approx(share)

    def test_dropout_of_few_rows(self):
        X, y = make_features()
        given = ExitHeads((3,), cascade=True, dropout=0.4, max_epochs=2, random_state=0)
        auto = clone(given).set_params(dropout="auto")
        np.testing.assert_array_equal(given.fit(X, y).transform(X), auto.fit(X, y).transform(X))
        np.testing.assert_array_equal(given.partial_fit(X, y).transform(X), auto.partial_fit(X, y).transform(X))

    @pytest.mark.parametrize("sizes", [(), (3,)], ids=str)
    def test_is_what_few_rows_had(self, sizes):
        X, y = make_features()
        given = ExitHeads(sizes, l2=3e-3, max_epochs=30, random_state=0).fit(X, y).transform(X)
        np.testing.assert_array_equal(ExitHeads(sizes, random_state=0).fit(X, y).transform(X), given)


class TestLargeData:
    @pytest.mark.parametrize("sizes", [(), (4,)], ids=str)
    @pytest.mark.parametrize("cascade", [False, True])
    def test_reading_batches_gives_the_same_as_memory(self, monkeypatch, sizes, cascade):
        X, y = make_features()
        heads = ExitHeads(sizes, cascade=cascade, solver="adam", max_epochs=2, cv=2, random_state=0)
        expected = np.asarray(heads.fit_transform(X, y))
        monkeypatch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(skexit.data._arrays, "BATCH_ROWS", 17)
        np.testing.assert_allclose(np.asarray(heads.fit_transform(X, y)), expected, rtol=1e-9)

    def test_auto_changes_to_batches(self, monkeypatch):
        X, y = make_features()
        expected = ExitHeads(solver="adam", random_state=0).fit(X, y).transform(X)
        small = ExitHeads(solver="lbfgs").fit(X, y).transform(X)
        # 240 rows of 3 features at exit 0 fit, of 5 features at exit 1 do not, beside the logits of 3 classes.
        monkeypatch.setattr(skexit.heads._training, "_IN_MEMORY_BYTES", 8 * 240 * (4 + 3))
        found = ExitHeads(random_state=0).fit(X, y)
        np.testing.assert_array_equal(found.transform(X).logits(0), small.logits(0))
        assert not np.array_equal(found.transform(X).logits(1), small.logits(1))
        monkeypatch.setattr(skexit.heads._training, "_IN_MEMORY_BYTES", 0)
        np.testing.assert_array_equal(
            np.asarray(ExitHeads(random_state=0).fit(X, y).transform(X)), np.asarray(expected)
        )

    @pytest.mark.parametrize("solver", ["lbfgs", "adam"])
    def test_cache(self, tmp_path, solver):
        X, y = make_features()
        with CacheWriter(tmp_path, X.layout, origin={"model": "test"}, shard_rows=50) as writer:
            for part in X.batches(40):
                logits, features = ([read(k, part) for k in range(3)] for read in (X.logits, X.features))
                writer.append(logits, features, y[part])
        cache = FeatureCache(tmp_path)
        heads = ExitHeads(solver=solver, max_epochs=2, random_state=0, cv=2)
        in_memory = ExitArray.from_array(np.asarray(cache.X), cache.layout)
        expected = heads.fit_transform(in_memory, y)
        np.testing.assert_array_equal(np.asarray(heads.fit_transform(cache.X, cache.y)), np.asarray(expected))

    def test_transform_reads_features_of_the_rows_that_are_asked_for(self):
        X, y = make_features()
        added = ExitHeads().fit(X, y).transform(X)
        np.testing.assert_array_equal(np.asarray(added[[5, 2]]), np.asarray(added)[[5, 2]])


class TestOutput:
    def test_names(self):
        X, y = make_features()
        heads = ExitHeads().fit(X, y)
        expected = ExitLayout([3, 3, 3], WIDTHS).column_names()
        assert heads.get_feature_names_out().tolist() == expected
        assert heads.get_feature_names_out(["ignored"]).tolist() == expected
        assert heads.transform(X).layout.column_names() == expected

    def test_pandas(self):
        X, y = make_features(costs=[1e3, 2e3, 9e3], cost_unit="MACs")
        heads = ExitHeads(random_state=0).set_output(transform="pandas")
        frame = heads.fit_transform(X, y)
        assert isinstance(frame, pd.DataFrame)
        assert frame.columns.tolist() == heads.get_feature_names_out().tolist()
        np.testing.assert_array_equal(frame, np.asarray(ExitHeads(random_state=0).fit_transform(X, y)))
        assert ExitArray.from_frame(frame).layout == heads.layout_out_

    def test_pandas_keeps_the_index(self):
        X, y = make_features()
        frame = X.to_frame(index=[f"image {row}" for row in range(len(X))])
        heads = ExitHeads().set_output(transform="pandas").fit(frame, y)
        assert heads.transform(frame.iloc[5:9]).index.tolist() == [f"image {row}" for row in range(5, 9)]
        assert heads.feature_names_in_.tolist() == X.layout.column_names()

    def test_pandas_into_a_policy_keeps_costs(self):
        X, y = make_features(costs=[1e3, 2e3, 9e3], cost_unit="MACs")
        heads = ExitHeads(random_state=0).fit(X, y)
        expected = ThresholdPolicy().fit(heads.transform(X), y)
        found = ThresholdPolicy().fit(heads.set_output(transform="pandas").transform(X), y)
        assert found.layout_ == expected.layout_ == heads.layout_out_
        np.testing.assert_array_equal(found.thresholds_, expected.thresholds_)


class TestSampleWeight:
    @pytest.mark.parametrize("solver", ["lbfgs", "adam"])
    def test_rows_of_zero_weight_train_nothing(self, solver):
        X, y = make_features()
        used = np.random.default_rng(0).uniform(size=len(y)) < 0.7
        heads = ExitHeads(solver=solver, random_state=0, max_epochs=2)
        found = heads.fit_transform(X, y, sample_weight=used.astype(float))
        refitted = heads.transform(X)
        expected = clone(heads).fit_transform(X[used], y[used])
        np.testing.assert_allclose(np.asarray(found)[used], np.asarray(expected))
        np.testing.assert_array_equal(np.asarray(found)[~used], np.asarray(refitted)[~used])

    def test_one_number_for_all_rows(self):
        X, y = make_features()
        heads = ExitHeads(random_state=0, cv=2)
        expected = heads.fit_transform(X, y, sample_weight=np.full(len(y), 2.0))
        np.testing.assert_array_equal(np.asarray(heads.fit_transform(X, y, sample_weight=2.0)), np.asarray(expected))

    @pytest.mark.parametrize(
        ("weight", "message"),
        [(0.0, "at least one non-zero number|zero for every row"), (-1.0, "Negative values in data passed to")],
    )
    def test_refused(self, weight, message):
        X, y = make_features()
        with pytest.raises(ValueError, match=message):
            ExitHeads().fit(X, y, sample_weight=np.full(len(y), weight))


class TestErrors:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("solver", ["lbfgs", "adam"])
    def test_features_that_are_not_finite(self, solver, value):
        X, y = make_features()
        values = np.asarray(X).copy()
        values[11, X.layout.feature_columns(1).start] = value
        broken = ExitArray.from_array(values, X.layout)
        with pytest.raises(ValueError, match=r"X contains NaN or infinity: the features of exit 1 \(first in row 11"):
            ExitHeads(solver=solver, max_epochs=1).fit(broken, y)
        with pytest.raises(ValueError, match="NaN or infinity: the features of exit 1"):
            np.asarray(ExitHeads().fit(X, y).transform(broken))

    def test_a_single_class(self):
        X, y = make_features(own_logits=False)
        with pytest.raises(ValueError, match="y has 1 class, 0; pass rows of two classes or more"):
            ExitHeads().fit(X, 0 * y)

    def test_another_layout(self):
        X, y = make_features()
        other = ExitLayout(X.layout.n_logits, [5, 3, 2])
        with pytest.raises(ValueError, match="but ExitHeads was fitted with"):
            ExitHeads().fit(X, y).transform(ExitArray.from_array(np.asarray(X), other))

    def test_a_layout_of_another_width(self):
        X, y = make_features()
        with pytest.raises(ValueError, match="layout describes 4 columns but X has 13"):
            ExitHeads(layout=ExitLayout([0], [4])).fit(np.asarray(X), y)

    @pytest.mark.parametrize(
        "parameters",
        [
            {"hidden_layer_sizes": 8},
            {"solver": "sgd"},
            {"training": "both"},
            {"l2": -1},
            {"max_epochs": 0},
            {"batch_size": 0},
            {"layout": 0},
        ],
        ids=str,
    )
    def test_parameters(self, parameters):
        with pytest.raises(ValueError, match=rf"The '{next(iter(parameters))}' parameter of ExitHeads must be"):
            ExitHeads(**parameters).fit(*make_features())

    @pytest.mark.parametrize("sizes", [(0,), (8.5,), ("8",)], ids=str)
    @pytest.mark.parametrize("method", ["fit", "partial_fit"])
    def test_hidden_layer_sizes(self, sizes, method):
        message = f"hidden_layer_sizes={sizes!r} must hold one positive integer for each hidden layer; () makes"
        with pytest.raises(ValueError, match=re.escape(message)):
            getattr(ExitHeads(sizes), method)(*make_features())

    def test_hidden_layer_sizes_may_be_an_array(self):
        X, y = make_features()
        found, expected = (
            np.asarray(ExitHeads(sizes, cascade=True, max_epochs=1, random_state=0).fit(X, y).transform(X))
            for sizes in (np.array([4, 3]), (4, 3))
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sizes", [(), (4,)], ids=str)
def test_verbose_shows_progress(sizes, capsys):
    X, y = make_features()
    ExitHeads(sizes, max_epochs=1).fit(X, y)
    assert capsys.readouterr().err == ""
    ExitHeads(sizes, max_epochs=1, verbose=True).fit(X, y)
    assert "heads:" in capsys.readouterr().err


@pytest.mark.parametrize("heads", HEADS, ids=repr)
class TestTrainings:
    """What holds whatever the heads are trained for."""

    def test_logits_read_later_are_those_of_a_walk_through_the_exits(self, heads, monkeypatch):
        X, y = make_features()
        fitted, memory = clone(heads).fit(X, y), {}
        expected = [fitted.exit_logits(k, X.logits(k), X.features(k), memory) for k in range(3)]
        at_once = fitted.transform(X)
        monkeypatch.setattr(skexit.data._lazy, "LARGEST_BYTES", 0)
        lazy = fitted.transform(X)
        for k in (2, 0, 1):
            np.testing.assert_allclose(at_once.logits(k), expected[k], rtol=1e-10)
            np.testing.assert_allclose(lazy.logits(k, [5, 2]), expected[k][[5, 2]], rtol=1e-10)

    def test_torch_gives_the_same(self, heads):
        torch = pytest.importorskip("torch")
        X, y = make_features()
        fitted = clone(heads).fit(X, y)
        memory = {}
        for k in range(3):
            own = X.logits(k)
            found = fitted.exit_logits(
                k, None if own is None else torch.from_numpy(own), torch.from_numpy(X.features(k)), memory
            )
            assert isinstance(found, torch.Tensor)
            np.testing.assert_allclose(found, fitted.transform(X).logits(k), rtol=1e-9)

    def test_later_features_do_not_matter_once_trained(self, heads):
        X, y = make_features(own_logits=False)
        fitted = clone(heads).fit(X, y)
        changed = stack_exits(features=[X.features(0), X.features(1), 0 * X.features(2)])
        one, other = fitted.transform(X), fitted.transform(changed)
        for k in (0, 1):
            np.testing.assert_array_equal(one.logits(k), other.logits(k))

    def test_fitting_twice_and_joblib_give_the_same(self, heads, tmp_path):
        X, y = make_features()
        fitted = clone(heads).fit(X, y)
        expected = np.asarray(fitted.transform(X))
        joblib.dump(fitted, tmp_path / "heads.joblib")
        np.testing.assert_array_equal(np.asarray(joblib.load(tmp_path / "heads.joblib").transform(X)), expected)
        np.testing.assert_array_equal(np.asarray(fitted.fit(X, y).transform(X)), expected)

    def test_in_front_of_a_policy(self, heads):
        X, y = make_features(costs=[1e3, 2e3, 9e3], cost_unit="MACs")
        heads = clone(heads).set_params(distillation=0)  # distilled for two epochs, some samples tie
        pipeline = Pipeline([("heads", clone(heads)), ("policy", ThresholdPolicy(budget=0.6))]).fit(X, y)
        alone = ThresholdPolicy(budget=0.6, heads=heads).fit(X, y)
        np.testing.assert_array_equal(pipeline.predict(X), alone.predict(X))
        assert alone.exit_distribution_ @ alone.costs_ <= 0.6 + 1e-9
        separate = clone(heads).set_params(training="separate").fit(X, y)
        np.testing.assert_array_equal(alone.heads_.layout_out_.costs, separate.layout_out_.costs)
