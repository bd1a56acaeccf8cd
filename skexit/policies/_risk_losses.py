"""Losses of early answers that compare probabilities, as of "Fast yet safe: Early-exiting with risk control"."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitArray
from skexit.policies._base import ExitPolicy
from skexit.uncertainty import softmax

#: Losses that are differences of Brier scores.
BRIER_LOSSES = ("brier_gap", "brier_consistency")
#: Losses that compare with the last exit alone.
LOSSES_WITHOUT_LABELS = ("disagreement", "brier_consistency")


def brier_scores(policy: ExitPolicy, X: ExitArray, labels: NDArray[np.int64], loss: str) -> NDArray[np.float64]:
    """Brier scores of every exit, of shape (n_samples, n_exits), between 0 and 1.

    They are of the labels, indices of classes, for ``"brier_gap"``, and of the last exit's answers for
    ``"brier_consistency"``.
    """
    last = policy.layout_.n_exits - 1
    if loss == "brier_consistency":
        labels = np.empty(len(X), dtype=np.int64)
        for _, rows, logits in policy._answers(X, range(last + 1)):
            labels[rows] = np.argmax(logits, axis=1)  # in the end, that of the last exit
    scores = np.empty((len(X), last + 1))
    for k, rows, logits in policy._answers(X):
        probabilities = softmax(logits)
        of_label = probabilities[np.arange(len(probabilities)), labels[rows]]
        # |p - e|² = |p|² - 2 p_label + 1
        scores[rows, k] = ((probabilities**2).sum(axis=1) - 2 * of_label + 1) / 2
    return scores
