"""Inputs from which the gain of going on is predicted, from an exit and those before it."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import device
from numpy.typing import NDArray

from skexit.uncertainty import softmax
from skexit.uncertainty._scores import in_order, log_of_classes, predicted_class, second_and_largest, sum_of_plogp
from skexit.utils._array_api import array_namespace, as_like, at_least, take_in_rows

#: Probabilities below this are replaced by it, so that logarithms are finite.
_SMALLEST = 1e-6
#: Of shape (n_samples, 3 * n_classes + 2): for each class, its probability at the previous exit, the sum of its
#: probabilities, and the number of earlier exits that predict it; then the two largest probabilities of the previous
#: exit in ascending order.
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
    ordered = softmax(in_order(logits))
    two_largest = second_and_largest(ordered)
    known = [two_largest, sum_of_plogp(ordered)[:, None]]
    probabilities = softmax(logits)
    own = xp.concat([probabilities, probabilities, predicted_class(logits), two_largest], axis=1)
    is_first = _EARLIER not in memory
    if not is_first:
        earlier, n_classes = memory[_EARLIER], logits.shape[1]
        predicted = xp.argmax(logits, axis=-1, keepdims=True)
        places = predicted + xp.asarray([0, n_classes, 2 * n_classes], device=device(logits))
        known += [take_in_rows(earlier, places), earlier[:, -1:]]
        own = own + earlier * as_like(_is_summed(n_classes), logits)
    memory[_EARLIER] = own
    slopes, offsets, others = _linear_maps(k, logits.shape[1], is_first)
    known = xp.concat(known, axis=1)
    chances = known @ as_like(slopes, logits) + as_like(offsets, logits)
    return xp.concat([xp.log(at_least(chances, _SMALLEST)), known @ as_like(others, logits)], axis=1)


def _is_summed(n_classes: int) -> NDArray[np.float64]:
    """1 for the columns of the memory that are sums over exits, 0 for those of the previous exit."""
    return np.repeat([0.0, 1.0, 0.0], [n_classes, 2 * n_classes, 2])


def _linear_maps(
    k: int, n_classes: int, is_first: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Matrix and offsets that give the chances whose logarithms are evidence, and a matrix for the other evidence.

    They are applied to the second largest and the largest probability, and minus the entropy. After the first exit, the
    previous probability of the prediction follows, the sum of its earlier probabilities, the number of earlier exits
    that agree, and the previous largest probability.
    """
    chances, others = np.zeros((7, 6)), np.zeros((7, 3))
    second, largest, plogp, previous, total, n_agreeing, previous_largest = range(7)
    chances[largest, 0] = chances[previous, 3] = chances[previous_largest, 5] = -1
    chances[plogp, 1] = -1 / log_of_classes(n_classes)
    chances[second, 2] = 1
    chances[total, 4] = -1 / max(k, 1)
    offsets = np.array([1.0, 0, 0, 1, 1, 1])
    others[largest, 0] = others[largest, 1] = 1
    others[second, 1] = -1
    others[n_agreeing, 2] = 1 / max(k, 1)
    return (chances[:3, :3], offsets[:3], others[:3, :2]) if is_first else (chances, offsets, others)
