"""Heads with weighted samples: the weights, where samples leave, and the gradient through a step."""

import numpy as np
import pytest
from scipy.special import log_softmax

import benchmarks.papers.weighted_heads
import skexit._nn._mini_batches
from benchmarks.papers.weighted_heads import WeightedHeads, WeightedTrainer, confident_exits
from skexit import ExitHeads, stack_exits
from skexit._nn._mini_batches import Training

torch = pytest.importorskip("torch")

WIDTHS = (4, 5, 6)
HIDDEN = pytest.mark.parametrize("sizes", [(), (3,), (4, 3)], ids=str)


def make_features(n_samples=240, n_classes=3, seed=0, own_logits=True):
    """Three exits with features on scales of their own; the last has logits."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n_samples)
    centres = [np.random.default_rng(k).normal(size=(n_classes, width)) for k, width in enumerate(WIDTHS)]
    features = [10.0**k * (rng.normal(size=(n_samples, len(c[0]))) + c[y]) + k for k, c in enumerate(centres)]
    logits = [None, None, rng.normal(size=(n_samples, n_classes)) + 3 * np.eye(n_classes)[y]] if own_logits else None
    return stack_exits(logits, features), y


def make_trainer(sizes=(), n_samples=12, weight=None, own=(2,), seed=0):
    """In double precision, so that it can be differentiated numerically."""
    X, y = make_features(n_samples)
    X = stack_exits([X.logits(2) if k in own else None for k in range(3)], [X.features(k) for k in range(3)])
    weight = np.random.default_rng(seed).uniform(0.5, 2, size=n_samples) if weight is None else weight
    trainer = WeightedTrainer(X, y, weight, sizes, 3, 0.0, Training(0.5, 0.0, 1, 4), np.random.RandomState(seed))
    read = trainer.inputs
    trainer.inputs = lambda rows: read(rows).double()
    trainer.sample_weight = trainer.sample_weight.double()
    for network in (trainer.weighting, *trainer.heads.values()):
        network.double()
    return trainer, X, y


def slow_exits(confidence, weight, shares):
    """The most confident leave, one at a time, as long as the share of the exit has room for them."""
    exits, left = np.full(len(confidence), len(shares) - 1), list(range(len(confidence)))
    for k in range(len(shares) - 1):
        mass = 0.0
        for row in sorted(left, key=lambda row: -confidence[row, k]):
            mass += weight[row]
            if mass > shares[k] * weight.sum():
                break
            exits[row] = k
            left.remove(row)
    return exits


def slow_weighted_loss(trainer, X, y, rows, networks):
    """Weights of the formula, and the sum over exits of the weighted mean cross-entropies."""
    losses = slow_losses(X, y, rows, networks)
    hidden, _, last = trainer.weighting
    units = np.maximum(losses @ hidden.weight.detach().numpy().T + hidden.bias.detach().numpy(), 0)
    said = 1 / (1 + np.exp(-units @ last.weight.detach().numpy().T - last.bias.detach().numpy()))
    sample_weight = trainer.sample_weight.numpy()[rows]
    mean = np.average(said, axis=0, weights=sample_weight).mean()
    weights = 1 + 0.8 * (said - mean)
    return weights, (weights * losses * sample_weight[:, None]).mean(axis=0).sum()


def slow_losses(X, y, rows, networks):
    logits = [
        X.logits(k, rows) if network is None else network(X.features(k, rows)) for k, network in enumerate(networks)
    ]
    return np.column_stack([-log_softmax(values, axis=1)[np.arange(len(rows)), y[rows]] for values in logits])


class TestLeaving:
    def test_by_hand(self):
        confidence = np.array([[0.9, 0.3, 0], [0.8, 0.9, 0], [0.1, 0.7, 0], [0.2, 0.8, 0]])
        shares = np.array([0.25, 0.5, 0.25])
        assert confident_exits(confidence, np.ones(4), shares).tolist() == [0, 1, 2, 1]

    @pytest.mark.parametrize("seed", range(5))
    def test_equals_a_loop(self, seed):
        rng = np.random.default_rng(seed)
        confidence, weight, shares = rng.uniform(size=(40, 4)), rng.exponential(size=40), rng.dirichlet(np.ones(4))
        for weights in (weight, np.ones(40)):
            found = confident_exits(confidence, weights, shares)
            np.testing.assert_array_equal(found, slow_exits(confidence, weights, shares))

    def test_shares_fall_geometrically(self):
        shares = make_trainer()[0].shares
        np.testing.assert_allclose(shares[1:] / shares[:-1], 0.75)
        assert shares.sum() == pytest.approx(1)


class TestWeights:
    @pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
    def test_are_bounded_and_one_on_average(self, scale):
        trainer, _, _ = make_trainer((40,))
        rows, generator = np.arange(9), torch.Generator().manual_seed(0)
        losses = scale * torch.rand(9, 3, generator=generator, dtype=torch.float64)
        for parameter in trainer.weighting.parameters():
            parameter.data.mul_(3)
        weights = trainer.weights(losses, rows)
        sample_weight = trainer.sample_weight[rows, None]
        assert (weights * sample_weight).sum().item() == pytest.approx(3 * sample_weight.sum().item())
        assert weights.min() > 0.2 - 1e-12
        assert weights.max() < 1.8 + 1e-12
        assert weights.std() > 0

    @HIDDEN
    def test_weigh_the_losses(self, sizes):
        trainer, X, y = make_trainer(sizes)
        rows = np.array([3, 0, 7, 11, 5])
        weights, loss = slow_weighted_loss(trainer, X, y, rows, trainer.networks())
        assert trainer.weighted_loss(rows).item() == pytest.approx(loss, rel=1e-5)
        losses = torch.as_tensor(slow_losses(X, y, rows, trainer.networks()))
        np.testing.assert_allclose(trainer.weights(losses, rows).detach(), weights, rtol=1e-5)

    def test_are_constants_to_the_heads(self):
        """The gradient is that of the cross-entropies with the weights as they are."""
        trainer, _, _ = make_trainer()
        rows = np.arange(6)
        losses = trainer._losses(trainer._logits(rows, trainer.parameters()), rows)
        weights = trainer.weights(losses.detach(), rows).detach()
        expected = torch.autograd.grad(
            (weights * losses * trainer.sample_weight[rows, None]).mean(0).sum(), trainer.parameters()
        )
        found = torch.autograd.grad(trainer.weighted_loss(rows), trainer.parameters())
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other)


class TestMetaLoss:
    TRAIN, META = np.array([0, 2, 4, 5, 9]), np.array([1, 3, 6, 7, 8, 10, 11])

    @HIDDEN
    @pytest.mark.parametrize("own", [(2,), (0,), ()], ids=str)
    def test_is_that_of_the_samples_that_leave_after_a_step(self, sizes, own):
        trainer, X, y = make_trainer(sizes, own=own)
        gradients = torch.autograd.grad(trainer.weighted_loss(self.TRAIN), trainer.parameters())
        found = trainer.meta_loss(self.TRAIN, self.META).item()
        for parameter, gradient in zip(trainer.parameters(), gradients, strict=True):
            parameter.data.sub_(0.5 * gradient)
        networks = trainer.networks()
        logits = [
            X.logits(k, self.META) if networks[k] is None else networks[k](X.features(k, self.META)) for k in range(3)
        ]
        confidence = np.column_stack([np.exp(log_softmax(values, axis=1)).max(axis=1) for values in logits])
        weight = trainer.sample_weight.numpy()[self.META]
        exits, losses = slow_exits(confidence, weight, trainer.shares), slow_losses(X, y, self.META, networks)
        expected = sum(
            np.average(losses[exits == k, k], weights=weight[exits == k]) for k in range(3) if (exits == k).any()
        )
        assert found == pytest.approx(expected, rel=1e-5)

    @HIDDEN
    def test_gradient_is_that_of_finite_differences(self, sizes):
        trainer, _, _ = make_trainer(sizes)
        parameters = list(trainer.weighting.parameters())
        gradients = torch.autograd.grad(trainer.meta_loss(self.TRAIN, self.META), parameters)
        generator, step = torch.Generator().manual_seed(1), 1e-5
        for _ in range(5):
            direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
            ends = []
            for sign in (1, -2):
                for parameter, part in zip(parameters, direction, strict=True):
                    parameter.data.add_(sign * step * part)
                ends.append(trainer.meta_loss(self.TRAIN, self.META).item())
            for parameter, part in zip(parameters, direction, strict=True):
                parameter.data.add_(step * part)
            expected = (ends[0] - ends[1]) / (2 * step)
            found = sum((g * part).sum().item() for g, part in zip(gradients, direction, strict=True))
            assert abs(expected) > 1e-6
            assert found == pytest.approx(expected, rel=1e-4)

    def test_falls_in_training_and_halves_exchange_roles(self, monkeypatch):
        trainer, _, _ = make_trainer(n_samples=200)
        seen = []

        def spy(self, train_rows, meta_rows, meta_loss=WeightedTrainer.meta_loss):
            seen.append((train_rows.tolist(), meta_rows.tolist()))
            return meta_loss(self, train_rows, meta_rows)

        monkeypatch.setattr(WeightedTrainer, "meta_loss", spy)
        trainer.fit(None)
        assert len(seen) == 2 * (200 // 8)
        for first, second in zip(seen[::2], seen[1::2], strict=True):
            assert first == second[::-1]
            assert not set(first[0]) & set(first[1])
        assert sorted(row for halves in seen[::2] for half in halves for row in half) == list(range(200))


class TestHeads:
    @pytest.mark.slow
    @HIDDEN
    def test_are_nearly_as_good_as_separate_ones(self, sizes):
        """Weights are between 0.2 and 1.8, so that no head learns something else altogether."""
        (X, y), (new, new_y) = make_features(900), make_features(900, seed=1)
        losses = {}
        for training, kind in {"separate": ExitHeads, "weighted": WeightedHeads}.items():
            added = kind(sizes, random_state=0).fit(X, y).transform(new)
            losses[training] = [-log_softmax(added.logits(k), axis=1)[np.arange(900), new_y].mean() for k in (0, 1)]
        np.testing.assert_allclose(losses["weighted"], losses["separate"], atol=0.1)
        assert losses["weighted"] != losses["separate"]

    def test_weights_that_are_all_one_leave_separate_heads(self, monkeypatch):
        X, y = make_features(900)
        monkeypatch.setattr(benchmarks.papers.weighted_heads, "_LARGEST_DEVIATION", 0.0)
        found = WeightedHeads(random_state=0).fit(X, y).transform(X)
        expected = ExitHeads(distillation=0).fit(X, y).transform(X)
        for k in (0, 1):
            loss, least = (-log_softmax(Z.logits(k), axis=1)[np.arange(900), y].mean() for Z in (found, expected))
            assert loss == pytest.approx(least, abs=0.02)

    @HIDDEN
    def test_sample_weights_count(self, sizes):
        """The mean probability of a class is its share of the weight."""
        X, y = make_features(600, n_classes=2)
        weight = np.where(y == 0, 8.0, 1.0)
        added = WeightedHeads(sizes, random_state=0, l2=0).fit(X, y, weight).transform(X)
        for k in (0, 1):
            probability = np.exp(log_softmax(added.logits(k), axis=1))[:, 0]
            assert np.average(probability, weights=weight) == pytest.approx(
                np.average(y == 0, weights=weight), abs=0.06
            )

    def test_rows_of_zero_weight_train_nothing(self):
        X, y = make_features()
        used = np.random.default_rng(0).uniform(size=len(y)) < 0.7
        heads = WeightedHeads(random_state=0, max_epochs=2, cv=2)
        found = heads.fit_transform(X, y, sample_weight=used.astype(float))
        expected = heads.fit_transform(X[used], y[used])
        np.testing.assert_allclose(np.asarray(found)[used], np.asarray(expected))

    @pytest.mark.parametrize("sizes", [(), (4,)], ids=str)
    def test_neither_torchs_seed_nor_its_threads_matter(self, sizes):
        X, y = make_features()
        n_threads, outputs = torch.get_num_threads(), []
        try:
            for seed, threads in ((0, 1), (1, 2)):
                torch.manual_seed(seed)
                torch.set_num_threads(threads)
                state = torch.get_rng_state()
                heads = WeightedHeads(sizes, dropout=0.3, max_epochs=2, random_state=0)
                outputs.append(np.asarray(heads.fit(X, y).transform(X)))
                assert torch.equal(state, torch.get_rng_state())
                assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(n_threads)
        np.testing.assert_array_equal(*outputs)
        other = WeightedHeads(sizes, dropout=0.3, max_epochs=2, random_state=1).fit(X, y)
        assert not np.array_equal(np.asarray(other.transform(X)), outputs[0])

    def test_features_larger_than_memory(self, monkeypatch):
        X, y = make_features()
        heads = WeightedHeads(max_epochs=2, random_state=0)
        expected = np.asarray(heads.fit(X, y).transform(X))
        monkeypatch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 0)
        np.testing.assert_allclose(np.asarray(heads.fit(X, y).transform(X)), expected, rtol=1e-9)

    @pytest.mark.parametrize("n_samples", [2, 3, 7])
    def test_a_handful_of_rows(self, n_samples):
        X, _ = make_features(n_samples, own_logits=False)
        added = WeightedHeads(max_epochs=2, cv=2, random_state=0).fit_transform(X, np.arange(n_samples) % 2)
        assert np.isfinite(np.asarray(added)).all()

    def test_extreme_logits_of_an_exit(self):
        X, y = make_features()
        signs = 1e4 * np.eye(3)[(y + np.arange(len(y)) % 2) % 3]
        X = stack_exits([None, None, signs], [X.features(k) for k in range(3)])
        added = WeightedHeads(max_epochs=2, random_state=0).fit(X, y).transform(X)
        assert np.isfinite(np.asarray(added)).all()

    def test_logits_of_every_exit_leave_nothing_to_train(self):
        X = stack_exits(np.random.default_rng(0).normal(size=(20, 2, 3)))
        added = WeightedHeads().fit(X, np.arange(20) % 3).transform(X)
        np.testing.assert_array_equal(np.asarray(added), np.asarray(X))
