"""Scores of learned policies: what a network says, mixed with what the classifier says without learning.

Probabilities are given by their log-odds ``log(p / (1 - p))``, which tell those near 1 apart.
"""

from __future__ import annotations

import math
from typing import Any

from skexit.utils._array_api import array_namespace

#: Weight of the confidence in what a network says: enough to part samples of which it says the same only.
_TIE_BREAKER = 1e-4
#: From here on, the logarithm of a probability is minus the exponential of minus its log-odds, but for rounding.
_SURE = 36.0


def sigmoid(logits: Any) -> Any:
    """``1 / (1 + exp(-logits))``, without overflow, in any array namespace.

    >>> import numpy as np
    >>> sigmoid(np.array([-1e4, 0.0, 1e4]))
    array([0. , 0.5, 1. ])
    """
    xp = array_namespace(logits)
    small = xp.exp(-xp.abs(logits))  # never overflows
    return xp.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def break_ties(scores: Any, confidence: Any) -> Any:
    """Scores that rise a little with the classifier's confidence, its log-odds.

    A network sees probabilities, and says the same, but for rounding, of all samples whose probabilities are near 1.
    """
    return scores + _TIE_BREAKER * array_namespace(scores).asinh(confidence)


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
    log_surprise = xp.logaddexp(
        _log_surprise(learned) + math.log(1 - share), _log_surprise(confidence) + math.log(share)
    )
    surprise = xp.exp(xp.clip(log_surprise, -_SURE, None))
    log_odds = xp.where(log_surprise < -_SURE, -log_surprise, -surprise - xp.log(-xp.expm1(-surprise)))
    return break_ties(log_odds, confidence)


def _log_surprise(log_odds: Any) -> Any:
    """Logarithm of minus the logarithm of a probability."""
    xp = array_namespace(log_odds)
    moderate = xp.clip(log_odds, None, _SURE)
    surprise = xp.log1p(xp.exp(-xp.abs(moderate))) + xp.clip(-moderate, 0.0, None)
    return xp.where(log_odds > _SURE, -log_odds, xp.log(surprise))
