"""The deepest head as the teacher of the others, where the network has no logits of its own."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitLayout
from skexit.data._labels import UNLABELLED
from skexit.data._validation import cross_validation_splits

#: ``distillation="auto"``: the share at an exit that costs nothing.
_SHARE = 0.65
#: Parts of the rows; the logits for each come from a head of the others.
_FOLDS = 3

Integers = NDArray[np.int64]
Splits = list[tuple[NDArray[np.intp], NDArray[np.intp]]]


def resolve_share_of_deepest(
    distillation: float | str, layout: ExitLayout, labels: Integers, groups: Integers | None
) -> float:
    """The share of the loss that compares heads with the deepest head; 0 where nothing can be learned from it."""
    has_pupils = not all(layout.has_logits(k) for k in range(layout.n_exits - 1))
    if not has_pupils or not teacher_splits(labels, groups):
        return 0.0
    return _SHARE if distillation == "auto" else cast(float, distillation)


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
