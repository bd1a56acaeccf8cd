"""Least-squares classifiers of features, which show whether a teacher is good enough for ``distillation="auto"``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skexit.data import ExitArray
from skexit.data._labels import UNLABELLED
from skexit.data._validation import read_features


@dataclass(frozen=True)
class TwoHalves:
    """Some rows that have labels, in two halves: each is predicted by a classifier of the other."""

    rows: NDArray[np.intp]
    labels: NDArray[np.int64]
    is_first: NDArray[np.bool_]

    @classmethod
    def draw(cls, labels: NDArray[np.int64], n_rows: int) -> TwoHalves | None:
        """Draw at most `n_rows` rows; None if a half has fewer than two classes."""
        mixed = np.random.RandomState(0).permutation(np.flatnonzero(labels != UNLABELLED))[:n_rows]
        rows = np.sort(mixed)
        halves = cls(rows, labels[rows], np.isin(rows, mixed[::2]))
        in_halves = (halves.labels[halves.is_first], halves.labels[~halves.is_first])
        return None if any(len(np.unique(part)) < 2 for part in in_halves) else halves

    def is_correct(self, X: ExitArray, k: int) -> NDArray[np.bool_]:
        """Whether each row is predicted correctly from the features of exit `k`."""
        features, predicted = read_features(X, k, self.rows), np.empty_like(self.labels)
        for test in (self.is_first, ~self.is_first):
            classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=0.1 * len(self.rows)))
            predicted[test] = classifier.fit(features[~test], self.labels[~test]).predict(features[test])
        return predicted == self.labels
