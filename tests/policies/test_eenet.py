"""EENet's inputs, targets and losses against the paper's formulas, its networks, and its policy."""

import copy
import math
import re
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import make_exits
from scipy.special import expit, logit
from sklearn.base import clone

import skexit._nn._mini_batches
from skexit import EENetPolicy, ThresholdPolicy, stack_exits
from skexit._nn._mini_batches import Training
from skexit.data._walk import correct_exits
from skexit.policies._quotas import exits_from_scores, quota_thresholds
from skexit.policies.eenet import _network as eenet_network
from skexit.policies.eenet._network import (
    SchedulerLoss,
    apply_scheduler,
    assignment_loss,
    assignment_targets,
    budget_loss,
    build_scheduler,
    exit_inputs,
    scheduler_networks,
    start_at_confidence,
    survival_weights,
    train_scheduler,
    utility_input,
    utility_loss,
)
from skexit.policies.eenet._policy import _read_inputs
from skexit.uncertainty import log_odds, softmax
from skexit.uncertainty._scores import count_votes

torch = pytest.importorskip("torch")

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**32 - 1))
FAST = {"max_epochs": 3, "random_state": 0}


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=400, n_exits=4, n_classes=3, random_state=0)


def random_outputs(n_samples, n_exits, seed):
    """Logits of utilities, assignments with their logarithm, which exits are right, and weights."""
    rng = np.random.default_rng(seed)
    utility_logits = 3 * rng.normal(size=(n_samples, n_exits))
    assignment = softmax(2 * rng.normal(size=(n_samples, n_exits)))
    correct = rng.uniform(size=(n_samples, n_exits)) < 0.6
    return utility_logits, assignment, correct, rng.uniform(0.1, 3, size=n_samples)


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in arrays]


