"""Confidence scores of a classifier: a larger score means more confidence.

Probabilities near 1 differ by less than rounding. Scores that are compared with thresholds are therefore computed from
logits, on a scale without an upper limit.

The functions use the array API, so that they work on NumPy arrays and on torch tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from array_api_compat import device

from skexit.utils._array_api import array_namespace, at_least
from skexit.utils._docstring import shared_docs

Array = Any  # an array of any namespace that array-api-compat knows

#: With at most this many classes, sorting is the fastest way to find the two largest values.
_FEW_CLASSES = 64


def softmax(logits: Array) -> Array:
    """Probabilities from logits, over the last axis.

    Parameters
    ----------
    logits : array of shape (..., n_classes)
        Logits along the last axis.

    Returns
    -------
    array of shape (..., n_classes)
        Probabilities, which sum to 1 along the last axis.

    Examples
    --------
    >>> import numpy as np
    >>> softmax(np.array([[0.0, 0.0], [0.0, np.log(3)]]))
    array([[0.5 , 0.5 ],
           [0.25, 0.75]])
    """
    xp = array_namespace(logits)
    if hasattr(xp, "softmax"):  # torch computes it in one step
        return xp.softmax(logits, -1)
    exponentials = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)


def log_softmax(logits: Array) -> Array:
    """Logarithms of probabilities from logits, over the last axis."""
    xp = array_namespace(logits)
    if hasattr(xp, "log_softmax"):  # torch computes it in one step
        return xp.log_softmax(logits, -1)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


@shared_docs
def max_probability(probabilities: Array) -> Array:
    """Largest probability (EENet, equation 5).

    %(probabilities)s
        Between 0 and 1.
    """
    return array_namespace(probabilities).max(probabilities, axis=-1)


@shared_docs
def normalized_entropy(probabilities: Array) -> Array:
    """One minus the normalised entropy, which is ``entropy / log(n_classes)`` (EENet, equation 6).

    %(probabilities)s
        1 for a certain prediction, 0 for a uniform one.
    """
    return 1 - entropy_share(probabilities)


def entropy_share(probabilities: Array) -> Array:
    """The entropy divided by its largest value, ``log(n_classes)``; 0 if there is only one class."""
    return sum_of_plogp(probabilities) / -log_of_classes(probabilities.shape[-1])


def log_of_classes(n_classes: int) -> float:
    """The largest entropy; with one class, the entropy is 0, and any positive divisor gives 0."""
    return math.log(max(n_classes, 2))


def sum_of_plogp(probabilities: Array) -> Array:
    """Minus the entropy along the last axis, in nats."""
    xp = array_namespace(probabilities)
    # 0 log 0 = 0: the smallest normal number keeps the logarithm finite.
    logs = xp.log(at_least(probabilities, xp.finfo(probabilities.dtype).smallest_normal))
    return xp.sum(probabilities * logs, axis=-1)


@shared_docs
def margin(probabilities: Array) -> Array:
    """Largest probability minus the second largest.

    %(probabilities)s
        Between 0 and 1.
    """
    two_largest = second_and_largest(in_order(probabilities))
    return two_largest[..., 1] - two_largest[..., 0]


def in_order(values: Array) -> Array:
    """Values in ascending order along the last axis if there are few classes, otherwise unchanged.

    Several statistics of an exit are computed from the same ordered logits, so that they are sorted only once.
    """
    return array_namespace(values).sort(values, axis=-1) if values.shape[-1] <= _FEW_CLASSES else values


def second_and_largest(probabilities: Array) -> Array:
    """Second largest and largest of probabilities from `in_order`, of shape (..., 2); with one class, 0 and 1."""
    if 1 < probabilities.shape[-1] <= _FEW_CLASSES:
        return probabilities[..., -2:]
    xp = array_namespace(probabilities)
    others = probabilities * (1 - predicted_class(probabilities))
    return xp.stack([max_probability(others), max_probability(probabilities)], axis=-1)


def vote(counts: Array) -> Array:
    """Share of the exits so far that agree on the most frequent class (EENet, equation 7).

    Parameters
    ----------
    counts : array of shape (..., n_classes)
        Number of exits, up to the current one, that predict each class.

    Returns
    -------
    array of shape (...)
        Between 0 and 1.
    """
    xp = array_namespace(counts)
    return xp.max(counts, axis=-1) / xp.sum(counts, axis=-1)


def count_votes(logits: Array, counts: Array | None) -> Array:
    """Add the predicted class of each row to the votes of earlier exits, which are None at the first exit.

    Logits and votes have the shape (n_samples, n_classes).
    """
    ballot = predicted_class(logits)
    return ballot if counts is None else counts + ballot


def predicted_class(logits: Array) -> Array:
    """1 in the column of each row's largest logit (the first of equal ones), and 0 elsewhere."""
    xp = array_namespace(logits)
    classes = xp.arange(int(logits.shape[-1]), device=device(logits))
    return xp.astype(xp.argmax(logits, axis=-1, keepdims=True) == classes, logits.dtype)


