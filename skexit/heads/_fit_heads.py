"""Fit heads, so that every exit has logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import has_fit_parameter

from skexit.data import ExitArray
from skexit.data._labels import restore_labels
from skexit.heads._heads import ExitHeads
from skexit.heads._transformer import logits_by


def fit_heads(
    heads: Any,
    X: ExitArray,
    classes: NDArray[Any],
    labels: NDArray[np.int64],
    weight: NDArray[np.float64],
    random_state: int | np.random.RandomState | None = 0,
    groups: NDArray[np.int64] | None = None,
) -> tuple[Any, ExitArray]:
    """Fit a copy of `heads`, or by default ExitHeads if an exit has no logits; return heads, and X with all logits.

    The heads are None if `heads` is None and every exit has logits. The logits of heads with a ``fit_transform`` are
    cross-fitted. Heads get `groups` if their ``fit`` has this parameter; others split no rows.
    """
    X = X.with_layout(X.layout.replace(classes=classes))
    if heads is None:
        if all(X.layout.has_logits(k) for k in range(X.layout.n_exits)):
            return None, X
        heads = ExitHeads(random_state=random_state)
    heads, y = clone(heads), restore_labels(classes, labels)
    if hasattr(heads, "fit_transform"):
        given = {"groups": groups} if has_fit_parameter(heads, "groups") else {}
        return heads, logits_by(heads, "fit_transform", X, y, weight, **given)
    return heads, logits_by(heads.fit(X, y), "transform", X)