class TestFormulas:
    @given(SHAPES)
    def test_targets(self, shape):
        n_samples, n_exits, _, seed = shape
        correct = random_outputs(n_samples, n_exits, seed)[2]
        targets = assignment_targets(correct)
        for n in range(n_samples):
            for k in range(n_exits):
                if correct[n, k]:
                    expected = 1 / sum(correct[n])
                elif not any(correct[n]):
                    expected = 1 / n_exits
                else:
                    expected = 0
                assert targets[n, k] == pytest.approx(expected)

    @given(SHAPES)
    def test_inputs(self, shape):
        n_samples, n_exits, n_classes, seed = shape
        rng = np.random.default_rng(seed)
        logits = 3 * rng.normal(size=(n_exits, n_samples, n_classes))
        utilities = rng.normal(size=(n_samples, n_exits))
        votes = None
        for k in range(n_exits):
            votes = count_votes(logits[k], votes)
            earlier = utility_input(utilities[:, :k]) if k else None
            inputs = exit_inputs(logits[k], votes, earlier)
            assert inputs.shape == (n_samples, n_classes + (k + 1) + 2)  # the paper's D with k from 1
            for n, row in enumerate(inputs):
                p = softmax(logits[k, n])
                plogp = sum(p[c] * math.log(p[c]) for c in range(n_classes))
                said = [int(logits[j, n].argmax()) for j in range(k + 1)]
                votes_of_most = max(said.count(c) for c in range(n_classes))
                centred = [2 / (1 + math.exp(-utility)) - 1 for utility in utilities[n, :k]]
                np.testing.assert_allclose(row, [*p, max(p), plogp, votes_of_most, *centred], rtol=1e-9, atol=1e-12)
            on_torch = exit_inputs(*(None if a is None else torch.from_numpy(a) for a in (logits[k], votes, earlier)))
            np.testing.assert_allclose(on_torch.numpy(), inputs, rtol=1e-12)

    @given(SHAPES)
    def test_inputs_of_a_policy_are_those_it_was_trained_on(self, shape):
        n_samples, n_exits, n_classes, seed = shape
        X, _ = make_exits(n_samples, n_exits, n_classes, seed)
        rows = np.random.default_rng(seed).permutation(n_samples)
        votes, parts = None, []
        for k in range(n_exits):
            logits = X.logits(k, rows)
            votes = count_votes(logits, votes)
            parts.append(exit_inputs(logits, votes))
        np.testing.assert_array_equal(_read_inputs(X, rows), np.hstack(parts))

    @given(SHAPES)
    def test_survival_weights(self, shape):
        n_samples, n_exits, _, seed = shape
        _, assignment, _, weight = random_outputs(n_samples, n_exits, seed)
        found = survival_weights(*tensors(assignment, weight)).numpy()
        for k in range(n_exits):
            survival = [weight[n] * (1 - sum(assignment[n, :k])) for n in range(n_samples)]
            np.testing.assert_allclose(found[:, k], np.array(survival) / sum(survival), rtol=1e-9)

    @given(SHAPES)
    def test_utility_loss(self, shape):
        n_samples, n_exits, _, seed = shape
        logits, assignment, correct, weight = random_outputs(n_samples, n_exits, seed)
        expected = 0.0
        for k in range(n_exits):
            survival = [weight[n] * (1 - sum(assignment[n, :k])) for n in range(n_samples)]
            for n in range(n_samples):
                utility, right = 1 / (1 + math.exp(-logits[n, k])), float(correct[n, k])
                # Eq. 12 with the minus sign that it lacks.
                loss = -(right * math.log(utility) + (1 - right) * math.log(1 - utility))
                expected += survival[n] / sum(survival) * loss / n_exits
        found = utility_loss(*tensors(logits, correct), survival_weights(*tensors(assignment, weight)))
        assert found.item() == pytest.approx(expected, rel=1e-9)

    @given(SHAPES, st.floats(0.05, 1))
    def test_budget_loss(self, shape, budget):
        n_samples, n_exits, _, seed = shape
        _, assignment, _, weight = random_outputs(n_samples, n_exits, seed)
        costs = np.cumsum(np.random.default_rng(seed).uniform(0.1, 1, size=n_exits))
        cost = sum(weight[n] * assignment[n, k] * costs[k] for n in range(n_samples) for k in range(n_exits)) / sum(
            weight
        )
        assignment, costs, weight = tensors(assignment, costs, weight)
        found = budget_loss(assignment, costs, budget, weight).item()
        assert found == pytest.approx(abs(budget - cost) / budget, rel=1e-9, abs=1e-12)

    @given(SHAPES)
    def test_assignment_loss(self, shape):
        n_samples, n_exits, _, seed = shape
        _, assignment, correct, weight = random_outputs(n_samples, n_exits, seed)
        targets = assignment_targets(correct)
        expected = 0.0
        for n in range(n_samples):
            for k in range(n_exits):
                expected -= weight[n] / sum(weight) * math.log(assignment[n, k]) * targets[n, k] / n_exits
        found = assignment_loss(*tensors(np.log(assignment), targets, weight)).item()
        assert found == pytest.approx(expected, rel=1e-9)

    def test_losses_without_weights_are_the_papers(self):
        """Equal weights leave plain means over the samples, whatever their size."""
        logits, assignment, correct, _ = random_outputs(9, 4, 0)
        loss = SchedulerLoss(np.array([0.2, 0.4, 0.7, 1]), 0.5, 0.1, 1e-3)
        arguments = tensors(logits, np.log(assignment), correct, assignment_targets(correct))
        one, other = (loss.parts(*arguments, torch.full((9,), size, dtype=torch.float64)) for size in (1.0, 7.0))
        assert list(one) == ["utility", "budget", "assignment"]
        for name in one:
            assert one[name].item() == pytest.approx(other[name].item())
        expected = one["utility"] + 0.1 * one["budget"] + 1e-3 * one["assignment"]
        assert loss.total(one).item() == pytest.approx(expected.item())

    def test_weights_are_repeated_rows(self):
        logits, assignment, correct, _ = random_outputs(9, 4, 1)
        times = np.arange(1, 10)
        loss = SchedulerLoss(np.array([0.2, 0.4, 0.7, 1]), 0.5, 0.1, 1e-3)
        arrays = logits, np.log(assignment), correct, assignment_targets(correct)
        weighted = loss.parts(*tensors(*arrays, times))
        repeated = loss.parts(*tensors(*(np.repeat(array, times, axis=0) for array in arrays), np.ones(times.sum())))
        for name in weighted:
            assert weighted[name].item() == pytest.approx(repeated[name].item())

    def test_extreme_outputs_keep_losses_finite(self):
        """In single precision, everybody is assigned to the first exit, and utilities are 0 or 1."""
        log_assignment = torch.tensor([[200.0, 0, 0]] * 4).log_softmax(1)
        logits = torch.tensor([[-300.0, 300, 300]] * 4, requires_grad=True)
        correct = torch.tensor([[1.0, 0, 1]] * 4)
        loss = SchedulerLoss(np.array([0.2, 0.5, 1]), 0.5, 0.1, 1e-3)
        parts = loss.parts(logits, log_assignment, correct, correct / 2, torch.ones(4))
        loss.total(parts).backward()
        assert all(math.isfinite(part.item()) for part in parts.values())
        assert torch.isfinite(logits.grad).all()


