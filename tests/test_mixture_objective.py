"""DiffBranch's objective: the loss of the mixture, its gradients, and gates and modules that minimise it."""

import itertools
import math

import numpy as np
import pytest
from instances import make_exits
from scipy.optimize import approx_fprime, minimize
from scipy.special import log_softmax
from test_jei import FAST, in_double_precision, make_trainer, without_logits

from skexit import JEIGatedEnsemble, stack_exits
from skexit.policies.gates import exit_probabilities, gate_statistics
from skexit.policies.jei_training import JointTrainer
from skexit.policies.mixture_objective import fit_mixture_gates, mixture_loss_and_gradient, mixture_losses
from skexit.uncertainty import fit_temperature, softmax

READINGS = pytest.mark.parametrize("reading", ["stop", "exit"])
PRICES = np.array([0.1, 0.4, 0.6, 1.5])


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=400, n_exits=4, n_classes=3, random_state=0)


@pytest.fixture(scope="module")
def features(data):
    return without_logits(*data)


def slow_mixture_loss(losses, gates, prices, reading):
    """Of one sample: -log sum P(G = l) p_l(y), plus sum P(G = l) times the price of exit l."""
    likelihood, price, remaining = 0.0, 0.0, 1.0
    for k, loss in enumerate(losses):
        leaving = remaining
        if k < len(losses) - 1:
            leaving = gates[k] * remaining if reading == "stop" else min(gates[k], remaining)
        remaining -= leaving
        likelihood += leaving * math.exp(-loss)
        price += leaving * prices[k]
    return price - math.log(likelihood)


def random_problem(seed=0, n_samples=12, scale=1.0):
    rng = np.random.default_rng(seed)
    logits, losses = scale * rng.normal(size=(n_samples, 3)), rng.exponential(size=(n_samples, 4))
    return logits, losses, rng.uniform(0.5, 2, size=n_samples)


def slow_mean_loss(logits, losses, prices, weight, reading):
    gates = 1 / (1 + np.exp(-logits))
    rows = [slow_mixture_loss(*row, prices, reading) for row in zip(losses, gates, strict=True)]
    return np.average(rows, weights=weight)


