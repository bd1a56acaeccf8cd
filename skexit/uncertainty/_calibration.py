"""Expected calibration error: the difference between confidence and accuracy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array

from skexit.uncertainty._labels import column_of_labels
from skexit.utils._checks import is_integer


def expected_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: str = "quantile",
    labels: ArrayLike | None = None,
) -> float:
    r"""Mean absolute difference between confidence and accuracy, over bins of the confidence.

    Each row is put into a bin :math:`Q_b` by its largest probability p. With N rows, the error is (JEI-DNN, eq. 19)

    .. math:: \sum_{b=1}^B \frac{|Q_b|}{N} \left|\mathrm{accuracy}(Q_b) - \bar{p}(Q_b)\right|.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Class labels. Rows with the label -1 are left out if `labels` are given and do not contain -1.
    y_prob : array-like of shape (n_samples, n_classes)
        Class probabilities, as returned by ``predict_proba``.
    n_bins : int, default=15
        Number of bins, B.
    strategy : {"quantile", "uniform"}, default="quantile"
        ``"quantile"``: bins with equal numbers of rows. The rows are sorted by p; bin b has rows ``N (b - 1) / B`` to
        ``N b / B``, as in JEI-DNN. Rows of equal p keep their order. ``"uniform"``: bins of equal width: bin b has the
        rows with p in ``((b - 1) / B, b / B]``.
    labels : array-like of shape (n_classes,), default=None
        Class of each column of `y_prob`. By default, the sorted classes of `y_true`.

    Returns
    -------
    float
        Between 0 and 1; 0 if the accuracy of each bin equals its mean p.

    Raises
    ------
    ValueError
        If the shapes do not agree, y_true has a class that is not in labels, a probability is outside
        [0, 1], or a parameter has a value that is not listed above.

    Examples
    --------
    Four predictions have a probability of 0.9, and three of them are correct:

    >>> y_prob = [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]
    >>> round(expected_calibration_error([0, 0, 1, 0], y_prob, n_bins=1), 4)
    0.15
    """
    if not is_integer(n_bins) or n_bins < 1:
        raise ValueError(f"n_bins={n_bins!r} must be a positive integer.")
    if strategy not in _BINS:
        raise ValueError(f"strategy={strategy!r} must be 'quantile' or 'uniform'.")
    probabilities = check_array(y_prob, dtype=np.float64, input_name="y_prob")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError("y_prob must hold probabilities between 0 and 1; pass the output of predict_proba.")
    labelled, true_columns = column_of_labels(y_true, labels, probabilities, "y_prob")
    probabilities = probabilities[labelled]
    correct = np.argmax(probabilities, axis=1) == true_columns
    confidence = probabilities.max(axis=1)
    gaps = np.bincount(_BINS[strategy](confidence, int(n_bins)), weights=correct - confidence)
    return float(np.abs(gaps).sum() / len(correct))


def _quantile_bins(confidence: NDArray[np.float64], n_bins: int) -> NDArray[np.intp]:
    n_samples = len(confidence)
    starts = n_samples * np.arange(n_bins + 1) // n_bins
    bins = np.empty(n_samples, dtype=np.intp)
    bins[np.argsort(confidence, kind="stable")] = np.repeat(np.arange(n_bins), np.diff(starts))
    return bins


def _uniform_bins(confidence: NDArray[np.float64], n_bins: int) -> NDArray[np.intp]:
    return np.searchsorted(np.arange(1, n_bins) / n_bins, confidence, side="left")


_BINS: dict[str, Callable[[NDArray[np.float64], int], NDArray[np.intp]]] = {
    "quantile": _quantile_bins,
    "uniform": _uniform_bins,
}
