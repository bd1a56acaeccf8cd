"""Checks that every estimator makes of its input."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, validate_data

from skexit.data._arrays import ExitArray
from skexit.data._layout import ExitLayout, resolve_layout
from skexit.data._overlays import OverlaidSource
from skexit.utils._checks import check_budget_is_fraction, check_sample_weight
from skexit.utils._labels import index_of_labels


def validate_training_data(
    estimator: BaseEstimator, X: Any, y: Any, sample_weight: Any
) -> tuple[ExitArray, NDArray[Any], NDArray[np.int64], NDArray[np.float64]]:
    """Check what was passed to ``fit``, and keep its layout as ``_layout_in`` of the estimator.

    Gives X without the rows of zero weight, its logits in the order of the classes; the sorted classes; the index of
    each row's label among them; and the sample weights, all positive. Their mean is 1: only ratios of weights count.
    """
    checked, y = _validate_first(estimator, X, y)
    classes, labels = encode_labels(y, checked.layout)
    checked, classes, labels, weight = _drop_weightless(checked, classes, labels, sample_weight)
    weight = weight / weight.max()  # equal weights become exactly 1, and no sum overflows
    return checked, classes, labels, weight / weight.mean()


def validate_partial_data(
    estimator: BaseEstimator, X: Any, y: Any, classes: Any, sample_weight: Any, *, is_first: bool
) -> tuple[ExitArray, NDArray[Any], NDArray[np.int64], NDArray[np.float64]]:
    """Check what was passed to ``partial_fit``, and in the first call keep its layout.

    After the first call, the estimator has ``classes_``. Gives what `validate_training_data` gives.
    """
    if is_first:
        checked, y = _validate_first(estimator, X, y)
        if classes is None and checked.layout.classes is None:
            classes = getattr(estimator, "classes_", None)  # of an earlier fit
        known = encode_labels(y if classes is None else np.unique(classes), checked.layout)[0]
    else:
        checked, known = validate_new_data(estimator, X), estimator.classes_
        y = column_or_1d(y, warn=True)
        check_consistent_length(checked, y)
        check_classification_targets(y)
        if classes is not None and not np.array_equal(np.unique(classes), known):
            raise ValueError(
                f"classes={np.asarray(classes).tolist()} are not those of the first call to partial_fit, "
                f"{known.tolist()}."
            )
    labels = encode_labels(y, checked.layout.replace(classes=known))[1]
    return _drop_weightless(checked, known, labels, sample_weight)


def _validate_first(estimator: BaseEstimator, X: Any, y: Any) -> tuple[ExitArray, NDArray[Any]]:
    """Check X and y where nothing is fitted yet, and keep the layout."""
    if isinstance(X, ExitArray):
        validate_data(estimator, X, y, skip_check_array=True)
        _check_not_empty(estimator, X)
        checked = X if estimator.layout is None else _with_layout(X, estimator.layout)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
    else:
        array, y = validate_data(estimator, X, y, dtype=[np.float64, np.float32])
        checked = ExitArray.from_array(array, resolve_layout(estimator.layout, X, array.shape[1]))
    check_classification_targets(y)
    estimator._layout_in = checked.layout
    return sort_classes(checked), y


def _drop_weightless(
    checked: ExitArray, classes: NDArray[Any], labels: NDArray[np.int64], sample_weight: Any
) -> tuple[ExitArray, NDArray[Any], NDArray[np.int64], NDArray[np.float64]]:
    """X, classes, labels and weights, of the rows of positive weight."""
    weight = check_sample_weight(sample_weight, labels)
    used = weight > 0
    if not used.all():
        checked, labels, weight = checked[used], labels[used], weight[used]
    return checked, classes, labels, weight


def validate_new_data(estimator: BaseEstimator, X: Any) -> ExitArray:
    """Check what was passed to a method of a fitted estimator; logits are in the order of ``classes_``."""
    layout: ExitLayout = estimator._layout_in
    if not isinstance(X, ExitArray):
        array = validate_data(estimator, X, reset=False, dtype=[np.float64, np.float32])
        return sort_classes(ExitArray.from_array(array, layout))
    # Before scikit-learn's check of the number of columns: layouts say more.
    if (X.layout.n_logits, X.layout.n_features) != (layout.n_logits, layout.n_features):
        raise ValueError(
            f"X has the layout {X.layout}, but {type(estimator).__name__} was fitted with {layout}. Pass the "
            "exits that it was fitted with."
        )
    validate_data(estimator, X, reset=False, skip_check_array=True)
    _check_not_empty(estimator, X)
    X = sort_classes(X)
    if X.layout.classes is not None and not np.array_equal(X.layout.classes, estimator.classes_):
        raise ValueError(
            f"the layout of X has the classes {X.layout.classes.tolist()}, but {type(estimator).__name__} was fitted "
            f"with {estimator.classes_.tolist()}. Pass logits of the classes that it was fitted with."
        )
    return X


def sort_classes(X: ExitArray) -> ExitArray:
    """X with its logits in the order of the sorted classes, which is scikit-learn's order."""
    classes = X.layout.classes
    order = order_of_classes(classes)
    if classes is None or order is None:
        return X
    return ExitArray(_ReorderedLogits(X, order), X.layout.replace(classes=classes[order]))


