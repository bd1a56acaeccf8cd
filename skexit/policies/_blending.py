"""Scores of learned policies: outputs of a network, combined with the confidence of the classifier.

Probabilities are given as log-odds ``log(p / (1 - p))``, which distinguish probabilities near 1.
"""

from __future__ import annotations

import math
from typing import Any

from skexit.utils._array_api import array_namespace, at_least

#: Weight of the confidence in scores of a network: enough to order samples with the same output.
_TIE_BREAKER = 1e-4
#: All log-odds are above minus this number: those of the largest of n probabilities are at least ``-log(n - 1)``.
_BEYOND_LOWEST = 64.0
#: Above these log-odds, the logarithm of a probability is ``-exp(-log_odds)`` up to rounding: a number that is added
#: to all log-odds is then also added to the log-odds of their mean.
_SURE = 36.0


def sigmoid(logits: Any) -> Any:
    """``1 / (1 + exp(-logits))``, without overflow, in any array namespace.

    >>> import numpy as np
    >>> sigmoid(np.array([-1e4, 0.0, 1e4]))
    array([0. , 0.5, 1. ])
    """
    xp = array_namespace(logits)
    if hasattr(xp, "sigmoid"):  # torch computes it in one step
        return xp.sigmoid(logits)
    small = xp.exp(-xp.abs(logits))  # never overflows
    return xp.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def break_ties(scores: Any, confidence: Any) -> Any:
    """Scores that rise slightly with the confidence of the classifier, given as log-odds.

    The inputs of a network are probabilities. Its outputs are equal, up to rounding, if all probabilities are near 1.
    """
    # A logarithm, because log-odds have no limit; in ONNX it takes three operations, and asinh takes sixteen.
    return scores + _TIE_BREAKER * array_namespace(scores).log(1 + confidence / _BEYOND_LOWEST)


def blend(learned: Any, confidence: Any, confidence_weight: float) -> Any:
    """Log-odds of the weighted geometric mean of a learned probability, with weight 1, and the confidence.

    Both are given as log-odds. The weight 0 gives the learned probability, infinity gives the confidence. Unless the
    weight is infinite, ties are broken by the confidence.

    >>> import numpy as np
    >>> from scipy.special import expit, logit
    >>> expit(blend(logit(np.array([0.9])), logit(np.array([0.4])), 1.0)).round(3)
    array([0.6])
    """
    if math.isinf(confidence_weight):
        return confidence
    if confidence_weight == 0:
        return break_ties(learned, confidence)
    xp = array_namespace(learned)
    share = confidence_weight / (1 + confidence_weight)
    excess = at_least(xp.minimum(learned, confidence) - _SURE, 0.0)
    log_probability = (share - 1) * _softplus(excess - learned) - share * _softplus(excess - confidence)
    log_odds = excess + log_probability - xp.log(-xp.expm1(log_probability))
    return break_ties(log_odds, confidence)


def _softplus(values: Any) -> Any:
    """``log(1 + exp(values))``: minus the logarithm of the probability whose log-odds are ``-values``."""
    xp = array_namespace(values)
    if hasattr(xp, "nn"):  # torch computes it in one step; above the threshold, it is the value itself up to rounding
        return xp.nn.functional.softplus(values, threshold=_SURE)
    return at_least(values, 0.0) + xp.log1p(xp.exp(-xp.abs(values)))
