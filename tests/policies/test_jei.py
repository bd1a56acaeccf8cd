"""JEI-DNN: losses and gradients against the paper's, cross-fitted modules, prices and budgets."""

import itertools
import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import make_exits
from scipy.special import expit, log_softmax
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from skexit import ExitHeads, JEIGatedEnsemble, stack_exits
from skexit._nn._dense import DenseNetwork
from skexit.policies.jei import _training as jei_training
from skexit.policies.jei._gates import balanced_weight, exit_probabilities, gate_statistics, gate_targets
from skexit.policies.jei._training import JointTrainer, JointTraining, cross_entropies, expected_losses, gate_loss
from skexit.uncertainty import fit_temperature, softmax

FAST = {"warm_up_epochs": 2, "max_epochs": 2, "random_state": 0}
READINGS = pytest.mark.parametrize("gate_reading", ["stop", "exit"])


@pytest.fixture(scope="module")
def data():
    """Logits at all exits: nothing is trained jointly."""
    return make_exits(n_samples=400, n_exits=4, n_classes=3, random_state=0)


@pytest.fixture(scope="module")
def features(data):
    """Features only, but for the last exit, which keeps its logits."""
    return without_logits(*data)


def without_logits(X, y):
    last = X.layout.n_exits - 1
    return stack_exits([None] * last + [X.logits(last)], [X.features(k) for k in range(last + 1)]), y


def make_trainer(X, y, n_folds=3, weight=None, temperatures=None, **parameters):
    policy = JEIGatedEnsemble(**FAST | parameters)
    return JointTrainer(
        X.with_layout(X.layout.replace(classes=np.unique(y))),
        y,
        np.ones(len(y)) if weight is None else weight,
        np.arange(len(y)) % n_folds,
        temperatures=np.ones(X.layout.n_exits) if temperatures is None else temperatures,
        settings=JointTraining(**{field.name: getattr(policy, field.name) for field in fields(JointTraining)}),
        random_state=np.random.RandomState(0),
    )


def in_double_precision(trainer, seed=0):
    """The trainer, with random modules and gates that can be differentiated numerically."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    read = trainer._inputs
    trainer._inputs = lambda rows: read(rows).double()
    trainer.weight = trainer.weight.double()
    trainer._learned = (trainer.weight * trainer._learns(trainer.folds)).mean(-1)
    for tensors in (*trainer.modules.values(), trainer.gates):
        for i, tensor in enumerate(tensors):
            values = 0.5 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensors[i] = values.requires_grad_()
    return trainer


def slow_cross_entropies(logits, labels):
    return [
        [[-math.log(softmax(exit)[label]) for exit in exits] for exits, label in zip(rows, labels, strict=True)]
        for rows in logits
    ]


class TestLosses:
    """Cross-entropies, eq. 6 and eq. 16."""

    @settings(max_examples=10)
    @given(st.integers(0, 2**32 - 1))
    def test_equal_the_formulas(self, seed):
        import torch

        rng = np.random.default_rng(seed)
        n_copies, n_rows, n_exits, n_classes = rng.integers(2, 5, size=4)
        logits = rng.normal(scale=3, size=(n_copies, n_rows, n_exits, n_classes))
        labels = rng.integers(n_classes, size=n_rows)
        losses = slow_cross_entropies(logits, labels)
        found = cross_entropies(torch.as_tensor(logits), torch.as_tensor(labels))
        np.testing.assert_allclose(found, losses, rtol=1e-9, atol=1e-12)

        probabilities = exit_probabilities(rng.uniform(size=(n_copies, n_rows, n_exits)), "stop")
        prices = rng.uniform(0, 3, size=n_exits)
        expected = [
            [sum((losses[f][i][k] + prices[k]) * probabilities[f, i, k] for k in range(n_exits)) for i in range(n_rows)]
            for f in range(n_copies)
        ]
        found = expected_losses(found, torch.as_tensor(probabilities), torch.as_tensor(prices))
        np.testing.assert_allclose(found, expected, rtol=1e-9)

    @settings(max_examples=20)
    @given(st.integers(0, 2**32 - 1))
    def test_of_the_gates(self, seed):
        import torch

        rng = np.random.default_rng(seed)
        n_rows, n_gates = rng.integers(1, 6, size=2)
        logits = rng.normal(scale=3, size=(n_rows, n_gates))
        targets, weight = rng.integers(2, size=logits.shape), rng.uniform(0.1, 2, size=logits.shape)
        expected = 0.0
        for k in range(n_gates):
            terms = []
            for i in range(n_rows):
                gate = 1 / (1 + math.exp(-logits[i, k]))
                terms.append(-weight[i, k] * math.log(gate if targets[i, k] else 1 - gate))
            expected += sum(terms) / n_rows
        tensors = [torch.as_tensor(values, dtype=torch.float64) for values in (logits, targets, weight)]
        assert gate_loss(*tensors).item() == pytest.approx(expected)
        assert torch.autograd.gradcheck(lambda values: gate_loss(values, *tensors[1:]), tensors[0].requires_grad_())

    @pytest.mark.parametrize("targets", ["exit_if_min", "exit_subsequent"])
    @pytest.mark.parametrize("gate_class_weight", [None, "balanced"])
    def test_of_the_gates_in_training(self, features, targets, gate_class_weight):
        """The targets follow from prices and from what the copy of each row's fold says."""
        X, y = features
        weight = np.random.default_rng(0).uniform(0.5, 2, size=len(y))
        trainer = make_trainer(X, y, weight=weight, targets=targets, gate_class_weight=gate_class_weight)
        trainer, rows, prices = in_double_precision(trainer), np.arange(len(y)), np.array([0.1, 0.6, 0.9, 2.0])
        logits = trainer._logits(rows).detach()[rows % 3, rows]
        costs = -log_softmax(logits.numpy(), axis=-1)[rows, :, y] + prices
        wanted = gate_targets(costs, targets)
        used = np.repeat(weight[:, None] / weight.mean(), 3, axis=1)
        if gate_class_weight == "balanced":
            used = balanced_weight(wanted, used)
        gates = 1 / (1 + np.exp(-trainer._gate_logits(logits).detach().numpy()))
        losses = -np.log(np.where(wanted == 1, gates, 1 - gates))
        expected = (losses * used).mean(axis=0).sum()
        assert trainer._gate_loss(rows, prices).item() == pytest.approx(expected, rel=1e-5)

    @READINGS
    def test_held_out_loss(self, features, gate_reading):
        """Mean of eq. 6, where each row is seen by the copy of its fold."""
        X, y = features
        weight = np.random.default_rng(0).uniform(0.5, 2, size=len(y))
        temperatures = np.array([1, 1, 1, 2.5])
        trainer = make_trainer(X, y, weight=weight, temperatures=temperatures, gate_reading=gate_reading)
        trainer = in_double_precision(trainer)
        prices = np.array([0.3, 0.5, 0.6, 1.1])
        assert trainer.held_out_loss(prices) == pytest.approx(self.slow_loss(trainer, X, y, weight, prices), rel=1e-5)

    @staticmethod
    def slow_loss(trainer, X, y, weight, prices):
        networks = [trainer.networks(fold) for fold in range(3)]
        gates, biases = (tensor.detach().numpy() for tensor in trainer.gates)
        total = 0.0
        for i, label in enumerate(y):
            remaining = 1.0
            for k in range(4):
                network = networks[i % 3][k]
                logits = X.logits(k, [i])[0] / 2.5 if network is None else network(X.features(k, [i]))[0]
                probability = remaining
                if k < 3:
                    gate = 1 / (1 + math.exp(-gate_statistics(logits) @ gates[k] - biases[k]))
                    probability = gate * remaining if trainer.settings.gate_reading == "stop" else min(gate, remaining)
                remaining -= probability
                total += weight[i] * probability * (prices[k] - log_softmax(logits)[label])
        return total / weight.sum()


