"""What an exit and those before it tell about whether it pays to go on."""

from __future__ import annotations

from typing import Any

from skexit.uncertainty import margin, max_probability, normalized_entropy, softmax
from skexit.uncertainty._scores import predicted_class
from skexit.utils._array_api import array_namespace

#: Chances of being wrong are told apart down to here.
_SMALLEST = 1e-6


def exit_evidence(logits: Any, memory: dict[str, Any]) -> Any:
    """Evidence of an exit, of shape (n_samples, 5), or (n_samples, 9) after the first exit, and a note for later exits.

    Logarithms of the chance to be wrong, of the entropy's share of its largest value and of the second largest
    probability; the largest probability, and the margin. Then the share of earlier exits that agree, the logarithms of
    the chance to be wrong that the exit before and the mean of all before give to the present class, and the exit
    before to its own.
    """
    xp = array_namespace(logits)
    probabilities, present = softmax(logits), predicted_class(logits)
    largest, gap = max_probability(probabilities), margin(probabilities)
    chances, others = [1 - largest, 1 - normalized_entropy(probabilities), largest - gap], [largest, gap]
    if "total" in memory:
        n_before = xp.sum(memory["votes"], axis=1)
        others.append(xp.sum(memory["votes"] * present, axis=1) / n_before)
        chances += [
            1 - xp.sum(memory["previous"] * present, axis=1),
            1 - xp.sum(memory["total"] * present, axis=1) / n_before,
            1 - max_probability(memory["previous"]),
        ]
    memory["total"] = memory["total"] + probabilities if "total" in memory else probabilities
    memory["votes"] = memory["votes"] + present if "votes" in memory else present
    memory["previous"] = probabilities
    # All logarithms at once: for a handful of rows, an operation takes as long as its call.
    values = xp.stack(chances, axis=1)
    logs = xp.log(xp.where(values > _SMALLEST, values, xp.full_like(values, _SMALLEST)))
    return xp.concat([logs[:, :3], xp.stack(others, axis=1), logs[:, 3:]], axis=1)
