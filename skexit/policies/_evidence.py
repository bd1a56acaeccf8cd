"""Inputs from which the gain of going on is predicted, from an exit and those before it."""

from __future__ import annotations

from typing import Any

from skexit.uncertainty import max_probability, softmax
from skexit.uncertainty._scores import log_of_classes, predicted_class, sum_of_plogp, two_largest
from skexit.utils._array_api import array_namespace, as_like, at_least

#: Probabilities below this are replaced by it, so that logarithms are finite.
_SMALLEST = 1e-6
#: Of shape (n_samples, 3, n_classes): probabilities of the previous exit, and the sums over all earlier exits of
#: probabilities and of predicted classes.
_EARLIER = "earlier"


def exit_evidence(k: int, logits: Any, memory: dict[str, Any]) -> Any:
    """Evidence of exit `k`, of shape (n_samples, 5), or (n_samples, 9) after the first exit; updates the memory.

    First come the logarithms of one minus the largest probability, of the normalised entropy, and of the second largest
    probability. After the first exit, also those of one minus the probability of the present prediction by the previous
    exit, of one minus its mean over earlier exits, and of one minus the largest probability of the previous exit. Then
    come the largest probability, the margin, and after the first exit the share of earlier exits that agree.
    """
    # With few rows, most of the time is that of the calls. So one operation serves several numbers where it can.
    xp = array_namespace(logits)
    probabilities, present = softmax(logits), predicted_class(logits)
    largest, second = two_largest(probabilities)
    own = xp.stack([probabilities, probabilities, present], axis=1)
    chances, others = [largest, sum_of_plogp(probabilities), second], [largest, largest - second]
    offset, scale = [1.0, 0.0, 0.0], [-1.0, -1 / log_of_classes(logits.shape[-1]), 1.0]
    if _EARLIER in memory:
        earlier = memory[_EARLIER]
        of_present = xp.sum(earlier * present[..., None, :], axis=2)
        chances += [of_present[..., 0], of_present[..., 1], max_probability(earlier[..., 0, :])]
        offset, scale = offset + [1.0] * 3, [*scale, -1.0, -1 / k, -1.0]
        others.append(of_present[..., 2] / k)
        own = own + earlier * as_like([[0.0], [1.0], [1.0]], own)
    memory[_EARLIER] = own
    logs = xp.log(at_least(xp.stack(chances, axis=1) * as_like(scale, logits) + as_like(offset, logits), _SMALLEST))
    return xp.concat([logs, xp.stack(others, axis=1)], axis=1)