class TestGradients:
    PRICES = np.array([0.2, 0.6, 1.0])

    @pytest.fixture
    def trainer(self):
        X, y = without_logits(*make_exits(9, 3, 2, 0, n_features=2))
        return lambda **parameters: in_double_precision(make_trainer(X, y, **parameters))

    @staticmethod
    def set_modules(trainer, tensors):
        trainer.modules = {k: list(tensors[2 * i : 2 * i + 2]) for i, k in enumerate(trainer.trained)}

    def parameters(self, trainer):
        return [tensor for module in trainer.modules.values() for tensor in module]

    @READINGS
    def test_full_is_that_of_the_expected_loss(self, trainer, gate_reading):
        import torch

        trainer = trainer(gradient="full", gate_reading=gate_reading)

        def loss(*tensors):
            self.set_modules(trainer, tensors)
            return trainer._module_loss(np.arange(9), self.PRICES)[0]

        assert torch.autograd.gradcheck(loss, self.parameters(trainer))

    @READINGS
    def test_partial_is_the_left_term(self, trainer, gate_reading):
        """Finite differences of sum P(G = l) CE_l with P(G) as it was (eq. 14)."""
        trainer = trainer(gradient="partial", gate_reading=gate_reading)
        rows, parameters = np.arange(9), self.parameters(trainer)
        probabilities = trainer._exit_probabilities(trainer._logits(rows)).detach().numpy()
        learns = np.arange(4)[:, None] != rows % 3  # 6 of 9 rows, or all

        def weighted_cross_entropy():
            losses = np.array(slow_cross_entropies(trainer._logits(rows).detach().numpy(), trainer.labels.numpy()))
            return sum((losses * probabilities).sum(-1)[f][learns[f]].mean() for f in range(4))

        trainer._module_loss(rows, self.PRICES)[0].backward()
        for tensor in parameters:
            flat, gradient = tensor.detach().view(-1), tensor.grad.view(-1)
            for j in range(len(flat)):
                value, step, ends = flat[j].item(), 1e-5, []
                for sign in (1, -1):
                    flat[j] = value + sign * step
                    ends.append(weighted_cross_entropy())
                flat[j] = value
                assert gradient[j].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)

    def test_are_finite_where_modules_are_certain(self):
        rng = np.random.default_rng(0)
        signs = rng.choice([-1e4, 1e4], size=(60, 2))
        X = stack_exits([None, None, signs], [signs, signs + 1, signs])
        for gradient in ("partial", "full"):
            trainer = make_trainer(X, rng.integers(2, size=60), gradient=gradient)
            for weights, _ in trainer.modules.values():
                weights.data.mul_(1e4)
            trainer._module_loss(np.arange(60), self.PRICES)[0].backward()
            for weights, biases in trainer.modules.values():
                assert np.isfinite(weights.grad.numpy()).all()
                assert np.isfinite(biases.grad.numpy()).all()


