"""Losses from Brier scores, as in "Fast yet safe: Early-exiting with risk control"."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitArray
from skexit.policies._base import ExitPolicy
from skexit.uncertainty import softmax

#: Losses that are differences of Brier scores.
BRIER_LOSSES = ("brier_gap", "brier_consistency")
#: Losses that compare predictions with the last exit, and need no labels.
LOSSES_WITHOUT_LABELS = ("disagreement", "brier_consistency")


def brier_scores(policy: ExitPolicy, X: ExitArray, labels: NDArray[np.int64], loss: str) -> NDArray[np.float64]:
    """Brier scores of every exit, of shape (n_samples, n_exits), between 0 and 1.

    For ``"brier_gap"``, probabilities are compared with `labels`, which are indices of classes. For
    ``"brier_consistency"``, they are compared with the last exit's predictions.
    """
    last = policy.layout_.n_exits - 1
    if loss == "brier_consistency":
        labels = np.empty(len(X), dtype=np.int64)
        for _, rows, logits in policy._answers(X, range(last + 1)):
            labels[rows] = np.argmax(logits, axis=1)  # the last exit comes last
    scores = np.empty((len(X), last + 1))
    for k, rows, logits in policy._answers(X):
        probabilities = softmax(logits)
        of_label = probabilities[np.arange(len(probabilities)), labels[rows]]
        # |p - e|² = |p|² - 2 p_label + 1
        scores[rows, k] = ((probabilities**2).sum(axis=1) - 2 * of_label + 1) / 2
    return scores
