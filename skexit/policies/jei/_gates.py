"""Learned gates of JEI-DNN: what they see, what they learn, and how they are read.

Written against the array API: torch trains with the same functions that decide at an exit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.policies._blending import sigmoid
from skexit.uncertainty._scores import entropy, two_largest
from skexit.utils._array_api import array_namespace

Array = Any  # an array of any namespace that array-api-compat knows

#: Chances of staying are told apart down to here.
_SMALLEST = 1e-9
#: Statistics of an exit's probabilities that a gate sees.
N_STATISTICS = 4


def gate_statistics(probabilities: Array) -> Array:
    """Largest probability, entropy, entropy at temperature 0.5, and margin (JEI-DNN, section 9.9).

    The entropies are in nats, with the minus sign that the paper's lack.
    """
    xp = array_namespace(probabilities)
    # At temperature 0.5 probabilities are squared; the largest is taken out, so that none vanishes.
    largest, second = two_largest(probabilities)
    sharpened = (probabilities / largest[..., None]) ** 2
    sharpened = sharpened / xp.sum(sharpened, axis=-1, keepdims=True)
    entropies = entropy(xp.stack([probabilities, sharpened], axis=-2))
    return xp.stack([largest, entropies[..., 0], entropies[..., 1], largest - second], axis=-1)


def exit_probabilities(gates: Array, reading: str) -> Array:
    """Probability of leaving at each exit, P(G = l), from what each gate says.

    The last gate is not looked at, since everyone left leaves there. With the reading ``"stop"``, a gate says how
    probable it is that a sample that got here stops here, so that eq. 4 holds with P(E_l) = g_l. With ``"exit"``, it
    says P(G = l) itself, cut where the probabilities would exceed one (eq. 7 and 8).
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
    """Probability of leaving at one exit, given that of having left at no earlier one, `remaining`."""
    if reading == "stop":
        return gate * remaining
    return array_namespace(gate).where(gate < remaining, gate, remaining)


def leaving_log_odds(gate: Array, memory: dict[str, Array], reading: str) -> Array:
    """Log-odds of leaving at an exit for the samples that got there, from the logits of its gate."""
    if reading == "stop":
        return gate
    xp = array_namespace(gate)
    remaining = memory.get("remaining", xp.ones_like(gate))
    leaving = leaving_probability(sigmoid(gate), remaining, reading)
    staying = memory["remaining"] = remaining - leaving
    leaving = xp.clip(leaving, xp.finfo(gate.dtype).smallest_normal, None)
    # A sample that must have left by now, but for rounding, is sure to leave.
    is_sure = staying < _SMALLEST
    return xp.where(is_sure, -math.log(_SMALLEST), xp.log(leaving) - xp.log(xp.where(is_sure, 1.0, staying)))


def gate_targets(costs: NDArray[np.float64], targets: str) -> NDArray[np.float64]:
    """What the gates learn: 1 where a sample should leave at an exit or should have left before, else 0.

    The cost of an exit is the cross-entropy plus the price of compute. ``"exit_subsequent"``: 1 from the cheapest exit
    on (eq. 31); of exits that cost the same, it is the first. ``"exit_if_min"``: 1 where no later exit is cheaper
    (section 9.15; eq. 32 is misprinted).
    """
    n_exits = costs.shape[1]
    if targets == "exit_subsequent":
        best = np.argmin(costs, axis=1)
        return (np.arange(n_exits - 1) >= best[:, None]).astype(np.float64)
    cheapest_later = np.minimum.accumulate(costs[:, :0:-1], axis=1)[:, ::-1]
    return (costs[:, :-1] <= cheapest_later).astype(np.float64)


def balanced_weight(targets: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights that make zeros and ones of each gate's targets weigh the same.

    Unchanged where a gate has zeros or ones only.
    """
    total = weight.sum(axis=0)
    ones = (weight * targets).sum(axis=0) / total
    mixed = (ones > 0) & (ones < 1)
    of_ones, of_zeros = (np.where(mixed, 0.5 / np.where(mixed, share, 1), 1.0) for share in (ones, 1 - ones))
    return weight * np.where(targets == 1, of_ones, of_zeros)