class TestPenalties:
    def test_weights_are_penalised_by_the_share_that_leaves_and_biases_are_not(self, features):
        trainer = make_trainer(*features, l2=0.5, gradient="partial")
        adams = []
        adam = type(trainer)._scale_penalties

        def spy(self, optimizer, shares):
            adam(self, optimizer, shares)
            adams.append(([group["weight_decay"] for group in optimizer.param_groups], shares.tolist()))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(trainer), "_scale_penalties", spy)
            trainer.fit(np.linspace(0.2, 1, 4))
        for penalties, shares in adams:
            assert penalties == pytest.approx([0.5 * share for share in shares[:3]] + [0.0] * 3)
            assert sum(shares) == pytest.approx(1, abs=0.05)


class TestWarmUp:
    def test_earlier_modules_learn_faster(self, data, monkeypatch):
        """Learning rates are multiplied by the exits to go (eq. 17); the last exit's is not zero."""
        X, y = data
        X = stack_exits([None] * 4, [X.features(k) for k in range(4)])
        seen = []
        one_cycle = jei_training.one_cycle

        def spy(optimizer, rates, n_steps):
            seen.append(rates)
            return one_cycle(optimizer, rates, n_steps)

        monkeypatch.setattr(jei_training, "one_cycle", spy)
        make_trainer(X, y, learning_rate=0.02)
        assert seen == [pytest.approx([0.06, 0.04, 0.02, 0.02] * 2)]  # weights, then biases

    def test_comes_to_logistic_regression(self, data):
        """One copy for each fold that has not learned from it, and the last from all rows."""
        X, y = data
        X = stack_exits([None, None], [X.features(k) for k in (1, 3)])
        weight = np.random.default_rng(0).uniform(0.5, 2, size=len(y))
        l2 = 0.02
        trainer = make_trainer(X, y, weight=weight, l2=l2, warm_up_epochs=40)
        for copy, exit in itertools.product((0, 1, 2, -1), (0, 1)):
            rows = np.arange(len(y)) % 3 != copy
            Z = X.features(exit)
            mean = np.average(Z, axis=0, weights=weight)
            scaled = (Z - mean) / np.sqrt(np.average((Z - mean) ** 2, axis=0, weights=weight))
            model = LogisticRegression(C=1 / (l2 * weight[rows].sum()), max_iter=1000)
            model.fit(scaled[rows], y[rows], sample_weight=weight[rows])
            found = log_softmax(trainer.networks(copy)[exit](Z), axis=1)
            np.testing.assert_allclose(np.exp(found), model.predict_proba(scaled), atol=0.04)
            losses = [
                np.average(-values[np.arange(len(y)), y][rows], weights=weight[rows])
                for values in (found, model.predict_log_proba(scaled))
            ]
            assert losses[0] == pytest.approx(losses[1], abs=3e-3)


