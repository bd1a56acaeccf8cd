"""What the answer of an exit is worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from skexit._validation import read_logits
from skexit.arrays import BATCH_ROWS, ExitArray
from skexit.uncertainty import fit_mixture, mix, softmax

Floats = NDArray[np.float64]

#: Up to this many log-probabilities are fitted; a weight an exit and a bias a class need no more.
_ENOUGH_NUMBERS = 10**7


def expected_rewards(X: ExitArray, labels: NDArray[np.int64], weight: Floats) -> Floats:
    """How likely the answer of each exit is to be right, by all exits together.

    The probability that a mixture of all exits, as in Zero Time Waste, gives to the answer. It
    has less variance than whether the answer is right.

    Parameters
    ----------
    X : ExitArray of shape (n_samples, n_columns)
        With logits at every exit.
    labels : ndarray of shape (n_samples,)
        Index of the true class.
    weight : ndarray of shape (n_samples,)

    Returns
    -------
    ndarray of shape (n_samples, n_exits)
    """
    rows = _evenly_spaced(len(X), _ENOUGH_NUMBERS // sum(X.layout.n_logits))
    mixture = fit_mixture(_log_probabilities(X, rows), labels[rows], weight[rows])
    rewards = np.empty((len(X), X.layout.n_exits))
    for batch in X.batches(BATCH_ROWS):
        log_probabilities = _log_probabilities(X, batch)
        probabilities = softmax(mix(log_probabilities, *mixture))
        rewards[batch] = np.take_along_axis(probabilities, np.argmax(log_probabilities, axis=2), axis=1)
    return rewards


def _evenly_spaced(n_rows: int, most: int) -> NDArray[np.intp]:
    return np.arange(n_rows) if n_rows <= most else np.linspace(0, n_rows - 1, most).astype(np.intp)


def _log_probabilities(X: ExitArray, rows: slice | NDArray[np.intp]) -> Floats:
    return np.stack([log_softmax(read_logits(X, k, rows), axis=1) for k in range(X.layout.n_exits)], axis=1)