class TestGradients:
    @staticmethod
    def problem():
        logits, assignment, correct, weight = random_outputs(7, 4, 3)
        loss = SchedulerLoss(np.array([0.2, 0.4, 0.7, 1]), 0.45, 0.1, 1e-3)
        fixed = tensors(correct, assignment_targets(correct), weight)
        outputs = [tensor.requires_grad_() for tensor in tensors(logits, np.log(assignment))]
        return loss, outputs, fixed

    def test_of_the_parameters(self, monkeypatch):
        """All of the loss, with the survival weights held as they are: they are outside the graph."""
        loss, _, fixed = self.problem()
        models = [model.double() for model in build_scheduler(4, 6, 1.0, 2, torch.Generator().manual_seed(0))]
        inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 4, 6)))
        parameters = [parameter for model in models for parameter in model.parameters()]
        survival = survival_weights(apply_scheduler(models, inputs)[1].exp(), fixed[2])
        monkeypatch.setattr(eenet_network, "survival_weights", lambda assignment, weight: survival)
        assert torch.autograd.gradcheck(
            lambda *_: loss.total(loss.parts(*apply_scheduler(models, inputs), *fixed)), parameters
        )
        loss.total(loss.parts(*apply_scheduler(models, inputs), *fixed)).backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in parameters)

    def test_flow_through_earlier_utilities(self):
        models = build_scheduler(3, 6, 1.0, 2, torch.Generator().manual_seed(0))
        inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 3, 6))).float()
        apply_scheduler(models, inputs)[0][:, 2].sum().backward()
        assert models[0][0].weight.grad.abs().max() > 0

    def test_survival_weights_are_outside_the_graph(self):
        loss, (logits, log_assignment), fixed = self.problem()
        parts = loss.parts(logits, log_assignment, *fixed)
        (of_total,) = torch.autograd.grad(loss.total(parts), log_assignment, retain_graph=True)
        (of_rest,) = torch.autograd.grad(0.1 * parts["budget"] + 1e-3 * parts["assignment"], log_assignment)
        torch.testing.assert_close(of_total, of_rest)


def random_scheduler(n_exits=4, n_classes=3, seed=0):
    """Networks as torch has them, and the same on raw inputs in NumPy."""
    rng = np.random.default_rng(seed)
    models = build_scheduler(n_exits, n_classes + 3, 1.5, 1, torch.Generator().manual_seed(seed))
    for model in models:
        for parameter in model.double().parameters():
            parameter.data = torch.from_numpy(rng.normal(size=tuple(parameter.shape)))
    mean, scale = rng.normal(size=n_exits * (n_classes + 3)), rng.uniform(0.2, 2, size=n_exits * (n_classes + 3))
    return models, mean, scale


def confidences(X):
    return np.stack([log_odds(X.logits(k)) for k in range(X.layout.n_exits)], axis=1)


def ties_broken(scores, X):
    """Samples with the same scores are ordered by their confidence."""
    return scores + 1e-6 * confidences(X)