class TestAlternation:
    @pytest.mark.parametrize("bilevel_switch", [1, 5, 1000])
    def test_turns(self, features, monkeypatch, bilevel_switch):
        """So many steps of the gates, then as many of the modules."""
        turns = []

        def record(name):
            loss = getattr(JointTrainer, name)
            monkeypatch.setattr(JointTrainer, name, lambda *arguments: turns.append(name) or loss(*arguments))

        record("_gate_loss")
        record("_module_loss")
        JEIGatedEnsemble(**FAST, bilevel_switch=bilevel_switch).fit(*features)
        assert len(turns) == 2 * 80
        expected = itertools.cycle(["_gate_loss"] * bilevel_switch + ["_module_loss"] * bilevel_switch)
        assert turns == list(itertools.islice(expected, len(turns)))

    @pytest.mark.parametrize(
        ("losses", "best"), [([5, 3, 4, 2, 2.5, 2.2], 3), ([1, 2, 3], 0), ([7, 6, 5, 4, 3, 2, 1], 6)]
    )
    def test_early_stopping_keeps_the_best_epoch(self, features, monkeypatch, losses, best):
        trainer = make_trainer(*features, patience=2, max_epochs=6, early_stopping=True)
        states = []
        monkeypatch.setattr(
            trainer, "held_out_loss", lambda _: states.append(trainer._state()) or losses[len(states) - 1]
        )
        assert trainer.fit(np.array([0.1, 0.2, 0.3, 0.4])) == best
        assert len(states) == len(losses)
        for kept, expected in zip(trainer._tensors(), states[best], strict=True):
            np.testing.assert_array_equal(kept.detach(), expected)

    def test_early_stopping_never_ends_worse_than_it_began(self, features):
        trainer = make_trainer(*features, max_epochs=3)
        prices = np.array([0.1, 0.2, 0.3, 0.4])
        before = trainer.held_out_loss(prices)
        trainer.settings = replace(trainer.settings, learning_rate=3.0)
        trainer.fit(prices)
        assert trainer.held_out_loss(prices) <= before

    def test_without_early_stopping_the_last_epoch_is_kept(self, features, monkeypatch):
        trainer = make_trainer(*features, patience=1, max_epochs=4, early_stopping=False)
        states = []
        monkeypatch.setattr(trainer, "held_out_loss", lambda _: states.append(trainer._state()) or len(states))
        assert trainer.fit(np.array([0.1, 0.2, 0.3, 0.4])) == 4
        for kept, expected in zip(trainer._tensors(), states[4], strict=True):
            np.testing.assert_array_equal(kept.detach(), expected)

    @pytest.mark.parametrize("temperature_scaling", [True, False])
    def test_prices_temperatures_and_gates_to_start_with(self, features, monkeypatch, temperature_scaling):
        X, y = features
        seen = []

        def spy(self, prices, fit=JointTrainer.fit):
            seen.append((self.temperatures, prices, self.gates[0].detach().clone()))
            return fit(self, prices)

        monkeypatch.setattr(JointTrainer, "fit", spy)
        X = X.with_layout(X.layout.replace(costs=(1, 2, 5, 10)))
        JEIGatedEnsemble(0.7, temperature_scaling=temperature_scaling, **FAST).fit(X, y)
        (temperatures, prices, gates) = seen[0]
        last = fit_temperature(X.logits(3), y) if temperature_scaling else 1
        np.testing.assert_allclose(temperatures, [1, 1, 1, last])
        np.testing.assert_allclose(prices, [0.07, 0.14, 0.35, 0.7])
        assert (abs(gates).max(axis=1).values > 0.1).all()

    def test_gates_start_as_those_they_are_given(self, features):
        import torch

        trainer, rng = make_trainer(*features), np.random.default_rng(0)
        given = [DenseNetwork((rng.normal(size=(4, 1)),), (rng.normal(size=1),)) for _ in range(3)]
        trainer.start_gates(given)
        logits = rng.normal(size=(7, 4, 3))
        found = trainer._gate_logits(torch.as_tensor(logits, dtype=torch.float32)).detach()
        for k, gate in enumerate(given):
            np.testing.assert_allclose(found[:, k], gate(gate_statistics(logits[:, k]))[:, 0], atol=1e-4)

    def test_modules_that_are_not_trained_jointly_are_the_heads(self, features):
        X, y = features
        policy = JEIGatedEnsemble(joint=False, random_state=0).fit(X, y)
        heads = ExitHeads(random_state=0).fit(X, y)
        for k in range(4):
            np.testing.assert_array_equal(policy.heads_.transform(X).logits(k), heads.transform(X).logits(k))
        assert policy.n_epochs_ == 0
        own = JEIGatedEnsemble(joint=False, random_state=0, heads=ExitHeads(l2=0.5)).fit(X, y)
        assert own.heads_.l2 == 0.5

    @pytest.mark.parametrize("kept", [0, 2, 3])
    def test_exits_with_logits_keep_them(self, data, kept):
        X, y = data
        logits = [X.logits(k) if k == kept else None for k in range(4)]
        policy = JEIGatedEnsemble(**FAST).fit(stack_exits(logits, [X.features(k) for k in range(4)]), y)
        assert [network is None for network in policy.heads_.networks_] == [k == kept for k in range(4)]
        Z = stack_exits(logits, [X.features(k) for k in range(4)])
        stopped = policy.predict_exit(Z) == kept
        np.testing.assert_allclose(policy.predict_proba(Z)[stopped], softmax(X.logits(kept)[stopped]))

    @READINGS
    def test_modules_specialise(self, features, gate_reading):
        """Training with the gates lowers the expected loss, and changes the modules of the warm-up."""
        trainer = make_trainer(*features, max_epochs=5, gate_reading=gate_reading, warm_up_epochs=5)
        prices = np.array([0.25, 0.5, 0.75, 1.0])
        before, start = trainer.held_out_loss(prices), trainer.networks()
        assert trainer.fit(prices) > 0
        assert trainer.held_out_loss(prices) < before - 0.01
        for old, new in zip(start[:3], trainer.networks()[:3], strict=True):
            assert abs(old.weights[0] - new.weights[0]).max() > 1e-4