def order_of_classes(classes: NDArray[Any] | None) -> NDArray[np.intp] | None:
    """The order that sorts the classes, None where they are sorted already or not known."""
    if classes is None or (classes[:-1] < classes[1:]).all():
        return None
    return np.argsort(classes)


class _ReorderedLogits(OverlaidSource):
    """The columns of an ExitArray, with the logits of each exit in another order."""

    def __init__(self, base: ExitArray, order: NDArray[np.intp]) -> None:
        super().__init__(base, base.dtype)
        self.order = order

    def read_logits(self, k: int, rows: Any) -> NDArray[Any]:
        return super().read_logits(k, rows)[:, self.order]


def _with_layout(X: ExitArray, layout: ExitLayout | int) -> ExitArray:
    """X with other costs or classes; the columns must stay those of its exits."""
    layout = resolve_layout(layout, X, X.shape[1])
    if (X.layout.n_logits, X.layout.n_features) != (layout.n_logits, layout.n_features):
        raise ValueError(
            f"layout={layout} divides the columns otherwise than X, which has {X.layout}. Leave layout=None, or pass "
            "numpy.asarray(X)."
        )
    return X.with_layout(layout)


def _check_not_empty(estimator: BaseEstimator, X: ExitArray) -> None:
    if len(X) == 0:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required by "
            f"{type(estimator).__name__}."
        )


def encode_labels(y: Any, layout: ExitLayout) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Classes in the order of the logits, and the index of each label among them."""
    y = column_or_1d(y)
    present = np.unique(y)
    if layout.classes is not None:
        classes = layout.classes
    elif layout.n_classes is None:
        classes = present
    elif present.dtype.kind in "iu" and present[0] >= 0 and present[-1] < layout.n_classes:
        classes = np.arange(layout.n_classes)
    elif present.dtype.kind not in "iu" and len(present) == layout.n_classes:
        classes = present
    else:
        # Integers 1 to C are refused, too: on rows that lack class C they would pass for 0 to C - 1.
        raise ValueError(
            f"y has {len(present)} classes, {present.tolist()[0]!r} to {present.tolist()[-1]!r}, and X logits for "
            f"{layout.n_classes}, so that it is unclear which logit is which class. Give the labels in the order of "
            "the logits: stack_exits(..., classes=...)."
        )
    unknown = np.setdiff1d(present, classes)
    if len(unknown):
        raise ValueError(
            f"y has the class {unknown.tolist()[0]!r}, which the layout does not know: its classes are "
            f"{classes.tolist()}. Correct y, or the classes of the layout."
        )
    return classes, index_of_labels(y, classes)


def validate_groups(groups: Any, y: Any, sample_weight: Any = None) -> NDArray[np.int64] | None:
    """Number of the group of each row of positive weight; None where no groups are given."""
    if groups is None:
        return None
    checked = column_or_1d(groups, dtype=object)
    if len(checked) != len(y):
        raise ValueError(f"groups has {len(checked)} values, but there are {len(y)} rows. Give the group of each row.")
    missing = [row for row, group in enumerate(checked) if _is_missing(group)]
    if missing:
        raise ValueError(
            f"groups lacks the group of {len(missing)} rows, first of row {missing[0]}. Give a group to each row: one "
            "of its own to a row that is like no other."
        )
    used = check_sample_weight(sample_weight, y) > 0
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in checked[used]])


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas' NA is neither equal to itself nor not
        return True


def cross_validation_splits(
    cv: Any,
    labels: NDArray[np.int64],
    random_state: int | np.random.RandomState | None,
    groups: NDArray[np.int64] | None = None,
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Training and test rows of each fold, with the rows of a group in one fold.

    An int shuffles, and stratifies where classes allow.
    """
    if isinstance(cv, Integral):
        return _shuffled_splits(int(cv), labels, random_state, groups)
    try:
        splits = list(check_cv(cv, labels, classifier=True).split(labels, labels, groups))
    except ValueError as error:
        if groups is None and "groups" in str(error):
            raise ValueError(
                f"cv={cv!r} needs groups, and fit was given none. Call fit(X, y, groups=...); in a Pipeline or a "
                "search, enable metadata routing and request them by set_fit_request(groups=True). Or set cv to an "
                "integer."
            ) from error
        raise
    _check_test_folds(cv, [test for _, test in splits], labels, groups)
    return splits