class TestNetworks:
    def test_numpy_gives_what_torch_gives(self, data):
        X, y = data
        models, mean, scale = random_scheduler()
        inputs = (_read_inputs(X, np.arange(len(X))) - mean) / scale
        with torch.no_grad():
            utility_logits, _ = apply_scheduler(models, torch.from_numpy(inputs).view(len(X), 4, 6))
        policy = EENetPolicy(confidence_weight=0, **FAST).fit(X, y)
        policy.networks_ = scheduler_networks(models, mean, scale)
        np.testing.assert_allclose(policy.exit_scores(X), ties_broken(utility_logits.numpy(), X), rtol=1e-9)

    def test_what_was_trained_is_what_is_applied(self, data):
        """The distribution and losses that training reports follow from the networks that it returns."""
        X, y = data
        weight = np.random.default_rng(0).exponential(size=len(X))
        policy = EENetPolicy(0.6, init="random", confidence_weight=0, **FAST).fit(X, y, weight)
        scores, utility = policy.exit_scores(X), np.empty((len(X), 4))
        inputs, utilities, assignment_logits = _read_inputs(X, np.arange(len(X))), np.empty((len(X), 0)), []
        for k, network in enumerate(policy.networks_):
            outputs = network(np.hstack([inputs[:, 6 * k : 6 * k + 6], utilities]))
            utility[:, k] = expit(outputs[:, 0])
            utilities = 2 * utility[:, : k + 1] - 1
            assignment_logits.append(outputs[:, 1])
        np.testing.assert_allclose(scores, ties_broken(logit(utility), X))
        assignment = softmax(np.stack(assignment_logits, axis=1))
        np.testing.assert_allclose(
            policy.learned_distribution_, np.average(assignment, axis=0, weights=weight), rtol=1e-5
        )
        correct = correct_exits(X, y)
        parts = SchedulerLoss(policy.costs_, 0.6, 0.1, 1e-3).parts(
            *tensors(np.log(utility / (1 - utility)), np.log(assignment), correct, assignment_targets(correct), weight)
        )
        for name, value in parts.items():
            assert policy.losses_[name] == pytest.approx(value.item(), rel=1e-4)

    @pytest.mark.parametrize(
        ("hidden_ratio", "fewest", "expected"), [(0.5, 1, [3, 4, 4]), (2, 1, [12, 14, 16]), (0.01, 2, [2, 2, 2])]
    )
    def test_widths(self, hidden_ratio, fewest, expected):
        models = build_scheduler(3, 6, hidden_ratio, fewest, torch.Generator())
        assert [model[0].out_features for model in models] == expected
        assert [model[0].in_features for model in models] == [6, 7, 8]
        assert {model[1].negative_slope for model in models} == {0.01}

    def test_start_at_confidence(self, data):
        X, y = data
        inputs = _read_inputs(X, np.arange(len(X)))
        mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
        scale[5] = 1  # one exit always agrees with itself
        scaled = ((inputs - mean) / scale).reshape(len(X), 4, 6)
        models = build_scheduler(4, 6, 0.5, 2, torch.Generator().manual_seed(0))
        shares, correct = np.array([0.1, 0.2, 0.3, 0.4]), correct_exits(X, y)
        start_at_confidence(models, scaled[:, :, 3], correct, np.ones(len(X)), shares)
        with torch.no_grad():
            utility_logits, log_assignment = apply_scheduler(models, torch.from_numpy(scaled).float())
        np.testing.assert_allclose(log_assignment.exp().numpy(), np.tile(shares, (len(X), 1)), rtol=1e-5)
        np.testing.assert_allclose(utility_logits.sigmoid().numpy().mean(axis=0), correct.mean(axis=0), atol=0.02)
        confident = ThresholdPolicy(budget=0.6).fit(X, y)
        for confidence_weight in (0, 1):
            policy = EENetPolicy(0.6, confidence_weight=confidence_weight, **FAST).fit(X, y)
            policy.networks_, policy.learn_distribution = scheduler_networks(models, mean, scale), False
            ranks = [p.exit_scores(X).argsort(axis=0) for p in (policy, confident)]
            np.testing.assert_array_equal(*ranks)
            policy.fit_thresholds(X, np.ones(len(X)))
            np.testing.assert_array_equal(policy.predict_exit(X), confident.predict_exit(X))

    @pytest.mark.parametrize("right", [0, 1])
    def test_start_where_all_are_right_or_wrong(self, right):
        models = build_scheduler(1, 6, 0.5, 2, torch.Generator().manual_seed(0))
        confidences = np.random.default_rng(0).normal(size=(50, 1))
        start_at_confidence(models, confidences, np.full((50, 1), bool(right)), np.ones(50), np.ones(1))
        inputs = torch.zeros(50, 1, 6)
        inputs[:, 0, 3] = torch.from_numpy(confidences[:, 0])
        utility = apply_scheduler(models, inputs)[0].sigmoid().detach().numpy()[:, 0]
        assert abs(utility - right).max() < 0.1
        np.testing.assert_array_equal(utility.argsort(), confidences[:, 0].argsort())

    def test_weights_of_the_start_are_repeated_rows(self):
        rng = np.random.default_rng(0)
        confidences, correct, times = (
            rng.normal(size=(50, 1)),
            rng.uniform(size=(50, 1)) < 0.5,
            rng.integers(1, 5, size=50),
        )
        weight = 50 * times / times.sum()
        models = [build_scheduler(1, 6, 0.5, 2, torch.Generator().manual_seed(0)) for _ in range(3)]
        start_at_confidence(models[0], confidences, correct, weight, np.ones(1))
        start_at_confidence(models[1], confidences, correct, 9 * weight, np.ones(1))
        start_at_confidence(
            models[2],
            np.repeat(confidences, times, axis=0),
            np.repeat(correct, times, axis=0),
            np.ones(times.sum()),
            np.ones(1),
        )
        slopes = [model[0][2].weight[0, 0].item() for model in models]
        assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)
        # Two more rows keep both answers present; their influence falls with the number of rows.
        assert slopes[0] == pytest.approx(slopes[2], abs=0.05)

    def test_start_never_ranks_against_the_confidence(self):
        models = build_scheduler(1, 6, 0.5, 2, torch.Generator().manual_seed(0))
        confidences = np.linspace(-2, 2, 50)[:, None]
        start_at_confidence(models, confidences, confidences < 0, np.ones(50), np.ones(1))
        assert models[0][2].weight[0, 0] > 0

    @pytest.mark.parametrize("from_confidence", [False, True])
    def test_training_lowers_the_loss(self, data, from_confidence):
        X, y = data
        loss = SchedulerLoss(X.layout.cost_fractions, 0.5, 0.1, 1e-3)
        trained = [
            train_scheduler(
                lambda rows: _read_inputs(X, rows),
                correct_exits(X, y),
                np.ones(len(X)),
                loss,
                n_classes=3,
                hidden_ratio=2,
                from_confidence=from_confidence,
                training=Training(learning_rate, 1e-4, 30, 64),
                random_state=np.random.RandomState(0),
            )
            for learning_rate in (1e-9, 1e-2)
        ]
        before, after = (loss.total(losses) for _, _, losses, _ in trained)
        assert after < before - 0.005

    @pytest.mark.parametrize(("n_samples", "held_out"), [(199, False), (200, True)])
    def test_rows_are_held_out_where_there_are_enough(self, monkeypatch, n_samples, held_out):
        X, y = make_exits(n_samples, 3, 3, 0)
        seen = []
        monkeypatch.setattr(
            eenet_network,
            "minimize",
            lambda loss, parameters, rows, held_out, *_, **__: seen.append((rows, held_out)) or 0,
        )
        EENetPolicy(random_state=0).fit(X, y)
        rows, kept = seen[0]
        assert len(kept) == (20 if held_out else 0)
        assert sorted([*rows, *kept]) == list(range(n_samples))


