"""Temperature scaling: one number that makes probabilities as sure as they should be."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from skexit.uncertainty._scores import softmax
from skexit.utils._checks import check_sample_weight

#: Range in which a temperature is sought. Where every row is right, the loss falls for ever as the
#: temperature falls; where nearly every row is wrong, as it rises.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits: ArrayLike, labels: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Temperature at which ``softmax(logits / temperature)`` explains the labels best [1]_.

    Minimises the mean cross-entropy. It is convex in the inverse of the temperature, so that its
    derivative has one root at most.

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_classes)
        Of rows that the classifier was not trained on.
    labels : array-like of shape (n_samples,) of int
        Index of the true class.
    sample_weight : array-like of shape (n_samples,), default=None
        Weight of each sample; all count alike by default.

    Returns
    -------
    float
        Between 0.05 and 20, and one of these where the loss falls up to there: 0.05 where every
        row is right. 1 where all logits of each row are equal, so that any would do.

    Raises
    ------
    ValueError
        If the shapes do not agree, a label is not the index of a class, or no weight is positive.

    References
    ----------
    .. [1] Guo et al. "On calibration of modern neural networks." ICML 2017.

    Examples
    --------
    Of four samples with log-odds 3, three are right: the odds should be three to one.

    >>> logits = [[3.0, 0], [3, 0], [3, 0], [3, 0]]
    >>> temperature = fit_temperature(logits, [0, 0, 0, 1])
    >>> round(temperature, 4)
    2.7307
    >>> softmax(np.array([3.0, 0]) / temperature).round(4)
    array([0.75, 0.25])
    """
    margins, true_columns, weight = _check_rows(logits, labels, sample_weight)
    if not margins.any():
        return 1.0
    of_label = margins[np.arange(len(margins)), true_columns]

    def slope(log_temperature: float) -> float:
        """Derivative of the loss by the inverse temperature; it falls as the temperature rises."""
        expected = np.sum(softmax(margins * math.exp(-log_temperature)) * margins, axis=1)
        return float(np.average(expected - of_label, weights=weight))

    low, high = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    if slope(low) <= 0:
        return LOWEST_TEMPERATURE
    if slope(high) >= 0:
        return HIGHEST_TEMPERATURE
    return math.exp(brentq(slope, low, high))


def _check_rows(
    logits: ArrayLike, labels: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Logits below each row's largest, labels and weights of the rows, checked."""
    checked = check_array(logits, dtype=np.float64, input_name="logits")
    true_columns = column_or_1d(labels)
    check_consistent_length(checked, true_columns)
    if true_columns.dtype.kind not in "iu" or true_columns.min() < 0 or true_columns.max() >= checked.shape[1]:
        raise ValueError(f"labels must be the indices of classes: integers from 0 to {checked.shape[1] - 1}.")
    return checked - checked.max(axis=1, keepdims=True), true_columns, check_sample_weight(sample_weight, checked)
