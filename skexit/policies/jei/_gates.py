"""Learned gates of JEI-DNN: their inputs, their targets, and the probabilities of leaving.

The functions use the array API: training with torch and decisions at an exit use the same functions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.policies._blending import sigmoid
from skexit.uncertainty import softmax
from skexit.uncertainty._scores import in_order, second_and_largest, sum_of_plogp
from skexit.utils._array_api import array_namespace, as_like

Array = Any  # an array of any namespace that array-api-compat knows

#: Smaller probabilities of staying are counted as 0.
_SMALLEST = 1e-9
#: Number of statistics of an exit's probabilities that a gate has as inputs.
N_STATISTICS = 4
#: Temperatures of the two entropies, as factors of the logits.
_FACTORS = np.array([[1.0], [2.0]])
#: Matrix that gives the statistics from the second largest and the largest probability, and minus both entropies.
_TO_STATISTICS = np.array([[0.0, 0, 0, -1], [1, 0, 0, 1], [0, -1, 0, 0], [0, 0, -1, 0]])


def gate_statistics(logits: Array) -> Array:
    """Largest probability, entropy, entropy at temperature 0.5, and margin (JEI-DNN, section 9.9), from logits.

    The entropies are in nats, with the minus sign that is missing in the paper.
    """
    # With few rows, most of the time is that of the calls. So one operation serves several numbers where it can.
    probabilities = softmax(in_order(logits)[..., None, :] * as_like(_FACTORS, logits))
    two_largest = second_and_largest(probabilities[..., 0, :])
    parts = [two_largest, sum_of_plogp(probabilities)]
    return array_namespace(logits).concat(parts, axis=-1) @ as_like(_TO_STATISTICS, logits)


def exit_probabilities(gates: Array, reading: str) -> Array:
    """Probability of leaving at each exit, P(G = l), from the outputs of the gates.

    The last gate is ignored, because all remaining samples leave there. With the reading ``"stop"``, a gate gives the
    probability that a sample that reaches the exit stops there, so that eq. 4 holds with P(E_l) = g_l. With ``"exit"``,
    it gives P(G = l) itself, cut so that the probabilities do not exceed one in total (eq. 7 and 8).
    """
    xp = array_namespace(gates)
    remaining = xp.ones_like(gates[..., 0])
    probabilities = []
    for k in range(gates.shape[-1] - 1):
        leaving = leaving_probability(gates[..., k], remaining, reading)
        probabilities.append(leaving)
        remaining = remaining - leaving
    return xp.stack([*probabilities, remaining], axis=-1)


def leaving_probability(gate: Array, remaining: Array, reading: str) -> Array:
    """Probability of leaving at one exit, from that of having left at no earlier exit, `remaining`."""
    if reading == "stop":
        return gate * remaining
    return array_namespace(gate).where(gate < remaining, gate, remaining)


def leaving_log_odds(gate: Array, memory: dict[str, Array], reading: str) -> Array:
    """Log-odds of leaving at an exit for the samples that reach it, from the logits of its gate."""
    if reading == "stop":
        return gate
    xp = array_namespace(gate)
    remaining = memory.get("remaining", xp.ones_like(gate))
    leaving = leaving_probability(sigmoid(gate), remaining, reading)
    staying = memory["remaining"] = remaining - leaving
    leaving = xp.clip(leaving, xp.finfo(gate.dtype).smallest_normal, None)
    # A sample that must have left by now, up to rounding, is certain to leave.
    is_sure = staying < _SMALLEST
    return xp.where(is_sure, -math.log(_SMALLEST), xp.log(leaving) - xp.log(xp.where(is_sure, 1.0, staying)))


def gate_targets(costs: NDArray[np.float64], targets: str) -> NDArray[np.float64]:
    """Targets of the gates: 1 if a sample should leave at an exit or should have left before, else 0.

    The cost of an exit is the cross-entropy plus the price of compute. ``"exit_subsequent"``: 1 from the cheapest exit
    on (eq. 31), the first one if exits cost the same. ``"exit_if_min"``: 1 if no later exit is cheaper (section 9.15;
    eq. 32 has a misprint).
    """
    n_exits = costs.shape[1]
    if targets == "exit_subsequent":
        best = np.argmin(costs, axis=1)
        return (np.arange(n_exits - 1) >= best[:, None]).astype(np.float64)
    cheapest_later = np.minimum.accumulate(costs[:, :0:-1], axis=1)[:, ::-1]
    return (costs[:, :-1] <= cheapest_later).astype(np.float64)


def balanced_weight(targets: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights with which the zeros and the ones of each gate's targets have the same total.

    They are unchanged if a gate has only zeros or only ones.
    """
    total = weight.sum(axis=0)
    ones = (weight * targets).sum(axis=0) / total
    mixed = (ones > 0) & (ones < 1)
    of_ones, of_zeros = (np.where(mixed, 0.5 / np.where(mixed, share, 1), 1.0) for share in (ones, 1 - ones))
    return weight * np.where(targets == 1, of_ones, of_zeros)
