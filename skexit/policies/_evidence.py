"""What an exit and those before it tell about whether it pays to go on."""

from __future__ import annotations

from typing import Any

from skexit.uncertainty import max_probability, softmax
from skexit.uncertainty._scores import entropy_share, predicted_class, two_largest
from skexit.utils._array_api import array_namespace, at_least

#: Chances of being wrong are told apart down to here.
_SMALLEST = 1e-6


def exit_evidence(k: int, logits: Any, memory: dict[str, Any]) -> Any:
    """Evidence of exit `k`, of shape (n_samples, 5), or (n_samples, 9) after the first exit; notes it for later exits.

    Logarithms of the chance to be wrong, of the entropy's share of its largest value and of the second largest
    probability; after the first exit, also of the chance to be wrong that the exit before and the mean of all before
    give to the present class, and the exit before to its own. Then the largest probability, and the margin; after the
    first exit, also the share of earlier exits that agree.
    """
    xp = array_namespace(logits)
    probabilities, present = softmax(logits), predicted_class(logits)
    largest, second = two_largest(probabilities)
    # All classes, and all logarithms, at once: for a handful of rows, an operation takes as long as its call.
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
