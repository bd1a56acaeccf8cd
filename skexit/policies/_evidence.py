"""Inputs from which the gain of going on is predicted, from an exit and those before it."""

from __future__ import annotations

from typing import Any

from skexit.uncertainty import max_probability, softmax
from skexit.uncertainty._scores import entropy_share, predicted_class, two_largest
from skexit.utils._array_api import array_namespace, at_least

#: Probabilities below this are replaced by it, so that logarithms are finite.
_SMALLEST = 1e-6


def exit_evidence(k: int, logits: Any, memory: dict[str, Any]) -> Any:
    """Evidence of exit `k`, of shape (n_samples, 5), or (n_samples, 9) after the first exit; updates the memory.

    First come the logarithms of one minus the largest probability, of the normalised entropy, and of the second largest
    probability. After the first exit, also those of one minus the probability of the present prediction by the previous
    exit, of one minus its mean over earlier exits, and of one minus the largest probability of the previous exit. Then
    come the largest probability, the margin, and after the first exit the share of earlier exits that agree.
    """
    xp = array_namespace(logits)
    probabilities, present = softmax(logits), predicted_class(logits)
    largest, second = two_largest(probabilities)
    # One operation for all classes, and one for all logarithms: with few rows, most of the time is that of the call.
    own = xp.stack([probabilities, present], axis=1)
    chances, others = [1 - largest, entropy_share(probabilities), second], [largest, largest - second]
    if "sums" in memory:
        previous = memory["previous"]
        of_present = xp.sum(memory["sums"] * present[..., None, :], axis=2) / k
        others.append(of_present[..., 1])
        chances += [1 - xp.sum(previous * present, axis=1), 1 - of_present[..., 0], 1 - max_probability(previous)]
    memory["sums"] = memory["sums"] + own if "sums" in memory else own
    memory["previous"] = probabilities
    logs = xp.log(at_least(xp.stack(chances, axis=1), _SMALLEST))
    return xp.concat([logs, xp.stack(others, axis=1)], axis=1)
