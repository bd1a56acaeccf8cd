"""What gates see, learn and say, against the formulas of JEI-DNN one row at a time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skexit.policies.jei._gates import balanced_weight, exit_probabilities, gate_statistics, gate_targets
from skexit.uncertainty import softmax

SEEDS = st.integers(0, 2**32 - 1)
READINGS = pytest.mark.parametrize("reading", ["stop", "exit"])
#: Rows with probabilities of exactly 0 and 1, and with ties.
CERTAIN = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0.25, 0.75], [1 / 3, 1 / 3, 1 / 3], [1 - 1e-12, 1e-12, 0]])


def slow_entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def slow_statistics(row):
    """Section 9.9, with the minus signs that it lacks."""
    squares = [p**2 for p in row]
    largest, second = sorted(row, reverse=True)[:2]
    return [largest, slow_entropy(row), slow_entropy([square / sum(squares) for square in squares]), largest - second]


def slow_exit_probabilities(gates, reading):
    """Eq. 4 with P(E_l) = g_l, or eq. 7 and 8 cut at 0; the last gate is 1."""
    gates = [*gates[:-1], 1.0]
    if reading == "stop":
        return [gate * math.prod(1 - earlier for earlier in gates[:k]) for k, gate in enumerate(gates)]
    found = []
    for gate in gates:
        found.append(max(min(gate, 1 - sum(found)), 0))
    return found


def slow_targets(costs, targets):
    n_exits = len(costs)
    best = min(range(n_exits), key=lambda k: costs[k])
    if targets == "exit_subsequent":
        return [float(k >= best) for k in range(n_exits - 1)]
    return [float(not any(costs[later] < costs[k] for later in range(k + 1, n_exits))) for k in range(n_exits - 1)]


@st.composite
def gates_of_rows(draw):
    """Gates in [0, 1], some of them exactly 0, 0.5 or 1."""
    rng = np.random.default_rng(draw(SEEDS))
    gates = rng.uniform(size=(20, draw(st.integers(1, 7)))) ** rng.choice([0.3, 1, 4])
    special = rng.uniform(size=gates.shape) < 0.3
    return np.where(special, rng.choice([0, 0.5, 1.0], size=gates.shape), gates)


class TestStatistics:
    @given(SEEDS, st.integers(2, 8), st.floats(0.1, 40))
    def test_equal_the_formulas(self, seed, n_classes, scale):
        logits = np.random.default_rng(seed).normal(scale=scale, size=(3, 4, n_classes))
        expected = [[slow_statistics(row) for row in rows] for rows in softmax(logits)]
        np.testing.assert_allclose(gate_statistics(logits), expected, rtol=1e-9, atol=1e-9)

    def test_with_so_many_classes_that_they_are_not_sorted(self):
        logits = np.random.default_rng(0).normal(scale=3, size=(5, 100))
        np.testing.assert_allclose(
            gate_statistics(logits), [slow_statistics(row) for row in softmax(logits)], rtol=1e-9
        )

    def test_of_certain_rows(self):
        expected = [slow_statistics(row) for row in CERTAIN]
        with np.errstate(divide="ignore"):
            logits = np.log(CERTAIN)
        np.testing.assert_allclose(gate_statistics(logits), expected, atol=1e-12)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_have_finite_gradients_at_certain_rows(self, dtype):
        import torch

        logits = torch.tensor(1e4 * CERTAIN, dtype=getattr(torch, dtype), requires_grad=True)
        gate_statistics(logits).sum().backward()
        assert torch.isfinite(logits.grad).all()

    def test_gradients_agree_with_finite_differences(self):
        import torch

        logits = torch.as_tensor(np.random.default_rng(0).normal(size=(6, 4))).requires_grad_()
        assert torch.autograd.gradcheck(gate_statistics, logits)


class TestExitProbabilities:
    @READINGS
    @given(gates=gates_of_rows())
    def test_equal_the_formulas(self, reading, gates):
        expected = [slow_exit_probabilities(row, reading) for row in gates]
        np.testing.assert_allclose(exit_probabilities(gates, reading), expected, atol=1e-12)

    @READINGS
    @given(gates=gates_of_rows())
    def test_are_a_distribution_whatever_the_gates_say(self, reading, gates):
        for values in (gates, gates.astype(np.float32)):
            probabilities = exit_probabilities(values, reading)
            assert probabilities.min() >= 0
            np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-6)

    @READINGS
    @given(gates=gates_of_rows())
    def test_have_finite_gradients(self, reading, gates):
        import torch

        gates = torch.as_tensor(gates).requires_grad_()
        (exit_probabilities(gates, reading).square().sum() + 0 * gates.sum()).backward()
        assert torch.isfinite(gates.grad).all()

    def test_readings_by_hand(self):
        gates = np.array([[0.5, 0.6, 0.3, 0.2]])
        np.testing.assert_allclose(exit_probabilities(gates, "stop"), [[0.5, 0.3, 0.06, 0.14]])
        np.testing.assert_allclose(exit_probabilities(gates, "exit"), [[0.5, 0.5, 0, 0]])


class TestTargets:
    @pytest.mark.parametrize("targets", ["exit_if_min", "exit_subsequent"])
    @given(seed=SEEDS, n_exits=st.integers(2, 7))
    def test_equal_the_definitions(self, targets, seed, n_exits):
        """Costs are small integers, so that many are tied."""
        costs = np.random.default_rng(seed).integers(4, size=(30, n_exits)).astype(float)
        expected = [slow_targets(row, targets) for row in costs]
        np.testing.assert_array_equal(gate_targets(costs, targets), expected)

    def test_by_hand(self):
        """The example of section 9.15: best at the third exit, and the next one is to be avoided."""
        costs = np.array([[9.0, 8, 1, 7, 2, 3, 4]])
        assert gate_targets(costs, "exit_if_min").tolist() == [[0, 0, 1, 0, 1, 1]]
        assert gate_targets(costs, "exit_subsequent").tolist() == [[0, 0, 1, 1, 1, 1]]

    @given(seed=SEEDS, n_exits=st.integers(2, 6))
    def test_the_first_open_gate_is_at_the_cheapest_exit(self, seed, n_exits):
        costs = np.random.default_rng(seed).normal(size=(30, n_exits))
        for targets in ("exit_if_min", "exit_subsequent"):
            gates = np.column_stack([gate_targets(costs, targets), np.ones(len(costs))])
            np.testing.assert_array_equal(gates.argmax(axis=1), costs.argmin(axis=1))


@given(seed=SEEDS, share=st.floats(0, 1))
def test_balanced_weight(seed, share):
    """Zeros and ones of each gate weigh the same, and as much as before together."""
    rng = np.random.default_rng(seed)
    targets = (rng.uniform(size=(25, 4)) < share).astype(float)
    weight = np.broadcast_to(rng.uniform(0.1, 3, size=(25, 1)), targets.shape)
    found = balanced_weight(targets, weight)
    for k, column in enumerate(targets.T):
        ones = column == 1
        if ones.all() or not ones.any():
            np.testing.assert_array_equal(found[:, k], weight[:, k])
            continue
        assert found[ones, k].sum() == pytest.approx(found[~ones, k].sum())
        assert found[:, k].sum() == pytest.approx(weight[:, k].sum())
        for same in (ones, ~ones):
            assert np.ptp(found[same, k] / weight[same, k]) < 1e-9