class TestCrossFitting:
    @pytest.fixture
    def memorable(self):
        """Features that tell the rows apart, and labels that they say nothing about."""
        rng = np.random.default_rng(0)
        return stack_exits([None] * 2, list(rng.normal(size=(2, 120, 150)))), rng.integers(2, size=120)

    def test_a_copy_has_not_learned_from_its_fold(self, memorable):
        X, y = memorable
        trainer = make_trainer(X, y, warm_up_epochs=5)
        trainer.fit(np.array([0.1, 0.2]))
        folds = np.arange(len(y)) % 3
        for copy, exit in itertools.product((0, 1, 2, -1), (0, 1)):
            right = trainer.networks(copy)[exit](X.features(exit)).argmax(axis=1) == y
            assert right[folds != copy].mean() > 0.97
            if copy >= 0:
                assert right[folds == copy].mean() < 0.75

    def test_gates_see_held_out_logits(self, memorable):
        """The modules know the rows by heart, but the measured accuracy is that of a coin."""
        X, y = memorable
        path = JEIGatedEnsemble(**FAST | {"warm_up_epochs": 6}).lambda_path(X, y, [0.0])
        assert path.policies[0].score(X, y) > 0.97
        assert path.accuracies[0] < 0.65
        probability = path.policies[0].predict_proba(X)
        assert path.policies[0].gate_temperatures_.min() > 1.5
        assert probability[np.arange(len(y)), y].mean() > 0.8

    @pytest.mark.parametrize("n_samples", [60, 300])
    def test_weights_count_however_few_rows_are_in_a_batch(self, n_samples):
        """The mean probability of a class is its share of the weight."""
        X, y = make_exits(n_samples, 2, 2, 0)
        X = stack_exits([None, None], [X.features(k) for k in range(2)])
        weight = np.where(y == 0, 8.0, 1.0)
        for exit, network in enumerate(make_trainer(X, y, weight=weight, warm_up_epochs=20, l2=1e-4).networks()):
            probability = softmax(network(X.features(exit)))[:, 0]
            share = np.average(y == 0, weights=weight)
            assert np.average(probability, weights=weight) == pytest.approx(share, abs=0.06)

    @pytest.mark.parametrize("kind", ["data", "features"])
    def test_only_the_ratios_of_weights_matter(self, request, kind):
        X, y = request.getfixturevalue(kind)
        weight = np.random.default_rng(0).uniform(0.5, 2, size=len(y))
        one, other = (JEIGatedEnsemble(**FAST).fit(X, y, sample_weight=scale * weight) for scale in (1, 1000))
        np.testing.assert_allclose(one.exit_scores(X), other.exit_scores(X), rtol=1e-3, atol=1e-3)
        assert abs(one.exit_scores(X) - JEIGatedEnsemble(**FAST).fit(X, y).exit_scores(X)).max() > 1e-3

    @pytest.mark.parametrize("lam", [0.0, 1e6])
    def test_small_weights_leave_gates_as_sure(self, data, lam):
        """Also where all targets of a gate are the same, as those of an exit that is never best."""
        X, y = data
        logits = np.stack([X.logits(0), -9 * np.eye(3)[y], X.logits(3) + 20 * np.eye(3)[y]], axis=1)
        scores = [
            JEIGatedEnsemble(lam, random_state=0, temperature_scaling=False)
            .fit(stack_exits(logits), y, sample_weight=np.full(len(y), scale))
            .exit_scores(stack_exits(logits))
            for scale in (1, 1e-9)
        ]
        np.testing.assert_allclose(*scores, atol=1e-5)
        assert (scores[0][:, 1] < 0.01).all() == (lam == 0)

    @pytest.mark.parametrize("parameters", [{}, {"gate_class_weight": "balanced"}, {"budget": 0.6}], ids=str)
    def test_a_weight_is_a_number_of_copies(self, data, parameters):
        X, y = data
        weight = np.random.default_rng(0).integers(1, 4, size=len(y))
        rows = np.repeat(np.arange(len(y)), weight)
        weighted = JEIGatedEnsemble(**FAST, **parameters).fit(X, y, sample_weight=weight)
        repeated = JEIGatedEnsemble(**FAST, **parameters).fit(X[rows], y[rows])
        np.testing.assert_allclose(weighted.exit_scores(X), repeated.exit_scores(X), atol=1e-5)
        np.testing.assert_allclose(weighted.exit_distribution_, repeated.exit_distribution_)
        np.testing.assert_allclose(weighted.gate_temperatures_, repeated.gate_temperatures_)


