"""What estimators of scikit-learn learn from where some rows have no label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import get_tags

from skexit.data import ExitArray
from skexit.data._labels import UNLABELLED_ROWS, is_labelled


def rows_and_labels_for(estimator: Any, X: ExitArray, y: NDArray[Any] | None) -> tuple[ExitArray, NDArray[Any] | None]:
    """The rows and labels that an estimator should learn from.

    All of them, unless some rows have no label. Then an estimator that needs labels gets the rows that have one, and
    one that needs none gets all rows, and no labels. What is made of an estimator of ``sklearn.semi_supervised`` gets
    all rows, in which -1 marks those without a label.
    """
    if y is None:
        return X, y
    labelled = is_labelled(y, X.layout)
    parts = list(_parts(estimator))
    if labelled.all() or any(type(part).__module__.startswith("sklearn.semi_supervised") for part in parts):
        return X, y
    if not any(map(_needs_labels, parts)):
        return X, None
    if not labelled.any():
        raise ValueError(f"{UNLABELLED_ROWS} {estimator!r} needs labels: give those of some rows.")
    rows = np.flatnonzero(labelled)
    return X[rows], y[rows]


def _needs_labels(part: BaseEstimator) -> bool:
    # The tags of univariate selection say that y is optional, as a score function could do without.
    return get_tags(part).target_tags.required or hasattr(part, "score_func")


def _parts(estimator: Any) -> Iterator[BaseEstimator]:
    """The estimator, and all that are parameters of it, such as the steps of a pipeline."""
    if isinstance(estimator, BaseEstimator):
        yield estimator
        yield from (value for value in estimator.get_params().values() if isinstance(value, BaseEstimator))