@shared_docs
def log_odds(logits: Array) -> Array:
    """Logarithm of ``p / (1 - p)``, where p is the largest probability: ``p = scipy.special.expit(log_odds)``.

    Unlike p, it also distinguishes samples whose p is 1 after rounding.

    %(logits)s
        ``-log(n_classes - 1)`` for a uniform prediction; 0 if there is only one class.

    Examples
    --------
    >>> import numpy as np
    >>> logits = np.array([[0.0, np.log(3)], [0.0, 100.0], [0.0, 101.0]])
    >>> log_odds(logits).round(2)
    array([  1.1, 100. , 101. ])
    >>> max_probability(softmax(logits))
    array([0.75, 1.  , 1.  ])
    """
    if logits.shape[-1] == 1:
        return array_namespace(logits).zeros_like(logits[..., 0])
    largest, others = _largest_and_others(logits)
    return largest - log_sum_exp(others)


def log_odds_of_margin(logits: Array) -> Array:
    """Logarithm of ``(1 + m) / (1 - m)``, where m is the margin of the probabilities: ``m = tanh(log_odds / 2)``.

    With two classes, these are the log-odds of the larger probability.
    """
    xp = array_namespace(logits)
    if logits.shape[-1] == 1:
        return xp.zeros_like(logits[..., 0])
    largest, others = _largest_and_others(logits)
    second = xp.max(others, axis=-1)
    total = xp.sum(xp.exp(others - second[..., None]), axis=-1)  # of probabilities, relative to the second largest
    return largest - second + xp.log(2 + (total - 1) * xp.exp(second - largest)) - xp.log(1 + total)


def minus_log_entropy(logits: Array) -> Array:
    """Minus the logarithm of u, the entropy divided by its largest value: ``u = exp(-minus_log_entropy)``."""
    xp = array_namespace(logits)
    n_classes = logits.shape[-1]
    if n_classes == 1:
        return xp.zeros_like(logits[..., 0])
    largest, others = _largest_and_others(logits)
    second = xp.max(others, axis=-1)
    # Probabilities relative to the second largest, which may itself be too small for a float.
    relative = xp.exp(others - second[..., None])
    total = xp.sum(relative, axis=-1)
    odds = total * xp.exp(second - largest)  # of all classes but the most probable one
    is_small = odds < xp.finfo(logits.dtype).eps
    slope = xp.where(is_small, 1.0, xp.log1p(odds) / xp.where(is_small, 1.0, odds))
    distance = xp.where(relative > 0, largest[..., None] - others, 0.0)  # 0 * inf is NaN
    entropy = total * slope + xp.sum(relative * distance, axis=-1) / (1 + odds)
    return largest - second - xp.log(entropy) + math.log(math.log(n_classes))


def _largest_and_others(logits: Array) -> tuple[Array, Array]:
    """Largest logit, and the other logits along the last axis; with many classes, -inf replaces the largest."""
    xp = array_namespace(logits)
    if logits.shape[-1] <= _FEW_CLASSES:
        ordered = in_order(logits)
        return ordered[..., -1], ordered[..., :-1]
    others = xp.where(predicted_class(logits) > 0, -math.inf, logits)
    return xp.max(logits, axis=-1), others


def log_sum_exp(logits: Array) -> Array:
    """Logarithm of the sum of the exponentials along the last axis."""
    xp = array_namespace(logits)
    if hasattr(xp, "logsumexp"):  # torch computes it in one step
        return xp.logsumexp(logits, -1)
    largest = xp.max(logits, axis=-1, keepdims=True)
    return largest[..., 0] + xp.log(xp.sum(xp.exp(logits - largest), axis=-1))


#: Scores of the logits of one exit, by the name of the criterion. They grow without limit as the confidence grows.
CRITERIA: dict[str, Callable[[Array], Array]] = {
    "max_prob": log_odds,
    "entropy": minus_log_entropy,
    "margin": log_odds_of_margin,
}
