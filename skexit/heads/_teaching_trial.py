"""A trial of the deepest head as a teacher, by least squares: whether other heads predict new rows better with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from skexit.data import ExitArray
from skexit.data._arrays import enough_rows
from skexit.data._labels import UNLABELLED
from skexit.data._validation import read_features
from skexit.heads._held_out import exceeds_zero, numbered, some_rows
from skexit.heads._teacher_folds import Splits, teacher_splits

#: Rows with labels, and rows without, that are enough for a trial.
_ENOUGH_ROWS = 8000
#: Strength of the penalty on the weights, for standardised features.
_L2 = 0.03

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Rows = NDArray[np.intp]


def teaching_helps(X: ExitArray, labels: Integers, weight: Floats, groups: Integers | None, shares: Floats) -> bool:
    """Whether other heads predict new rows clearly better if they have the teacher.

    Half of the rows train least-squares classifiers of the features of each exit: by labels alone, and by labels and
    the teacher's predictions. The other half measures them. The halves take turns. On average over the exits where the
    teacher's share, in `shares`, is positive, accuracy and squared error must both improve by two standard errors. If
    rows are too few for a trial, the teacher does not help.
    """
    rows = _enough_rows(X, labels)
    labels, weight = labels[rows], weight[rows]
    groups = None if groups is None else numbered(groups[rows])
    halves = _halves(labels, weight, groups)
    if not halves:
        return False
    deepest = read_features(X, X.layout.n_exits - 1, rows)
    taught = [half.predictions_of_teacher(deepest) for half in halves]
    gains, pupils = np.zeros((len(rows), 2)), np.flatnonzero(shares)
    for k in pupils:
        features = read_features(X, int(k), rows)
        for half, predictions in zip(halves, taught, strict=True):
            gains[half.test] += half.gains(features, predictions, shares[k]) / len(pupils)
    measured = labels != UNLABELLED
    groups = np.arange(len(rows)) if groups is None else groups
    return all(exceeds_zero(of_rows[measured], weight[measured], groups[measured], 2) for of_rows in gains.T)


def _enough_rows(X: ExitArray, labels: Integers) -> Rows:
    """Some of the rows with labels, and some of the others, at random."""
    layout = X.layout
    most = min(_ENOUGH_ROWS, len(enough_rows(len(labels), max(*layout.n_features, labels.max() + 1))))
    return some_rows(labels, most)


@dataclass(frozen=True)
class _Half:
    """Rows that train classifiers, and the others, which measure them.

    `targets` has a row of zeros where there is no label. `folds` are rows of `train` that the teacher learns from, and
    those that it then teaches.
    """

    targets: Floats
    is_labelled: NDArray[np.bool_]
    weight: Floats
    train: Rows
    test: Rows
    folds: Splits

    def predictions_of_teacher(self, features: Floats) -> Floats:
        """What the teacher predicts for the training rows, each of which it has not seen."""
        predictions = np.empty((len(self.train), self.targets.shape[1]))
        for learns, teaches in self.folds:
            rows = self.train[learns]
            teacher = _least_squares(features[rows], self.targets[rows], self.weight[rows])
            predictions[teaches] = teacher(features[self.train[teaches]])
        return predictions

    def gains(self, features: Floats, taught: Floats, share: float) -> Floats:
        """How much better each test row is predicted if the teacher has a share of the loss.

        The first column has the decrease of the squared error. The second is 1 for a row that is only predicted
        correctly with the teacher, -1 for one only without, otherwise 0.
        """
        targets, weight, labelled = self.targets[self.train], self.weight[self.train], self.is_labelled[self.train]
        mixed = np.where(labelled[:, None], (1 - share) * targets + share * taught, taught)
        new, inputs = features[self.test], features[self.train]
        alone = _least_squares(inputs[labelled], targets[labelled], weight[labelled])(new)
        pupil = _least_squares(inputs, mixed, weight * np.where(labelled, 1, share))(new)
        return self._scores(pupil) - self._scores(alone)

    def _scores(self, predictions: Floats) -> Floats:
        """Minus the squared error of each test row, and whether it is predicted correctly."""
        targets, rows = self.targets[self.test], np.arange(len(self.test))
        is_correct = targets[rows, predictions.argmax(axis=1)]
        return np.column_stack([-((predictions - targets) ** 2).sum(axis=1), is_correct])


def _halves(labels: Integers, weight: Floats, groups: Integers | None) -> list[_Half]:
    """Both halves of the rows; none if one has too few rows or groups with labels for a teacher."""
    is_labelled = labels != UNLABELLED
    targets = np.eye(labels.max() + 1)[labels] * is_labelled[:, None]
    halves = []
    for _, test in teacher_splits(labels, groups, 2):
        train = np.setdiff1d(np.arange(len(labels)), test)
        folds = teacher_splits(labels[train], None if groups is None else numbered(groups[train]))
        halves.append(_Half(targets, is_labelled, weight, train, test, folds))
    return halves if all(half.folds for half in halves) else []


def _least_squares(features: Floats, targets: Floats, weight: Floats) -> Callable[[Floats], Floats]:
    """The predictions of a linear model with a penalty on its weights."""
    scaler = StandardScaler().fit(features, sample_weight=weight)
    model = Ridge(alpha=_L2 * weight.sum()).fit(scaler.transform(features), targets, sample_weight=weight)
    return lambda new: model.predict(scaler.transform(new))