class TestGates:
    MARGINS = np.array([0.3, 1.0, 2.0, 3.5])

    def toy(self, margins_of_last=6.0):
        """Each row's logits follow from how hard it is, and all are right."""
        y = np.arange(80) % 2
        first, last = np.tile(np.repeat(self.MARGINS, 2), 10), np.full(80, margins_of_last)
        return stack_exits(np.stack([np.eye(2)[y] * margin[:, None] for margin in (first, last)], axis=1)), y, first

    @pytest.mark.parametrize("lam", [0.01, 0.1, 0.5, 1.0, 2.0])
    def test_find_the_decisions_that_cost_least(self, lam):
        X, y, first = self.toy()

        def cost(leaves):
            loss = [math.log1p(math.exp(-m)) + lam / 2 if left else math.log1p(math.exp(-6)) + lam
                    for m, left in zip(self.MARGINS, leaves, strict=True)]  # fmt: skip
            return sum(loss)

        best = min(itertools.product([True, False], repeat=4), key=cost)
        policy = JEIGatedEnsemble(lam, temperature_scaling=False, l2=1e-6, random_state=0).fit(X, y)
        expected = [0 if dict(zip(self.MARGINS, best, strict=True))[margin] else 1 for margin in first]
        assert policy.predict_exit(X).tolist() == expected

    def test_without_a_price_the_surer_exit_is_taken(self):
        for margin_of_last, exit in ((4.0, 1), (0.1, 0)):
            X, y, _ = self.toy(margin_of_last)
            policy = JEIGatedEnsemble(0.0, temperature_scaling=False, random_state=0).fit(X, y)
            assert (policy.predict_exit(X) == exit).all()

    @READINGS
    @pytest.mark.parametrize("targets", ["exit_if_min", "exit_subsequent"])
    @pytest.mark.parametrize("temperature_scaling", [True, False])
    def test_are_logistic_regressions_on_the_targets(self, data, gate_reading, targets, temperature_scaling):
        """And a sample stops at the first exit with P(E_l) of eq. 4 at least 0.5."""
        X, y = data
        lam, l2 = 0.7, 0.01
        policy = JEIGatedEnsemble(
            lam,
            gate_reading=gate_reading,
            targets=targets,
            temperature_scaling=temperature_scaling,
            l2=l2,
            random_state=0,
        ).fit(X, y)
        logits = [X.logits(k) for k in range(4)]
        if temperature_scaling:
            logits = [values / fit_temperature(values, y) for values in logits]
        losses = np.column_stack([-log_softmax(values, axis=1)[np.arange(len(y)), y] for values in logits])
        wanted = gate_targets(losses + lam * np.arange(1, 5) / 4, targets)
        gates = np.ones((len(y), 4))
        for k in range(3):
            inputs = gate_statistics(logits[k])
            inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
            model = LogisticRegression(C=1 / (l2 * len(y)), tol=1e-10, max_iter=10_000).fit(inputs, wanted[:, k])
            gates[:, k] = model.predict_proba(inputs)[:, 1]
        leaving = exit_probabilities(gates, gate_reading)
        expected = [[row[k] / (1 - row[:k].sum()) for k in range(3) if row[:k].sum() < 1 - 1e-9] for row in leaving]
        for row, scores in zip(expected, policy.exit_scores(X), strict=True):
            np.testing.assert_allclose(expit(scores[: len(row)]), row, atol=2e-3)
        assert policy.thresholds_.tolist() == [0, 0, 0, -np.inf]
        stops = [next((k for k, score in enumerate(row) if score >= 0.5), len(row)) for row in expected]
        assert np.mean(policy.predict_exit(X) == stops) > 0.99

    def test_class_weights_make_rare_targets_count_as_much(self, data):
        """With a small price few samples should stop early, and more do."""
        X, y = data
        shares = [
            JEIGatedEnsemble(0.05, gate_class_weight=weight, random_state=0).fit(X, y).exit_distribution_[0]
            for weight in (None, "balanced")
        ]
        assert shares[0] < 0.1
        assert shares[1] > shares[0] + 0.1

    def test_of_an_exit_that_is_never_best_stay_closed(self, data):
        X, y = data
        logits = np.stack([X.logits(k) for k in range(4)], axis=1)
        logits[:, 1] = -9 * np.eye(3)[y]
        policy = JEIGatedEnsemble(random_state=0, temperature_scaling=False).fit(stack_exits(logits), y)
        assert policy.exit_distribution_[1] == 0
        assert (policy.exit_distribution_[[0, 2]] > 0).all()


class TestPath:
    LAMS = (0.1, 3.0, 0.5, 1.0)

    def test_is_of_separate_fits_where_nothing_is_trained(self, data):
        X, y = data
        path = JEIGatedEnsemble(99, budget=0.5, random_state=0).lambda_path(X, y, self.LAMS)
        assert path.lams.tolist() == list(self.LAMS)
        for lam, policy, cost, accuracy in zip(self.LAMS, path.policies, path.costs, path.accuracies, strict=True):
            alone = JEIGatedEnsemble(lam, random_state=0).fit(X, y)
            assert policy.lam == policy.lam_ == lam
            assert policy.budget is None
            np.testing.assert_array_equal(policy.exit_scores(X), alone.exit_scores(X))
            assert cost == pytest.approx(policy.exit_distribution_ @ policy.costs_)
            assert cost == pytest.approx(np.mean([(k + 1) / 4 for k in alone.predict_exit(X)]))
            stops = alone.predict_exit(X)
            right = [X.logits(k)[i].argmax() == y[i] for i, k in enumerate(stops)]
            assert accuracy == pytest.approx(np.mean(right))

    def test_accuracies_and_costs_are_weighted(self, data):
        X, y = data
        weight = np.random.default_rng(0).uniform(0.1, 2, size=len(y))
        path = JEIGatedEnsemble(random_state=0).lambda_path(X, y, [0.5], sample_weight=weight)
        assert path.accuracies[0] == pytest.approx(path.policies[0].score(X, y, sample_weight=weight))
        assert path.costs[0] == pytest.approx(path.policies[0].mean_cost(X, sample_weight=weight))

    @pytest.mark.parametrize("kind", ["data", "features"])
    def test_a_larger_price_means_earlier_exits(self, request, kind):
        path = JEIGatedEnsemble(**FAST).lambda_path(*request.getfixturevalue(kind), [0.01, 0.1, 0.3, 1, 3, 10])
        assert np.diff(path.costs).max() <= 0.01
        assert path.costs[0] > path.costs[-1] + 0.2

    def test_goes_on_from_the_last_price(self, features, monkeypatch):
        """One warm-up; the policies do not share modules."""
        starts = []
        monkeypatch.setattr(
            JointTrainer, "_warm_up", lambda self, warm_up=JointTrainer._warm_up: starts.append(warm_up(self))
        )
        X, y = features
        policies = JEIGatedEnsemble(**FAST, early_stopping=False).lambda_path(X, y, [0.1, 2.0]).policies
        assert len(starts) == 1
        first, second = (policy.heads_.networks_[0].weights[0] for policy in policies)
        assert abs(first - second).max() > 1e-3
        alone = JEIGatedEnsemble(0.1, **FAST, early_stopping=False).fit(X, y)
        np.testing.assert_array_equal(policies[0].exit_scores(X), alone.exit_scores(X))

    @pytest.mark.parametrize(
        ("lams", "message"),
        [
            ([1, -0.5], r"lams=\[1\.0, -0\.5\] has a price below 0"),
            ([np.nan], "Input lams contains NaN"),
            ([], "0 sample"),
        ],
    )
    def test_prices_that_are_none(self, data, lams, message):
        with pytest.raises(ValueError, match=message):
            JEIGatedEnsemble().lambda_path(*data, lams)


