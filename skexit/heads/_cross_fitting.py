"""Logits of rows from heads that were trained without them."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skexit._nn._dense import DenseNetwork
from skexit.data import ExitArray
from skexit.data._arrays import enough_rows
from skexit.data._labels import enough_labelled_rows
from skexit.data._validation import cross_validation_splits
from skexit.heads._transformer import LogitsTransformer
from skexit.uncertainty import fit_temperature
from skexit.uncertainty._temperature import match_confidence, temperature_within_bounds

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: With fewer rows, confidence of heads with hidden layers changes less than the logarithm of the rows has it.
_ROWS_OF_WHOLE_CHANGE = 600


class CrossFittedHeads(LogitsTransformer):
    """Heads that can be trained on some of the rows, and their logits divided."""

    hidden_layer_sizes: Sequence[int]
    cv: Any
    random_state: int | np.random.RandomState | None
    networks_: list[DenseNetwork | None]
    distillation_: float
    _temperatures: Floats
    _softness: Floats

    @abstractmethod
    def _train(self, X: ExitArray, labels: Integers, weight: Floats) -> list[DenseNetwork | None]:
        """The heads of these rows."""

    @abstractmethod
    def _divide_logits(self, k: int, temperature: float) -> None:
        """Divide the logits of exit `k` from now on."""

    def _cross_fit(
        self, X: ExitArray, labels: Integers, weight: Floats, groups: Integers | None
    ) -> tuple[list[Self], NDArray[np.intp]]:
        """Heads for each fold, trained without it but as confident as those of all rows, and the fold of each row."""
        folds: list[Self] = []
        fold_of_row = np.empty(len(X), dtype=np.intp)
        for train_rows, test_rows in cross_validation_splits(self.cv, labels, self.random_state, groups):
            fold_of_row[test_rows] = len(folds)
            folds.append(self._trained_on(train_rows, X, labels, weight))
        self._match_confidence(folds, fold_of_row, X, labels, weight)
        return folds, fold_of_row

    def _trained_on(self, rows: NDArray[np.intp], X: ExitArray, labels: Integers, weight: Floats) -> Self:
        heads = copy.copy(self)
        heads.networks_ = self._train(X[rows], labels[rows], weight[rows])
        heads._temperatures = np.ones_like(self._temperatures)
        heads._undo_softening(X[rows], labels[rows], weight[rows])
        return heads

    def _undo_softening(self, X: ExitArray, labels: Integers, weight: Floats) -> None:
        """Make the logits of distilled heads, which follow the teacher's, as confident as the labels allow.

        Rows without any label leave the confidence as it was.
        """
        if self.distillation_ == 0:
            return
        rows = enough_labelled_rows(labels, X.layout.n_exits * len(self.classes_))
        if len(rows):
            self._softness = np.ones(X.layout.n_exits)
            for k, logits in self._logits(X[rows]).items():
                self._softness[k] = temperature_within_bounds(logits, labels[rows], weight[rows])
        for k in self.new_logits():
            self._divide_logits(k, float(self._softness[k]))

    def _match_confidence(
        self, folds: list[Self], fold_of_row: NDArray[np.intp], X: ExitArray, labels: Integers, weight: Floats
    ) -> None:
        """Divide the logits of the folds by temperatures that make up for the rows that they were trained without.

        Confidence in new rows changes with the rows that heads learn from. Its change from heads of fewer rows to those
        of the folds is carried on to those of all rows, in proportion to the logarithm of the number of rows.
        """
        n_folds = len(folds)
        n_left_out = max(2 * n_folds // 5, 2)
        others, part = np.flatnonzero(fold_of_row < n_left_out), np.flatnonzero(fold_of_row >= n_left_out)
        if n_folds == 2 or len(part) < 2:  # a half of half the rows tells too little of all
            return
        n_fold = len(X) * (1 - 1 / n_folds)
        smaller = self._trained_on(part, X, labels, weight)
        rows = others[enough_rows(len(others), X.layout.n_exits * len(self.classes_))]
        exponent = np.log(len(X) / n_fold) / np.log(n_fold / len(part))
        if len(self.hidden_layer_sizes):
            exponent *= min(1.0, len(X) / _ROWS_OF_WHOLE_CHANGE)
        of_smaller = smaller._logits(X[rows])
        for k, logits in self._held_out_logits(folds, fold_of_row, X, rows).items():
            temperature = match_confidence(of_smaller[k], logits, weight[rows]) ** exponent
            for fold in folds:
                fold._divide_logits(k, temperature)

    def _held_out_logits(
        self, folds: list[Self], fold_of_row: NDArray[np.intp], X: ExitArray, rows: NDArray[np.intp]
    ) -> dict[int, Floats]:
        """Cross-fitted logits of some rows, by exit."""
        said = {k: np.empty((len(rows), len(self.classes_))) for k in self.new_logits()}
        for number, fold in enumerate(folds):
            here = np.flatnonzero(fold_of_row[rows] == number)
            for k, values in fold._logits(X[rows[here]]).items():
                said[k][here] = values
        return said

    def _calibrate(
        self, folds: list[Self], fold_of_row: NDArray[np.intp], X: ExitArray, labels: Integers, weight: Floats
    ) -> None:
        """Divide the logits of each head, those of the folds too, by the temperature that fits what these say best."""
        rows = enough_labelled_rows(labels, X.layout.n_exits * len(self.classes_))
        for k, logits in self._held_out_logits(folds, fold_of_row, X, rows).items():
            temperature = fit_temperature(logits, labels[rows], weight[rows])
            for heads in (*folds, self):
                heads._divide_logits(k, temperature)
