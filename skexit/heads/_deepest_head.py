"""The deepest head as the teacher of the others, where the network has no logits of its own."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitArray, ExitLayout
from skexit.data._labels import UNLABELLED
from skexit.data._validation import cross_validation_splits
from skexit.heads._least_squares import TwoHalves

#: ``distillation="auto"``: the share at an exit that costs nothing.
_SHARE = 0.65
#: Parts of the rows; the logits for each come from a head of the others.
_FOLDS = 3
#: Rows that are enough to compare the features of exits.
_ENOUGH_ROWS = 1000

Integers = NDArray[np.int64]
Splits = list[tuple[NDArray[np.intp], NDArray[np.intp]]]


def resolve_share_of_deepest(
    distillation: float | str, X: ExitArray, labels: Integers, groups: Integers | None
) -> float:
    """The share of the loss that compares heads with the deepest head; 0 if they can learn nothing from it.

    ``"auto"`` is 0, too, unless the deepest features are clearly better than those of the other exits.
    """
    pupils = [k for k in range(X.layout.n_exits - 1) if not X.layout.has_logits(k)]
    if distillation == 0 or not pupils or not teacher_splits(labels, groups):
        return 0.0
    if distillation != "auto":
        return cast(float, distillation)
    return _SHARE if _is_clearly_better(X, labels, pupils) else 0.0


def _is_clearly_better(X: ExitArray, labels: Integers, pupils: list[int]) -> bool:
    """Whether the deepest features predict labels better than those of the pupils do on average.

    The mean difference in the accuracy of least-squares classifiers must exceed two standard errors. If exits see
    different parts of an input, for example, it may not.
    """
    halves = TwoHalves.draw(labels, _ENOUGH_ROWS)
    if halves is None:
        return False
    of_pupils = np.mean([halves.is_correct(X, k) for k in pupils], axis=0)
    gains = halves.is_correct(X, X.layout.n_exits - 1) - of_pupils
    return bool(gains.mean() > 2 * gains.std() / np.sqrt(len(gains)))


def shares_by_exit(layout: ExitLayout, share: float) -> NDArray[np.float64]:
    """The share of each head: it falls by the part of the network that has run, to zero at the last exit."""
    costs = np.asarray(layout.costs)
    return share * (1 - costs / costs[-1])


def teacher_splits(labels: Integers, groups: Integers | None) -> Splits:
    """Rows that a teacher learns from, all with labels, and the rows that it then teaches; none where rows are too few.

    Rows of a group are in the same fold.
    """
    labelled = labels != UNLABELLED
    n_separate = labelled.sum() if groups is None else len(np.unique(groups[labelled]))
    if n_separate < _FOLDS:
        return []
    splits = cross_validation_splits(_FOLDS, labels, 0, groups)
    splits = [(train[labelled[train]], test) for train, test in splits]
    return splits if all(len(train) for train, _ in splits) else []
