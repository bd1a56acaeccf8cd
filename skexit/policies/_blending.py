"""What a network has learned, mixed with what the classifier says without learning."""

from __future__ import annotations

from typing import Any

import numpy as np

from skexit.utils._array_api import array_namespace


def sigmoid(logits: Any) -> Any:
    """``1 / (1 + exp(-logits))``, without overflow, in any array namespace.

    >>> import numpy as np
    >>> sigmoid(np.array([-1e4, 0.0, 1e4]))
    array([0. , 0.5, 1. ])
    """
    xp = array_namespace(logits)
    small = xp.exp(-xp.abs(logits))  # never overflows
    return xp.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def blend(probability: Any, confidence: Any, confidence_weight: float) -> Any:
    """Weighted geometric mean of a learned probability, with weight 1, and the classifier's confidence.

    The confidence is positive. Its weight 0 gives the probability, infinity the confidence.

    >>> import numpy as np
    >>> blend(np.array([0.9]), np.array([0.4]), 1.0).round(6)
    array([0.6])
    """
    if confidence_weight == 0:
        return probability
    if np.isinf(confidence_weight):
        return confidence
    xp = array_namespace(probability)
    tiny = xp.finfo(probability.dtype).smallest_normal
    # In logarithms: a high power of a probability would vanish in single precision.
    log_probability = xp.log(xp.where(probability > tiny, probability, tiny * xp.ones_like(probability)))
    return xp.exp((log_probability + confidence_weight * xp.log(confidence)) / (1 + confidence_weight))