def algorithm_1(scores, shares):
    """Thresholds as the paper finds them, sorted to fall, and with the break where the quota is full."""
    n_samples, n_exits = scores.shape
    has_left, thresholds = np.zeros(n_samples), np.full(n_exits, 1e8)
    order = np.argsort(-scores, axis=0)
    for k in range(n_exits):
        count = 0
        for n in range(n_samples):
            if has_left[order[n, k]] == 0:
                count += 1
                has_left[order[n, k]] = 1
                if count == round(n_samples * shares[k]):
                    thresholds[k] = scores[order[n, k], k]
                    break
    thresholds[-1] = -1e8
    return thresholds


@given(st.integers(0, 2**32 - 1), st.integers(20, 200), st.integers(2, 6))
def test_quotas_are_those_of_algorithm_1(seed, n_samples, n_exits):
    rng = np.random.default_rng(seed)
    scores, shares = rng.uniform(size=(n_samples, n_exits)), rng.uniform(0.3, 1, size=n_exits)
    shares /= shares.sum()
    costs = np.cumsum(rng.uniform(0.2, 1, size=n_exits))
    costs /= costs[-1]
    # The budget is what the distribution costs, so that it need not be tilted.
    found = quota_thresholds(scores, costs, shares @ costs, log_prior=np.log(shares), direction=costs)
    distributions = [
        np.bincount(exits_from_scores(scores, thresholds), minlength=n_exits) / n_samples
        for thresholds in (found, algorithm_1(scores, shares))
    ]
    np.testing.assert_allclose(*distributions, atol=1.5 / n_samples * np.sqrt(n_exits))


