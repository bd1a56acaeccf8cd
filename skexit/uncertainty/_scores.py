"""How sure a classifier is: scores for which larger means more confident.

Written against the array API, so that they run on NumPy arrays and on torch tensors alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from array_api_compat import device

from skexit.utils._array_api import array_namespace
from skexit.utils._docstring import shared_docs

Array = Any  # an array of any namespace that array-api-compat knows

#: Up to so many classes, the two largest probabilities are found soonest by sorting.
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
        Along the last axis, they sum to 1.

    Examples
    --------
    >>> import numpy as np
    >>> softmax(np.array([[0.0, 0.0], [0.0, np.log(3)]]))
    array([[0.5 , 0.5 ],
           [0.25, 0.75]])
    """
    xp = array_namespace(logits)
    if hasattr(xp, "softmax"):  # torch has it in one step
        return xp.softmax(logits, -1)
    exponentials = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)


@shared_docs
def max_probability(probabilities: Array) -> Array:
    """Largest probability (EENet, eq. 5).

    %(probabilities)s
        Between 0 and 1.
    """
    return array_namespace(probabilities).max(probabilities, axis=-1)


@shared_docs
def normalized_entropy(probabilities: Array) -> Array:
    """One minus the entropy as a fraction of its largest value, ``log(n_classes)`` (EENet, eq. 6).

    %(probabilities)s
        1 for a certain prediction, 0 for a uniform one.
    """
    xp = array_namespace(probabilities)
    n_classes = probabilities.shape[-1]
    if n_classes == 1:
        return xp.ones_like(probabilities[..., 0])
    # 0 log 0 = 0: the smallest normal number keeps the logarithm finite.
    tiny = xp.finfo(probabilities.dtype).smallest_normal
    plogp = probabilities * xp.log(xp.where(probabilities > tiny, probabilities, xp.ones_like(probabilities)))
    return 1 + xp.sum(plogp, axis=-1) / math.log(n_classes)


@shared_docs
def margin(probabilities: Array) -> Array:
    """Largest probability minus the second largest.

    %(probabilities)s
        Between 0 and 1.
    """
    xp = array_namespace(probabilities)
    n_classes = probabilities.shape[-1]
    if n_classes == 1:
        return probabilities[..., 0]
    if n_classes <= _FEW_CLASSES:
        ordered = xp.sort(probabilities, axis=-1)
        return ordered[..., -1] - ordered[..., -2]
    classes = xp.arange(n_classes, device=device(probabilities))
    is_largest = xp.argmax(probabilities, axis=-1)[..., None] == classes
    others = xp.where(is_largest, xp.zeros_like(probabilities), probabilities)
    return max_probability(probabilities) - max_probability(others)


def vote(counts: Array) -> Array:
    """Share of the exits so far that agree on the most frequent class (EENet, eq. 7).

    Parameters
    ----------
    counts : array of shape (..., n_classes)
        How many exits up to the present one predict each class.

    Returns
    -------
    array of shape (...)
        Between 0 and 1.
    """
    xp = array_namespace(counts)
    return xp.max(counts, axis=-1) / xp.sum(counts, axis=-1)


def count_votes(probabilities: Array, counts: Array | None) -> Array:
    """Add the predicted class of each row to the votes of earlier exits, None at the first.

    Probabilities and votes have the shape (n_samples, n_classes).
    """
    xp = array_namespace(probabilities)
    classes = xp.arange(probabilities.shape[-1], device=device(probabilities))
    predicted = xp.argmax(probabilities, axis=-1)[:, None] == classes[None, :]
    ballot = xp.astype(predicted, probabilities.dtype)
    return ballot if counts is None else counts + ballot


#: Scores of one exit's probabilities, by name.
SCORES: dict[str, Callable[[Array], Array]] = {
    "max_prob": max_probability,
    "entropy": normalized_entropy,
    "margin": margin,
}
