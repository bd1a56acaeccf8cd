"""Scores of learned policies: what a network says, mixed with what the classifier says without learning.

Probabilities are given by their log-odds ``log(p / (1 - p))``, which tell those near 1 apart.
"""

from __future__ import annotations

import math
from typing import Any

from skexit.utils._array_api import array_namespace, at_least

#: Weight of the confidence in what a network says: enough to part samples of which it says the same only.
_TIE_BREAKER = 1e-4
#: No log-odds are as far below zero: those of the largest of n probabilities are at least ``-log(n - 1)``.
_BEYOND_LOWEST = 64.0
#: From here on, the logarithm of a probability is minus the exponential of minus its log-odds, but for rounding: the
#: same added to all log-odds is added to those of their mean.
_SURE = 36.0


def sigmoid(logits: Any) -> Any:
    """``1 / (1 + exp(-logits))``, without overflow, in any array namespace.

    >>> import numpy as np
    >>> sigmoid(np.array([-1e4, 0.0, 1e4]))
    array([0. , 0.5, 1. ])
    """
    xp = array_namespace(logits)
    if hasattr(xp, "sigmoid"):  # torch has it in one step
        return xp.sigmoid(logits)
    small = xp.exp(-xp.abs(logits))  # never overflows
    return xp.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def break_ties(scores: Any, confidence: Any) -> Any:
    """Scores that rise a little with the classifier's confidence, its log-odds.

    A network sees probabilities, and says the same, but for rounding, of all samples whose probabilities are near 1.
    """
    # A logarithm, as log-odds may be of any size; in ONNX it is three steps, and asinh, sixteen.
    return scores + _TIE_BREAKER * array_namespace(scores).log(1 + confidence / _BEYOND_LOWEST)


def blend(learned: Any, confidence: Any, confidence_weight: float) -> Any:
    """Log-odds of the weighted geometric mean of a learned probability, with weight 1, and the confidence.

    Both are given by their log-odds. The weight 0 gives the learned probability, with ties broken by the confidence, as
    in every mean; infinity gives the confidence.

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
    if hasattr(xp, "nn"):  # torch has it in one step; beyond the threshold, it is the value, but for rounding
        return xp.nn.functional.softplus(values, threshold=_SURE)
    return at_least(values, 0.0) + xp.log1p(xp.exp(-xp.abs(values)))
