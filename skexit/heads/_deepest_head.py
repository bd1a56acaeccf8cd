"""The deepest head as the teacher of the others, where the network has no logits of its own."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitArray, ExitLayout
from skexit.heads._teacher_folds import teacher_splits
from skexit.heads._teaching_trial import teaching_helps

#: ``distillation="auto"``, where it is on.
_SHARE = 0.65

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def resolve_share_of_deepest(
    distillation: float | str, X: ExitArray, labels: Integers, weight: Floats, groups: Integers | None
) -> float:
    """The share of the loss that compares heads with the deepest head; 0 if they can learn nothing from it.

    ``"auto"`` is 0, too, unless other heads clearly gain by such a teacher in a trial on held-out rows.
    """
    pupils = [k for k in range(X.layout.n_exits - 1) if not X.layout.has_logits(k)]
    if distillation == 0 or not pupils or not teacher_splits(labels, groups):
        return 0.0
    if distillation != "auto":
        return cast(float, distillation)
    shares = np.zeros(X.layout.n_exits)
    shares[pupils] = shares_by_exit(X.layout, _SHARE)[pupils]
    return _SHARE if teaching_helps(X, labels, weight, groups, shares) else 0.0


def shares_by_exit(layout: ExitLayout, share: float) -> Floats:
    """The share of each head: it falls by the part of the network that has run, to zero at the last exit."""
    costs = np.asarray(layout.costs)
    return share * (1 - costs / costs[-1])
