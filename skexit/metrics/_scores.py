"""How well the scores of an exit separate correct from wrong predictions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.utils import check_array


def exit_auroc(correct: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve of each exit's scores, as a test of whether its prediction is correct.

    It is the probability that a correctly predicted sample has a higher score than a wrongly predicted one; ties count
    one half. All samples count at every exit, also those that a policy would stop earlier.

    Parameters
    ----------
    correct : array-like of shape (n_samples, n_exits) of bool
        Whether each exit predicts the class of each sample: ``policy.predict_at_exits(X) == y[:, None]``.
    scores : array-like of shape (n_samples, n_exits)
        From ``policy.exit_scores(X)``: higher if the prediction is likely correct. Infinite values are allowed.

    Returns
    -------
    ndarray of shape (n_exits,)
        One half is chance; nan if an exit is always correct or always wrong.

    Raises
    ------
    ValueError
        If the shapes do not agree, correct is not of bool, or a score is NaN.

    Examples
    --------
    >>> from skexit.metrics import exit_auroc
    >>> correct = [[True, True], [False, True], [True, True]]
    >>> exit_auroc(correct, [[0.9, 0.9], [0.6, 0.8], [0.6, 0.9]])
    array([0.75,  nan])
    """
    right, values = _check_scores(correct, scores)
    n_right = right.sum(axis=0)
    n_pairs = n_right * (len(right) - n_right)
    # The ranks of correct predictions, minus their ranks among themselves, count the pairs in the right order.
    wins = (rankdata(values, axis=0) * right).sum(axis=0) - n_right * (n_right + 1) / 2
    return np.where(n_pairs > 0, wins / np.maximum(n_pairs, 1), np.nan)


def early_exit_failure_prediction(correct: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve of each exit's scores, as a test of whether a sample should stop there.

    The metric is from [1]_. A sample should stop at an exit that predicts its class, and also if no later exit
    predicts its class, since more compute would not help. :func:`exit_auroc` considers only the first case, so that
    it rewards low scores for samples that no exit predicts correctly. All samples count at every exit, also those
    that a policy would stop earlier.

    Parameters
    ----------
    correct : array-like of shape (n_samples, n_exits) of bool
        Whether each exit predicts the class of each sample: ``policy.predict_at_exits(X) == y[:, None]``.
    scores : array-like of shape (n_samples, n_exits)
        From ``policy.exit_scores(X)``: higher if a sample should stop. Infinite values are allowed.

    Returns
    -------
    ndarray of shape (n_exits,)
        One half is chance; nan if all samples should stop, as at the last exit, or none.

    Raises
    ------
    ValueError
        If the shapes do not agree, correct is not of bool, or a score is NaN.

    References
    ----------
    .. [1] Kubaty et al. "Rethinking calibration for early-exit neural networks." ICML 2026, arXiv:2508.21495. The
       definition of early-exit failure prediction (EEFP) follows a summary of the paper.

    Examples
    --------
    No exit predicts the class of the last sample, so it should stop at the first exit.

    >>> from skexit.metrics import early_exit_failure_prediction, exit_auroc
    >>> correct = [[True, True], [False, True], [True, True], [False, False]]
    >>> scores = [[0.9, 0.9], [0.6, 0.8], [0.7, 0.9], [0.5, 0.4]]
    >>> early_exit_failure_prediction(correct, scores).round(2), exit_auroc(correct, scores)
    (array([0.67,  nan]), array([1., 1.]))
    """
    right, _ = _check_scores(correct, scores)
    later = np.zeros_like(right)
    later[:, :-1] = np.logical_or.accumulate(right[:, :0:-1], axis=1)[:, ::-1]
    return exit_auroc(right | ~later, scores)


def area_under_risk_coverage(correct: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Area under the risk-coverage curve of each exit's scores.

    Samples are sorted by falling score. The risk at coverage i / n is the share of wrong predictions
    among the first i of the n samples, and the area is the mean risk over all i. With tied scores, it is
    the expected area over random orders of these. All samples count at every exit, also those that a policy
    would stop earlier.

    Parameters
    ----------
    correct : array-like of shape (n_samples, n_exits) of bool
        Whether each exit predicts the class of each sample: ``policy.predict_at_exits(X) == y[:, None]``.
    scores : array-like of shape (n_samples, n_exits)
        From ``policy.exit_scores(X)``: higher if the prediction is likely correct. Infinite values are allowed.

    Returns
    -------
    ndarray of shape (n_exits,)
        Lower is better. With scores that are all equal it is the error rate of the exit; it is 0 if the exit is always
        correct.

    Raises
    ------
    ValueError
        If the shapes do not agree, correct is not of bool, or a score is NaN.

    Examples
    --------
    >>> from skexit.metrics import area_under_risk_coverage
    >>> correct = [[True, True], [False, True], [True, False], [True, True]]
    >>> scores = [[0.9, 0.5], [0.1, 0.5], [0.6, 0.5], [0.7, 0.5]]
    >>> area_under_risk_coverage(correct, scores)
    array([0.0625, 0.25  ])
    """
    right, values = _check_scores(correct, scores)
    sizes = np.arange(1, len(right) + 1)
    return np.array([(_expected_errors(*exit_) / sizes).mean() for exit_ in zip(right.T, values.T, strict=True)])


def _expected_errors(right: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected number of wrong predictions among the samples with the highest scores, for 1, 2, ... of them."""
    _, block, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    error_rates = np.bincount(block, weights=~right) / sizes
    return np.cumsum(np.repeat(error_rates, sizes))


def _check_scores(correct: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    right = check_array(correct, dtype=None, input_name="correct")
    if right.dtype != bool:
        raise ValueError(f"correct has dtype {right.dtype}; pass booleans: policy.predict_at_exits(X) == y[:, None].")
    values = check_array(scores, dtype=np.float64, ensure_all_finite=False, input_name="scores")
    if values.shape != right.shape:
        raise ValueError(
            f"scores has shape {values.shape} and correct {right.shape}; pass both for the same rows and exits."
        )
    if np.isnan(values).any():
        raise ValueError("scores contains NaN; remove such rows from scores and correct.")
    return right, values