class TestLoss:
    @READINGS
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_the_formula(self, reading, seed):
        import torch

        logits, losses, weight = random_problem(seed)
        gates = 1 / (1 + np.exp(-logits))
        probabilities = exit_probabilities(np.column_stack([gates, np.ones(12)]), reading)
        found = mixture_losses(*(torch.as_tensor(values) for values in (losses, probabilities, PRICES)))
        expected = [slow_mixture_loss(*row, PRICES, reading) for row in zip(losses, gates, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        loss, _ = mixture_loss_and_gradient(logits, losses, PRICES, weight, reading)
        assert loss == pytest.approx(np.average(expected, weights=weight), rel=1e-9)

    @READINGS
    @pytest.mark.parametrize("seed", range(3))
    def test_gradient_is_that_of_finite_differences(self, reading, seed):
        logits, losses, weight = random_problem(seed)
        _, gradient = mixture_loss_and_gradient(logits, losses, PRICES, weight, reading)
        expected = approx_fprime(
            logits.ravel(),
            lambda values: slow_mean_loss(values.reshape(logits.shape), losses, PRICES, weight, reading),
            1e-7,
        )
        np.testing.assert_allclose(gradient.ravel(), expected, atol=1e-6)

    @READINGS
    def test_is_finite_where_gates_and_exits_are_certain(self, reading):
        import torch

        logits = 800.0 * np.random.default_rng(0).choice([-1, 1], size=(30, 3))
        losses = 1e4 * np.random.default_rng(1).choice([0, 1], size=(30, 4))
        loss, gradient = mixture_loss_and_gradient(logits, losses, PRICES, np.ones(30), reading)
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
        parameters = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
        gates = torch.cat([torch.sigmoid(parameters), torch.ones(30, 1)], dim=1)
        prices, losses = (torch.as_tensor(values, dtype=torch.float32) for values in (PRICES, losses))
        mixture_losses(losses, exit_probabilities(gates, reading), prices).mean().backward()
        assert np.isfinite(parameters.grad.numpy()).all()


class TestGates:
    """Of modules that are fixed."""

    @staticmethod
    def fit(policy_inputs="own", seed=0, n_samples=60, reading="stop", weight=None, alpha=0.05):
        rng = np.random.default_rng(seed)
        losses = rng.exponential(size=(n_samples, 4)) * np.array([1.5, 1, 0.8, 0.3])
        widths = [2, 2, 2] if policy_inputs == "own" else [2, 4, 6]
        inputs = [3 * rng.normal(size=(n_samples, width)) + losses[:, [k]] for k, width in enumerate(widths)]
        weight = rng.uniform(0.5, 2, size=n_samples) if weight is None else weight
        return inputs, losses, weight, fit_mixture_gates(inputs, losses, PRICES, weight, reading=reading, alpha=alpha)

    @READINGS
    @pytest.mark.parametrize("policy_inputs", ["own", "seen"])
    def test_are_at_a_minimum_of_the_penalised_loss(self, reading, policy_inputs):
        """No step lowers it, and scipy finds nothing lower from where every exit is as probable."""
        inputs, losses, weight, gates = self.fit(policy_inputs, reading=reading)
        means = [np.average(values, axis=0, weights=weight) for values in inputs]
        scales = [
            np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
            for values, mean in zip(inputs, means, strict=True)
        ]
        ends = np.cumsum([len(mean) for mean in means])

        def penalised(parameters):
            weights = np.split(parameters[:-3], ends[:-1])
            logits = [
                (values - mean) / scale @ of_gate
                for values, mean, scale, of_gate in zip(inputs, means, scales, weights, strict=True)
            ]
            logits = np.column_stack(logits) + parameters[-3:]
            return slow_mean_loss(logits, losses, PRICES, weight, reading) + 0.025 * (parameters[:-3] ** 2).sum()

        of_gates = [gate.weights[0][:, 0] * scale for gate, scale in zip(gates, scales, strict=True)]
        biases = [gate(mean[None])[0, 0] for gate, mean in zip(gates, means, strict=True)]
        found = np.concatenate([*of_gates, biases])
        shares = [1 / 4, 1 / 3, 1 / 2] if reading == "stop" else [1 / 4] * 3
        start = np.concatenate([np.zeros(ends[-1]), np.log([share / (1 - share) for share in shares])])
        best = minimize(penalised, start, method="BFGS")
        assert penalised(found) < penalised(start)
        assert penalised(found) <= best.fun + 1e-4
        if reading == "stop":  # the other reading has kinks
            assert abs(approx_fprime(found, penalised, 1e-6)).max() < 1e-3

    def test_a_weight_is_a_number_of_copies(self):
        weight = np.random.default_rng(1).integers(1, 4, size=60)
        inputs, losses, _, weighted = self.fit(weight=weight.astype(float))
        rows = np.repeat(np.arange(60), weight)
        repeated = fit_mixture_gates(
            [values[rows] for values in inputs], losses[rows], PRICES, np.ones(len(rows)), reading="stop", alpha=0.05
        )
        for one, other, values in zip(weighted, repeated, inputs, strict=True):
            np.testing.assert_allclose(one(values), other(values), atol=2e-3)

    def test_open_or_closed_where_a_price_says_so(self, data):
        X, y = data
        costs = [
            JEIGatedEnsemble(lam, objective="mixture", random_state=0).fit(X, y).exit_distribution_ @ [1, 2, 3, 4] / 4
            for lam in (0.0, 0.3, 1.0, 3.0, 100.0)
        ]
        assert costs[0] > 0.8
        assert costs[-1] == 0.25
        assert np.diff(costs).max() < 0.02

    @READINGS
    @pytest.mark.parametrize("gate_inputs", ["own", "seen"])
    def test_of_a_policy_see_statistics_of_scaled_logits(self, data, reading, gate_inputs):
        X, y = data
        policy = JEIGatedEnsemble(
            0.7, objective="mixture", gate_reading=reading, gate_inputs=gate_inputs, random_state=0
        ).fit(X, y)
        logits = [X.logits(k) / fit_temperature(X.logits(k), y) for k in range(4)]
        losses = np.column_stack([-log_softmax(values, axis=1)[np.arange(len(y)), y] for values in logits])
        statistics = [gate_statistics(softmax(values)) for values in logits]
        inputs = [np.hstack(statistics[: k + 1] if gate_inputs == "seen" else [statistics[k]]) for k in range(3)]
        prices = 0.7 * np.arange(1, 5) / 4
        expected = fit_mixture_gates(inputs, losses, prices, np.ones(len(y)), reading=reading, alpha=policy.alpha)
        for one, other, values in zip(policy.gates_, expected, inputs, strict=True):
            np.testing.assert_allclose(one(values), other(values), rtol=1e-4, atol=1e-4)

    def test_do_not_learn_targets(self, data):
        X, y = data
        scores = [
            JEIGatedEnsemble(objective="mixture", random_state=0, **parameters).fit(X, y).exit_scores(X)
            for parameters in ({}, {"targets": "exit_subsequent", "gate_class_weight": "balanced", "gradient": "full"})
        ]
        np.testing.assert_array_equal(*scores)
        assert abs(scores[0] - JEIGatedEnsemble(random_state=0).fit(X, y).exit_scores(X)).max() > 0.1

    def test_of_a_single_exit_are_none(self, data):
        X, y = data
        policy = JEIGatedEnsemble(objective="mixture").fit(stack_exits([X.logits(3)]), y)
        assert policy.gates_ == []


class TestTogether:
    """Modules and gates trained together."""

    @staticmethod
    def trainer(**parameters):
        X, y = without_logits(*make_exits(9, 3, 2, 0, n_features=2))
        return in_double_precision(make_trainer(X, y, objective="mixture", **parameters))

    @READINGS
    @pytest.mark.parametrize("gate_inputs", ["seen", "own"])
    def test_loss_is_of_the_copies_for_modules_and_of_held_out_rows_for_gates(self, reading, gate_inputs):
        trainer, rows = self.trainer(gate_reading=reading, gate_inputs=gate_inputs), np.arange(9)
        prices = np.array([0.2, 0.6, 1.0])
        logits, labels = trainer._logits(rows).detach().numpy(), trainer.labels.numpy()
        weights, biases = ((tensor * 1).detach().numpy() for tensor in trainer.gates)
        losses = -np.take_along_axis(log_softmax(logits, axis=-1), labels[None, :, None, None], axis=-1)[..., 0]

        def slow(copy, row):
            statistics = gate_statistics(softmax(logits[copy, row, :2]))
            said = []
            for k in range(2):
                first = 0 if gate_inputs == "seen" else k
                looked_at = statistics[first : k + 1].ravel() @ weights[k, 4 * first : 4 * k + 4] + biases[k]
                said.append(1 / (1 + math.exp(-looked_at)))
            return slow_mixture_loss(losses[copy, row], said, prices, reading)

        of_copies = [np.mean([slow(copy, row) for row in rows if row % 3 != copy]) for copy in range(4)]
        held_out = np.mean([slow(row % 3, row) for row in rows])
        loss, shares = trainer._mixture_loss(rows, prices)
        assert loss.item() == pytest.approx(sum(of_copies) + held_out, rel=1e-6)
        assert trainer.held_out_loss(prices) == pytest.approx(held_out, rel=1e-6)
        assert shares.sum().item() == pytest.approx(1)

    @READINGS
    def test_gradients(self, reading):
        """Of the modules that of their copies' losses, through the gates too; of the gates that of held-out rows."""
        trainer, rows, prices = self.trainer(gate_reading=reading), np.arange(9), np.array([0.2, 0.6, 1.0])
        modules = [tensor for module in trainer.modules.values() for tensor in module]
        trainer._mixture_loss(rows, prices)[0].backward()

        def of_copies():
            logits = trainer._logits(rows)
            losses = trainer._sample_losses(logits, trainer._exit_probabilities(logits, trainer.gates), rows, prices)
            return (losses * trainer._copy_weight(rows)).mean(-1).sum().item()

        for tensors, loss in ((modules, of_copies), (trainer.gates, lambda: trainer.held_out_loss(prices))):
            for tensor in tensors:
                flat, gradient = tensor.detach().view(-1), tensor.grad.view(-1)
                for j in range(len(flat)):
                    value, ends = flat[j].item(), []
                    for sign in (1, -1):
                        flat[j] = value + sign * 1e-5
                        ends.append(loss())
                    flat[j] = value
                    assert gradient[j].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)

    @READINGS
    def test_lowers_the_mixture_loss(self, features, reading):
        trainer = make_trainer(*features, objective="mixture", max_epochs=5, gate_reading=reading, warm_up_epochs=5)
        before, start = trainer.held_out_loss(PRICES), trainer.networks()
        assert trainer.fit(PRICES) > 0
        assert trainer.held_out_loss(PRICES) < before - 0.01
        for old, new in zip(start[:3], trainer.networks()[:3], strict=True):
            assert abs(old.weights[0] - new.weights[0]).max() > 1e-4

    def test_every_step_trains_both(self, features, monkeypatch):
        steps = []

        def spy(self, batch, prices, mixture_loss=JointTrainer._mixture_loss):
            steps.append((self.gates[0].detach().clone(), self.modules[0][0].detach().clone()))
            return mixture_loss(self, batch, prices)

        monkeypatch.setattr(JointTrainer, "_mixture_loss", spy)
        JEIGatedEnsemble(objective="mixture", **FAST).fit(*features)
        assert len(steps) == 2 * 80
        for (gates, modules), (next_gates, next_modules) in itertools.pairwise(steps[2:9]):
            assert (gates != next_gates).any()
            assert (modules != next_modules).any()

    def test_weights_of_the_fit_count(self, features):
        X, y = features
        weight = np.random.default_rng(0).uniform(0.5, 2, size=len(y))
        policies = [
            JEIGatedEnsemble(objective="mixture", **FAST).fit(X, y, sample_weight=w)
            for w in (weight, 99 * weight, None)
        ]
        scores = [policy.exit_scores(X) for policy in policies]
        np.testing.assert_allclose(scores[0], scores[1], rtol=1e-2, atol=1e-2)
        assert abs(scores[0] - scores[2]).max() > 1e-2


class TestBudget:
    @pytest.mark.parametrize("joint", [True, False])
    def test_is_met_on_held_out_rows_and_moves_along_the_path(self, features, joint):
        X, y = features
        policy = JEIGatedEnsemble(budget=0.6, objective="mixture", joint=joint, **FAST).fit(X, y)
        for budget in (0.4, 0.6, 0.9):
            moved = policy.with_budget(budget)
            cost = moved.exit_distribution_ @ policy.costs_
            assert budget - 1 / len(y) - 1e-9 <= cost <= budget + 1e-9
        assert policy.with_budget(0.4).lam_ > policy.with_budget(0.9).lam_

    def test_path_and_fit_agree(self, data):
        X, y = data
        path = JEIGatedEnsemble(objective="mixture", random_state=0).lambda_path(X, y, [1.0, 0.3])
        for lam, policy in zip((1.0, 0.3), path.policies, strict=True):
            alone = JEIGatedEnsemble(lam, objective="mixture", random_state=0).fit(X, y)
            np.testing.assert_array_equal(policy.exit_scores(X), alone.exit_scores(X))


def test_another_objective_is_refused(data):
    with pytest.raises(ValueError, match=r"The 'objective' parameter of JEIGatedEnsemble must be a str among"):
        JEIGatedEnsemble(objective="sum").fit(*data)
