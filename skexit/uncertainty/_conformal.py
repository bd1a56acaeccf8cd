"""Conformal sets: sets of classes that contain the true class with a chosen probability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, column_or_1d

from skexit.uncertainty._labels import column_of_labels
from skexit.utils._module_names import set_module

#: An exit where fewer calibration rows leave has no threshold from these rows alone (JEI-DNN, 9.3).
FEWEST_ROWS = 20


def conformal_threshold(scores: ArrayLike, alpha: float) -> float:
    """Threshold that the score of a new row exceeds with a probability of at most `alpha`.

    It is the ``ceil((n + 1) (1 - alpha))``-th smallest of the n scores. If the new score and these
    are exchangeable, the new score is at most the threshold with a probability of at least
    ``1 - alpha``. Without ties, the probability is ``ceil((n + 1) (1 - alpha)) / (n + 1)``.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Conformal scores of rows that the classifier was not trained on; larger if the prediction fits the label less.
    alpha : float
        Between 0 and 1, both excluded.

    Returns
    -------
    float
        Infinite if there are too few scores for the guarantee.

    Raises
    ------
    ValueError
        If alpha is not between 0 and 1.

    Examples
    --------
    >>> scores = np.arange(1, 100) / 100
    >>> conformal_threshold(scores, alpha=0.1)
    0.9
    >>> conformal_threshold(scores[:8], alpha=0.1)
    inf
    """
    if not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha!r} must be between 0 and 1: the share of sets that may miss the true class.")
    scores = column_or_1d(scores)
    # The tolerance is for rounding: 1 - 0.9 is slightly less than 0.1.
    n_above = math.floor((len(scores) + 1) * alpha * (1 + 1e-12))
    rank = max(len(scores) + 1 - n_above, 1)
    if rank > len(scores):
        return math.inf
    return float(np.partition(scores, rank - 1)[rank - 1])


@set_module("skexit.persistence")
@dataclass(frozen=True)
class ConformalScores:
    """Conformal scores of calibration rows, from which the thresholds of the exits are computed.

    `scores`, of shape (n_samples, n_exits), are one minus the probability of the true class. `exits` are the exits
    where the rows leave, and `labels` the indices of the true classes.
    """

    scores: NDArray[np.float64]
    exits: NDArray[np.int64]
    labels: NDArray[np.int64]

    def thresholds(self, alpha: float, method: str) -> NDArray[np.float64]:
        """Largest score of a class that is in the set, at each exit (JEI-DNN, 9.3).

        `alpha` is the share of sets that may miss the true class. `method` selects the scores from which the threshold
        of an exit is computed; see :meth:`ExitPolicy.predict_set`. A threshold is ``inf`` if every class is in the set,
        and ``-inf`` if no class is. Raises a ValueError if alpha is not between 0 and 1, or the method does not exist.
        """
        return self._thresholds(alpha, method, fewest_strict=1)

    def class_thresholds(self, alpha: float, method: str, n_classes: int) -> NDArray[np.float64]:
        """Thresholds of each class from its own rows, of shape (n_exits, n_classes); ``inf`` if these are too few."""
        of_class = [self.labels == label for label in range(n_classes)]
        parts = [ConformalScores(self.scores[own], self.exits[own], self.labels[own]) for own in of_class]
        return np.stack([part._thresholds(alpha, method, fewest_strict=0) for part in parts], axis=1)

    def _thresholds(self, alpha: float, method: str, fewest_strict: int) -> NDArray[np.float64]:
        if method not in _METHODS:
            raise ValueError(f"method={method!r} must be 'general', 'ims', 'strict' or 'gated'.")
        n_exits = self.scores.shape[1]
        if method == "ims":
            return np.array([conformal_threshold(self.scores[:, k], alpha) for k in range(n_exits)])
        general = conformal_threshold(self.scores[np.arange(len(self.exits)), self.exits], alpha)
        if method == "general":
            return np.full(n_exits, general)
        leaving = [self.scores[self.exits == k, k] for k in range(n_exits)]
        fewest, otherwise = (fewest_strict, -math.inf) if method == "strict" else (FEWEST_ROWS, general)
        return np.array([conformal_threshold(own, alpha) if len(own) >= fewest else otherwise for own in leaving])


_METHODS = ("general", "ims", "strict", "gated")


def coverage_score(y_true: ArrayLike, y_set: ArrayLike, *, labels: ArrayLike | None = None) -> float:
    """Share of the samples whose true class is in the set (JEI-DNN, equation 2).

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Class labels. Rows with the label -1 are left out if `labels` are given and do not contain -1.
    y_set : array-like of shape (n_samples, n_classes) of bool
        Which classes are in the set of each sample, as returned by ``predict_set``.
    labels : array-like of shape (n_classes,), default=None
        Class of each column of `y_set`. By default, the sorted classes of `y_true`.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If the shapes do not agree, y_set is not of bool, or y_true has a class that is not in labels.

    Examples
    --------
    >>> coverage_score(["a", "b"], [[True, True], [True, False]])
    0.5
    """
    sets = _check_sets(y_set)
    labelled, true_columns = column_of_labels(y_true, labels, sets, "y_set")
    return float(sets[labelled, true_columns].mean())


def inefficiency_score(y_set: ArrayLike) -> float:
    """Mean number of classes in a set (JEI-DNN, equation 2).

    Parameters
    ----------
    y_set : array-like of shape (n_samples, n_classes) of bool
        Which classes are in the set of each sample, as returned by ``predict_set``.

    Returns
    -------
    float
        Between 0 and n_classes.

    Raises
    ------
    ValueError
        If y_set is not two-dimensional, or not of bool.

    Examples
    --------
    >>> inefficiency_score([[True, True], [True, False]])
    1.5
    """
    return float(_check_sets(y_set).sum(axis=1).mean())


def _check_sets(y_set: ArrayLike) -> NDArray[np.bool_]:
    sets = check_array(y_set, dtype=None, input_name="y_set")
    if sets.dtype != bool:
        raise ValueError(f"y_set has dtype {sets.dtype}, but must be bool; pass the output of predict_set.")
    return sets