class TestBudget:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize(
        "parameters", [{}, {"decision": "sampled"}, {"gate_reading": "exit", "targets": "exit_subsequent"}], ids=str
    )
    def test_is_met_within_a_sample(self, seed, parameters):
        X, y = make_exits(150, 4, 3, seed)
        policy = JEIGatedEnsemble(budget=0.5, random_state=seed, **parameters).fit(X, y)
        for budget in (0.3, 0.5, 0.65, 0.8, 0.95):
            moved = policy.with_budget(budget)
            assert moved.mean_cost(X) == pytest.approx(moved.exit_distribution_ @ moved.costs_)
            assert budget - 1 / len(y) - 1e-9 <= moved.mean_cost(X) <= budget + 1e-9

    def test_is_met_on_held_out_rows_where_modules_are_trained(self, features):
        X, y = features
        policy = JEIGatedEnsemble(budget=0.6, **FAST).fit(X, y)
        for budget in (0.6, 0.4, 0.9):
            cost = policy.with_budget(budget).exit_distribution_ @ policy.costs_
            assert budget - 1 / len(y) - 1e-9 <= cost <= budget + 1e-9

    def test_moves_along_the_path(self, data):
        X, y = data
        policy = JEIGatedEnsemble(budget=0.6, random_state=0).fit(X, y)
        lams = [policy.with_budget(budget).lam_ for budget in (0.3, 0.4, 0.5, 0.6, 0.8)]
        assert (np.diff(lams) < 0).all()
        for budget in (0.4, 0.8):
            moved, fitted = policy.with_budget(budget), clone(policy).set_params(budget=budget).fit(X, y)
            assert moved.lam_ == fitted.lam_
            np.testing.assert_array_equal(moved.thresholds_, fitted.thresholds_)
            np.testing.assert_array_equal(moved.exit_scores(X), fitted.exit_scores(X))

    def test_takes_the_price_whose_gates_come_nearest(self, data):
        X, y = data
        lams = np.geomspace(0.01, 30, 18)
        costs = JEIGatedEnsemble(random_state=0).lambda_path(X, y, lams).costs
        policy = JEIGatedEnsemble(budget=0.55, random_state=0).fit(X, y)
        assert policy.lam_ == pytest.approx(lams[abs(costs - 0.55).argmin()])

    def test_without_a_budget_only_the_threshold_moves(self, data):
        X, y = data
        policy = JEIGatedEnsemble(0.8, random_state=0).fit(X, y)
        moved = policy.with_budget(0.5)
        assert moved.lam_ == policy.lam_ == 0.8
        np.testing.assert_array_equal(moved.exit_scores(X), policy.exit_scores(X))
        assert moved.mean_cost(X) == pytest.approx(0.5, abs=1 / len(y))

    def test_prices_are_of_costs_as_fractions(self, data):
        """An exit that costs as much as the last is not worth an error; a cheap one is."""
        X, y = data
        logits = [X.logits(k) for k in range(4)]
        shares = []
        for costs in ([1, 97, 98, 100], [10, 970, 980, 1000], [96, 97, 98, 100]):
            Z = stack_exits(logits, costs=costs)
            shares.append(JEIGatedEnsemble(random_state=0).fit(Z, y).exit_distribution_[0])
        assert shares[0] == shares[1] > shares[2] + 0.2


class TestSampled:
    PARAMETERS = ({}, {"gate_reading": "exit"}, {"targets": "exit_subsequent"})

    @pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
    def test_shares_are_the_probabilities(self, data, parameters):
        X, y = data
        new, _ = make_exits(20_000, 4, 3, 1)
        sampled = JEIGatedEnsemble(decision="sampled", random_state=0, **parameters).fit(X, y)
        deterministic = clone(sampled).set_params(decision="deterministic").fit(X, y)
        leaving = exit_probabilities(expit(deterministic.exit_scores(new)), "stop")
        exits = sampled.predict_exit(new)
        for k in range(4):
            deviation = math.sqrt((leaving[:, k] * (1 - leaving[:, k])).mean() / len(new))
            assert np.mean(exits == k) == pytest.approx(leaving[:, k].mean(), abs=4 * deviation + 1e-12)
        # Not only on average: samples that are unlikely to stop seldom do.
        for k, likely in itertools.product(range(3), (0.2, 0.8)):
            rows = abs(leaving[:, k] - likely) < 0.1
            assert np.mean(exits[rows] == k) == pytest.approx(
                leaving[rows, k].mean(), abs=2.2 / np.sqrt(rows.sum() + 1)
            )

    def test_a_sample_always_stops_at_the_same_exit(self, data):
        X, y = data
        policy = JEIGatedEnsemble(decision="sampled", random_state=0).fit(X, y)
        exits = policy.predict_exit(X)
        np.testing.assert_array_equal(policy.predict_exit(X), exits)
        np.testing.assert_array_equal(policy.predict_exit(X[::-1])[::-1], exits)
        assert [policy.predict_exit(X[[row]])[0] for row in range(30)] == exits[:30].tolist()

    def test_seeds_draw_otherwise(self, data):
        X, y = data
        exits = [JEIGatedEnsemble(decision="sampled", random_state=seed).fit(X, y).predict_exit(X) for seed in (0, 1)]
        assert (exits[0] != exits[1]).mean() > 0.1