def _check_test_folds(
    cv: Any, folds: list[NDArray[np.intp]], labels: NDArray[np.int64], groups: NDArray[np.int64] | None
) -> None:
    """Raise unless each row is in one test fold, together with its group."""
    if not np.array_equal(np.sort(np.concatenate(folds)), np.arange(len(labels))):
        raise ValueError(
            f"cv={cv!r} must put each of the {len(labels)} rows of positive weight into exactly one test fold."
        )
    if groups is not None and sum(len(np.unique(groups[fold])) for fold in folds) > groups.max() + 1:
        raise ValueError(
            f"cv={cv!r} divides groups between folds. Set cv to an integer or to GroupKFold(), or leave out groups."
        )


def _shuffled_splits(
    n_splits: int,
    labels: NDArray[np.int64],
    random_state: int | np.random.RandomState | None,
    groups: NDArray[np.int64] | None,
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    counts = np.bincount(labels)
    if groups is None:
        n_splits = min(n_splits, len(labels))
        kind = StratifiedKFold if counts[counts > 0].min() >= n_splits else KFold
        return list(kind(n_splits, shuffle=True, random_state=random_state).split(labels, labels))
    n_groups = groups.max() + 1
    if n_groups == 1:
        raise ValueError("groups has one group, which cannot be divided. Give two groups or more, or leave out groups.")
    if n_groups < n_splits:
        raise ValueError(
            f"cv={n_splits} asks for more folds than there are groups with rows of positive weight, {n_groups}. Set cv "
            f"to at most {n_groups}; where a policy fits heads, theirs too, as by heads=ExitHeads(cv={n_groups})."
        )
    if counts[counts > 0].min() >= n_splits:
        kind = StratifiedGroupKFold(n_splits, shuffle=True, random_state=random_state)
        splits = list(kind.split(labels, labels, groups))
        # With few groups, it may leave a fold without rows.
        if all(len(test) for _, test in splits):
            return splits
    kind = GroupKFold(n_splits, shuffle=True, random_state=random_state)
    return list(kind.split(labels, labels, groups))


def read_logits(X: ExitArray, k: int, rows: Any = None) -> NDArray[np.float64] | None:
    """Logits of exit `k` in double precision, checked to be finite."""
    logits = X.logits(k, rows)
    return None if logits is None else _finite(logits, k, "logits")


def read_features(X: ExitArray, k: int, rows: Any = None) -> NDArray[np.float64]:
    """Features of exit `k` in double precision, checked to be finite."""
    return _finite(X.features(k, rows), k, "features")


def _finite(block: NDArray[Any], k: int, part: str) -> NDArray[np.float64]:
    # A sum is not finite if an element is not, and takes a tenth of the time of isfinite().all().
    if not np.isfinite(np.sum(block, dtype=np.float64)) and not np.isfinite(block).all():
        row = np.flatnonzero(~np.isfinite(block).all(axis=1))[0]
        raise ValueError(
            f"X contains NaN or infinity: the {part} of exit {k} (first in row {row} of those read). Remove such rows, "
            "or look for an overflow in the network."
        )
    return block.astype(np.float64, copy=False)


def check_budget(budget: float, layout: ExitLayout) -> None:
    """Raise unless the budget is in (0, 1] and pays for the first exit."""
    cost, of_heads = layout.cost_fractions[0], layout.head_fractions[0]
    if check_budget_is_fraction(budget) < cost * (1 - 1e-12):
        including = f", {of_heads:.4g} of it for heads" if of_heads else ""
        cures = (["raise the budget"] if cost <= 1 else []) + (["use cheaper heads"] if of_heads else [])
        raise ValueError(
            f"budget={budget!r} is below the cost of the first exit, {cost:.4g} of the network's{including}. "
            f"{', '.join([*cures, 'or add an earlier exit']).capitalize()}."
        )
