"""Scores of learned policies: outputs of a network, combined with the confidence of the classifier.

Probabilities are given as log-odds ``log(p / (1 - p))``, which distinguish probabilities near 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import logit

from skexit.uncertainty._scores import log_sum_exp
from skexit.utils._array_api import array_namespace, as_like, at_least

#: Weight of the confidence in scores of a network: enough to order samples with the same output.
_TIE_BREAKER = 1e-6
#: Above these log-odds, the logarithm of a probability is ``-exp(-log_odds)`` up to rounding: a number that is added
#: to all log-odds is then also added to the log-odds of their product.
_SURE = 36.0
#: Matrix that gives -a, -b and -a - b from a and b.
_EXPONENTS = np.array([[-1.0, 0, -1], [0, -1, -1]])


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
    return scores + _TIE_BREAKER * confidence


def blend(learned: Any, confidence: Any, confidence_weight: float) -> Any:
    """Log-odds of a learned probability times the confidence to the power of its weight.

    They have the order of the weighted geometric mean. Both probabilities are given as log-odds. The weight 0 gives the
    learned probability, infinity gives the confidence. Unless the weight is infinite, ties are broken by the
    confidence.

    >>> import numpy as np
    >>> from scipy.special import expit, logit
    >>> expit(blend(logit(np.array([0.9])), logit(np.array([0.4])), 1.0)).round(3)
    array([0.36])
    """
    if math.isinf(confidence_weight):
        return confidence
    if confidence_weight == 0:
        return break_ties(learned, confidence)
    xp = array_namespace(learned)
    if confidence_weight == 1:
        # 1 / (p q) - 1 = exp(-a) + exp(-b) + exp(-a - b), if a and b are the log-odds of p and q.
        exponents = xp.stack([learned, confidence], axis=-1) @ as_like(_EXPONENTS, learned)
        return break_ties(-log_sum_exp(exponents), confidence)
    excess = at_least(xp.minimum(learned, confidence) - _SURE, 0.0)
    log_probability = -_softplus(excess - learned) - confidence_weight * _softplus(excess - confidence)
    return break_ties(excess + log_probability - xp.log(-xp.expm1(log_probability)), confidence)


def score_of_mean(probability: float, confidence_weight: float) -> float:
    """The score by `blend`, without the confidence that breaks ties, if the weighted geometric mean is `probability`.

    >>> round(score_of_mean(0.6, 1.0), 3)  # the log-odds of 0.36
    -0.575
    """
    if math.isinf(confidence_weight) or confidence_weight == 0:
        return float(logit(probability))
    return float(logit(probability ** (1 + confidence_weight)))


def _softplus(values: Any) -> Any:
    """``log(1 + exp(values))``: minus the logarithm of the probability whose log-odds are ``-values``."""
    xp = array_namespace(values)
    if hasattr(xp, "nn"):  # torch computes it in one step; above the threshold, it is the value itself up to rounding
        return xp.nn.functional.softplus(values, threshold=_SURE)
    return at_least(values, 0.0) + xp.log1p(xp.exp(-xp.abs(values)))