class TestBadInput:
    def test_heads_that_would_be_trained(self, features):
        with pytest.raises(
            ValueError,
            match=r"heads=ExitHeads\(.*\) cannot be used with joint=True, which .* Pass joint=False or heads=None\.",
        ):
            JEIGatedEnsemble(heads=ExitHeads()).fit(*features)

    @pytest.mark.parametrize("joint", [True, False])
    def test_one_class(self, features, joint):
        X, y = features
        X = stack_exits([None] * 4, [X.features(k) for k in range(4)])
        with pytest.raises(ValueError, match=r"y has 1 class, 'a'; pass rows of two classes or more"):
            JEIGatedEnsemble(joint=joint).fit(X, np.full(len(y), "a"))

    def test_one_class_where_the_logits_know_more(self, data):
        X, y = data
        policy = JEIGatedEnsemble(random_state=0).fit(X, np.zeros_like(y))
        assert policy.classes_.tolist() == [0, 1, 2]
        assert policy.exit_distribution_.sum() == pytest.approx(1)

    @pytest.mark.parametrize("n_samples", [2, 3, 5])
    @pytest.mark.parametrize("max_epochs", [1, 3])
    def test_a_handful_of_rows(self, n_samples, max_epochs):
        for make in (without_logits, lambda *arrays: arrays):
            X, y = make(*make_exits(n_samples, 3, 2, 0))
            y = np.arange(n_samples) % 2
            policy = JEIGatedEnsemble(random_state=0, max_epochs=max_epochs).fit(X, y)
            assert np.isfinite(policy.exit_scores(X)).all()
            assert set(policy.predict(X)) <= {0, 1}

    @pytest.mark.parametrize(
        "parameters", [{}, {"gradient": "full", "early_stopping": False, "gate_reading": "exit"}], ids=str
    )
    def test_extreme_values(self, parameters):
        """Constant or huge features, saturated logits, and exits that say the same."""
        rng = np.random.default_rng(0)
        y = rng.integers(3, size=60)
        signs = rng.choice([-1e4, 1e4], size=(60, 3))
        same = rng.normal(size=(60, 3)) + np.eye(3)[y]
        inputs = {
            "constant features": stack_exits([None] * 3, [np.ones((60, 2))] * 3),
            "huge features": stack_exits([None] * 3, [1e6 * same] * 3),
            "saturated logits": stack_exits(np.stack([signs, -signs, signs], axis=1)),
            "saturated last exit": stack_exits([None, None, signs], [same, same, same]),
            "always right": stack_exits(np.stack([1e4 * np.eye(3)[y]] * 3, axis=1)),
            "never right": stack_exits(np.stack([-1e4 * np.eye(3)[y]] * 3, axis=1)),
            "same at two exits": stack_exits(np.stack([same, same, same + np.eye(3)[y]], axis=1)),
        }
        for lam, (name, X) in itertools.product((0.0, 1e6), inputs.items()):
            policy = JEIGatedEnsemble(lam, **FAST | parameters).fit(X, y)
            assert np.isfinite(policy.exit_scores(X)).all(), name
            assert np.isfinite(policy.predict_proba(X)).all(), name
            assert policy.exit_distribution_.sum() == pytest.approx(1), name
            if name in ("always right", "same at two exits") and lam == 1e6:
                assert policy.exit_distribution_[0] == 1

    @pytest.mark.parametrize("parameters", [{"lam": -1}, {"lam": np.nan}, {"l2": 0}, {"bilevel_switch": 0}, {"targets": "all"}, {"gradient": "half"}], ids=str)  # fmt: skip
    def test_parameters(self, data, parameters):
        with pytest.raises(ValueError, match=rf"The '{next(iter(parameters))}' parameter of JEIGatedEnsemble must be"):
            JEIGatedEnsemble(**parameters).fit(*data)


def test_fits_do_not_depend_on_torch(features):
    """Neither on its seed nor its number of threads, and leave both as they were."""
    import torch

    X, y = features
    n_threads = torch.get_num_threads()
    fits = []
    try:
        for seed, threads in ((0, 1), (1, 2)):
            torch.manual_seed(seed)
            torch.set_num_threads(threads)
            state = torch.get_rng_state()
            fits.append(JEIGatedEnsemble(**FAST, decision="sampled").fit(X, y))
            assert torch.equal(torch.get_rng_state(), state)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(n_threads)
    np.testing.assert_array_equal(fits[0].exit_scores(X), fits[1].exit_scores(X))
    np.testing.assert_array_equal(fits[0].predict_proba(X), fits[1].predict_proba(X))
    other = JEIGatedEnsemble(**FAST | {"random_state": 1}).fit(X, y)
    assert (fits[0].exit_scores(X) != other.exit_scores(X)).any()