class TestPolicy:
    def test_quotas_are_the_learned_distribution_tilted_to_the_budget(self, data):
        X, y = data
        X = X.with_layout(X.layout.replace(costs=[1, 2, 6, 7]))
        policy = EENetPolicy(0.5, assignment_loss_weight=1, **FAST).fit(X, y)
        for budget in (0.35, 0.5, 0.8):
            # Quotas are p exp(-μ c); the mean cost falls as μ rises.
            low, high = -50.0, 50.0
            for _ in range(100):
                mu = (low + high) / 2
                expected = policy.learned_distribution_ * np.exp(-mu * policy.costs_)
                expected /= expected.sum()
                low, high = (mu, high) if expected @ policy.costs_ > budget else (low, mu)
            shares = policy.with_budget(budget).exit_distribution_
            np.testing.assert_allclose(shares, expected, atol=1.5 / len(X))

    @given(seed=st.integers(0, 9999), share=st.floats(0.02, 1), n_exits=st.integers(2, 5))
    @settings(max_examples=15)
    def test_budget_is_met_on_the_fitted_rows(self, seed, share, n_exits):
        X, y = make_exits(120, n_exits, 3, seed)
        budget = min(1.0, 1 / n_exits + share * (1 - 1 / n_exits))
        policy = EENetPolicy(budget, max_epochs=1, random_state=seed).fit(X, y)
        for other in (policy, policy.with_budget((budget + 1) / 2)):
            assert other.budget - 1 / len(X) - 1e-9 <= other.mean_cost(X) <= other.budget + 1e-9

    def test_without_learned_scores(self, data):
        X, y = data
        policy = EENetPolicy(assignment_loss_weight=1, learn_scores=False, **FAST).fit(X, y)
        confident, learned = ThresholdPolicy().fit(X, y), EENetPolicy(assignment_loss_weight=1, **FAST).fit(X, y)
        np.testing.assert_array_equal(policy.exit_scores(X), confident.exit_scores(X))
        np.testing.assert_array_equal(policy.learned_distribution_, learned.learned_distribution_)
        assert not np.array_equal(policy.thresholds_, confident.thresholds_)

    def test_without_learned_distribution(self, data):
        X, y = data
        policy, learned = (
            EENetPolicy(assignment_loss_weight=1, learn_distribution=value, **FAST).fit(X, y) for value in (False, True)
        )
        np.testing.assert_array_equal(policy.exit_scores(X), learned.exit_scores(X))
        np.testing.assert_array_equal(
            policy.thresholds_, quota_thresholds(policy.exit_scores(X), policy.costs_, policy.budget)
        )
        assert not np.array_equal(policy.thresholds_, learned.thresholds_)

    def test_without_either_it_is_maximum_probability(self, data):
        X, y = data
        policy = EENetPolicy(learn_scores=False, learn_distribution=False).fit(X, y)
        confident = ThresholdPolicy().fit(X, y)
        np.testing.assert_array_equal(policy.thresholds_, confident.thresholds_)
        np.testing.assert_array_equal(policy.exit_scores(X), confident.exit_scores(X))
        assert (policy.networks_, policy.learned_distribution_, policy.losses_, policy.n_epochs_) == ([], None, {}, 0)

    def test_confidence_weight(self, data):
        X, y = data
        scores = {w: EENetPolicy(confidence_weight=w, **FAST).fit(X, y).exit_scores(X) for w in (0, 1, 3, np.inf)}
        np.testing.assert_allclose(scores[np.inf], ThresholdPolicy().fit(X, y).exit_scores(X))
        for weight in (1, 3):
            utility, confidence = expit(scores[0] - ties_broken(0, X)), expit(scores[np.inf])
            expected = utility * confidence**weight
            np.testing.assert_allclose(expit(scores[weight] - ties_broken(0, X)), expected)

    @pytest.mark.parametrize("init", ["confidence", "random"])
    def test_same_seed_same_policy(self, data, init):
        X, y = data
        torch.manual_seed(1)
        policies = [EENetPolicy(init=init, max_epochs=2, random_state=seed).fit(X, y) for seed in (5, 5, 6)]
        torch.manual_seed(2)
        policies.append(clone(policies[0]).fit(X, y))
        scores = [policy.exit_scores(X) for policy in policies]
        np.testing.assert_array_equal(scores[0], scores[1])
        np.testing.assert_array_equal(scores[0], scores[3])
        assert not np.array_equal(scores[0], scores[2])

    def test_global_torch_state_does_not_change(self, data):
        state, n_threads = torch.get_rng_state(), torch.get_num_threads()
        EENetPolicy(**FAST).fit(*data)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == n_threads

    def test_reading_batches_gives_the_same_as_memory(self, data, monkeypatch):
        X, y = data
        expected = EENetPolicy(**FAST).fit(X, y)
        monkeypatch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 0)
        np.testing.assert_array_equal(EENetPolicy(**FAST).fit(X, y).exit_scores(X), expected.exit_scores(X))

    def test_inputs_of_a_batch_are_let_go(self, data, monkeypatch):
        """A part of them that is kept would keep the memory of all: 26 GB for 1.3 million rows of 1,000 classes."""
        read_in, alive = [], []

        def keep_nothing(read, n_samples, n_inputs):
            def read_and_count(rows):
                memory = read(rows).numpy().copy()
                read_in.append(weakref.ref(memory))
                alive.append(sum(reference() is not None for reference in read_in))
                return torch.from_numpy(memory)

            return read_and_count

        monkeypatch.setattr(eenet_network, "keep_in_memory", keep_nothing)
        EENetPolicy(batch_size=32, **FAST).fit(*data)
        assert len(alive) > 10
        assert max(alive) <= 2

    def test_weights_are_heeded(self, data):
        """Where the rows that only the last exit gets right hardly count, earlier exits look better."""
        X, y = data
        correct = correct_exits(X, y)
        hard = ~correct[:, :2].any(axis=1)
        policies = [
            EENetPolicy(0.5, max_epochs=10, random_state=0, confidence_weight=0).fit(X, y, np.where(hard, weight, 1.0))
            for weight in (1.0, 1e-3)
        ]
        plain, easy = (policy.exit_scores(X)[:, 0].mean() for policy in policies)
        assert easy > plain + 0.03
        assert policies[1].learned_distribution_ @ policies[1].costs_ == pytest.approx(0.5, abs=0.1)

    def test_patience(self, data, monkeypatch):
        X, y = data
        losses = iter([5.0, 4, 3, 3, 3.5, 1, 1])
        monkeypatch.setattr(skexit._nn._mini_batches, "_mean_loss", lambda *_: next(losses))
        policy = EENetPolicy(max_epochs=50, patience=2, random_state=0).fit(X, y)
        assert policy.n_epochs_ == 2
        assert next(losses) == 1

    def test_the_start_is_kept_where_nothing_is_better(self, data, monkeypatch):
        X, y = data
        losses = iter(range(10))
        monkeypatch.setattr(skexit._nn._mini_batches, "_mean_loss", lambda *_: next(losses))
        policy = EENetPolicy(max_epochs=3, learn_distribution=False, random_state=0).fit(X, y)
        assert policy.n_epochs_ == 0
        confident = ThresholdPolicy().fit(X, y)
        np.testing.assert_array_equal(policy.predict_exit(X), confident.predict_exit(X))

    def test_progress(self, data, capsys):
        EENetPolicy(verbose=True, **FAST).fit(*data)
        assert "utilities and assignments" in capsys.readouterr().err
        EENetPolicy(**FAST).fit(*data)
        assert capsys.readouterr().err == ""

    @pytest.mark.slow
    def test_default_is_no_worse_than_maximum_probability(self):
        """Mean over seeds and budgets; the standard error of the difference is about 0.002."""
        differences = []
        for seed in range(3):
            X, y = make_exits(3000, 5, 4, seed)
            new, new_y = make_exits(3000, 5, 4, 100 + seed)
            for budget in (0.35, 0.5, 0.7):
                policy = EENetPolicy(budget, random_state=seed).fit(X, y)
                confident = ThresholdPolicy(budget=budget).fit(X, y)
                assert policy.mean_cost(new) == pytest.approx(confident.mean_cost(new), abs=0.03)
                differences.append(policy.score(new, new_y) - confident.score(new, new_y))
        assert np.mean(differences) > -0.002

    @pytest.mark.parametrize(
        ("parameter", "message"),
        [
            ({"budget": 1.5}, "budget=1.5 must be in (0, 1]: it is a fraction of the network's cost."),
            ({"budget": 0.2}, "budget=0.2 is below the cost of the first exit, 0.25 of the network's"),
            (
                {"hidden_ratio": 0},
                "The 'hidden_ratio' parameter of EENetPolicy must be a float in the range (0.0, inf).",
            ),
            (
                {"budget_loss_weight": -1},
                "The 'budget_loss_weight' parameter of EENetPolicy must be a float in the range [0.0, inf).",
            ),
            ({"init": "zero"}, "The 'init' parameter of EENetPolicy must be a str among {"),
            (
                {"confidence_weight": -1},
                "The 'confidence_weight' parameter of EENetPolicy must be a float in the range [0.0, inf].",
            ),
            ({"patience": 0}, "The 'patience' parameter of EENetPolicy must be an int in the range [1, inf) or None."),
            (
                {"max_epochs": 0},
                "The 'max_epochs' parameter of EENetPolicy must be an int in the range [1, inf) or a str among {'auto'}.",
            ),
            ({"learn_scores": "no"}, "The 'learn_scores' parameter of EENetPolicy must be an instance of 'bool'"),
        ],
        ids=str,
    )
    def test_bad_parameters(self, data, parameter, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            EENetPolicy(**parameter).fit(*data)


@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
class TestUnusualData:
    @staticmethod
    def check(policy, X, y, budget=0.6):
        policy.fit(X, y)
        scores = policy.exit_scores(X)
        assert np.isfinite(scores).all()
        assert policy.mean_cost(X) <= max(budget, policy.costs_[0]) + 1e-9
        assert all(math.isfinite(value) for value in policy.losses_.values())
        return policy

    @pytest.mark.parametrize("init", ["confidence", "random"])
    @pytest.mark.parametrize("n_samples", [1, 2, 9, 30])
    def test_few_rows(self, n_samples, init):
        X, y = make_exits(n_samples, 3, 2, 0)
        self.check(EENetPolicy(0.6, init=init, **FAST), X, y)

    def test_one_exit(self):
        X, y = make_exits(50, 1, 3, 0)
        policy = EENetPolicy(1.0).fit(X, y)
        assert policy.networks_ == []
        assert policy.thresholds_.tolist() == [-np.inf]
        assert policy.exit_distribution_.tolist() == [1]

    @pytest.mark.parametrize("budget", [1 / 3, 1.0])
    def test_outermost_budgets(self, budget):
        X, y = make_exits(300, 3, 3, 0)
        policy = self.check(EENetPolicy(budget, **FAST), X, y, budget)
        assert policy.mean_cost(X) == pytest.approx(budget)

    def test_only_one_class_is_seen(self):
        X, y = make_exits(300, 3, 3, 0)
        self.check(EENetPolicy(0.6, **FAST), X[y == 1], y[y == 1])

    def test_an_exit_that_is_never_right_and_one_that_always_is(self):
        X, y = make_exits(300, 3, 3, 0)
        logits = np.stack([X.logits(k) for k in range(3)], axis=1)
        logits[:, 0] += 50 * np.eye(3)[(y + 1) % 3]
        logits[:, 2] += 50 * np.eye(3)[y]
        policy = self.check(EENetPolicy(0.6, max_epochs=10, random_state=0), stack_exits(logits), y)
        assert policy.exit_scores(stack_exits(logits))[:, 0].max() < 0  # probabilities below a half

    @pytest.mark.parametrize("init", ["confidence", "random"])
    def test_probabilities_of_exactly_0_and_1(self, init):
        X, y = make_exits(300, 3, 3, 0)
        logits = 1e4 * np.stack([X.logits(k) for k in range(3)], axis=1)
        policy = self.check(EENetPolicy(0.6, init=init, **FAST), stack_exits(logits), y)
        single = stack_exits(logits.astype(np.float32))
        np.testing.assert_array_equal(policy.predict_exit(single), policy.predict_exit(stack_exits(logits)))

    def test_single_precision_on_torch(self):
        X, y = make_exits(300, 3, 3, 0)
        policy = EENetPolicy(0.6, **FAST).fit(X, y)
        memory, scores = {}, policy.exit_scores(X)
        for k in range(3):
            found = policy.score_exit(k, torch.from_numpy(X.logits(k)).float(), None, memory)
            assert found.dtype == torch.float32
            np.testing.assert_allclose(found.numpy(), scores[:, k], rtol=1e-3)
        assert memory["votes"].shape == (300, 3)
        assert memory["utilities"].shape == (300, 3)

    def test_with_budget_trains_nothing(self, data, monkeypatch):
        X, y = data
        policy = EENetPolicy(0.5, **FAST).fit(X, y)
        before = copy.deepcopy(policy.networks_)
        monkeypatch.setattr(eenet_network, "minimize", None)
        other = policy.with_budget(0.8)
        assert other.mean_cost(X) == pytest.approx(0.8, abs=1 / len(X))
        assert other.networks_ is policy.networks_
        for network, old in zip(policy.networks_, before, strict=True):
            np.testing.assert_array_equal(network.weights[0], old.weights[0])


class TestManyClasses:
    @pytest.mark.parametrize(("n_classes", "n_seen"), [(1000, 1000), (1001, 100), (5000, 100)])
    def test_networks_see_the_largest_of_many_probabilities(self, n_classes, n_seen):
        logits = np.random.default_rng(0).normal(size=(20, n_classes))
        probabilities, votes = softmax(logits), count_votes(logits, None)
        inputs = exit_inputs(logits, votes)
        expected = probabilities if n_seen == n_classes else -np.sort(-probabilities, axis=1)[:, :n_seen]
        np.testing.assert_array_equal(inputs[:, :n_seen], expected)
        np.testing.assert_array_equal(inputs[:, n_seen], probabilities.max(axis=1))
        assert inputs.shape == (20, n_seen + 3)
        on_torch = exit_inputs(torch.from_numpy(logits), torch.from_numpy(votes))
        np.testing.assert_allclose(on_torch.numpy(), inputs)

    @pytest.mark.parametrize("init", ["confidence", "random"])
    def test_their_size_does_not_grow_with_the_classes(self, init):
        n_classes = 10_000
        rng = np.random.default_rng(0)
        y = np.repeat(rng.integers(n_classes, size=40), 3)
        logits = rng.normal(size=(120, 3, n_classes)).astype(np.float32)
        logits[np.arange(120), :, y] += np.array([4, 6, 8])
        X = stack_exits(logits, classes=np.arange(n_classes))
        policy = EENetPolicy(0.6, init=init, max_epochs=2, random_state=0).fit(X, y)
        assert [network.weights[0].shape[0] for network in policy.networks_] == [103, 104, 105]
        assert policy.mean_cost(X) <= 0.6
        # Which class is which does not matter.
        order = rng.permutation(n_classes)
        renamed = stack_exits(logits[:, :, order], classes=np.arange(n_classes))
        np.testing.assert_allclose(policy.exit_scores(renamed), policy.exit_scores(X))
