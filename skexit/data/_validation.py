"""Checks of the input of every estimator."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.exceptions import DataConversionWarning
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_consistent_length, validate_data

from skexit.data._arrays import ExitArray, relabel
from skexit.data._blocks import as_numpy
from skexit.data._class_order import check_order_of_classes
from skexit.data._labels import UNLABELLED, UNLABELLED_ROWS, encode_labelled, encode_labels, is_labelled
from skexit.data._layout import ExitLayout
from skexit.data._layout_of_input import own_layout, resolve_layout, warn_of_default_costs
from skexit.data._pools import check_same_pools
from skexit.data._sorted_classes import sort_classes
from skexit.data._sources import ArraySource
from skexit.data._unused_parameters import warn_of_unused_parameters
from skexit.data._wrong_data import check_is_not_input
from skexit.exceptions import LayoutLostWarning
from skexit.utils._checks import at_least, check_budget_is_fraction, check_sample_weight, is_integer
from skexit.utils._labels import check_is_given
from skexit.utils._warnings import warn

#: Fits use NumPy; with scikit-learn's dispatch, its checks would return other arrays.
_in_numpy = config_context(array_api_dispatch=False)


@_in_numpy
def validate_training_data(
    estimator: BaseEstimator, X: Any, y: Any, sample_weight: Any
) -> tuple[ExitArray, NDArray[Any], NDArray[np.int64], NDArray[np.float64]]:
    """Check the arguments of ``fit``, and store the layout of X as ``_layout_in`` of the estimator.

    Returns X without the rows of zero weight, its logits in the order of the classes; the sorted classes; the index of
    each row's label among them, -1 if it has none; and the sample weights, all positive. Their mean is 1: only
    ratios of weights count.
    """
    _check_y_is_given(estimator, y)
    warn_of_unused_parameters(estimator, getattr(estimator, "_unused_parameters", ()))
    checked, y = _validate_first(estimator, X, y)
    if not is_labelled(y, checked.layout).any():
        raise ValueError(UNLABELLED_ROWS + " Give the labels of some rows, of two classes or more.")
    classes, labels = encode_labelled(y, checked.layout)
    check_order_of_classes(checked, classes, labels)
    _warn_of_logits_as_features(estimator, checked, classes, labels)
    checked, classes, labels, weight = _drop_weightless(checked, classes, labels, sample_weight)
    weight = weight / weight.max()  # equal weights become exactly 1, and no sum overflows
    return checked, classes, labels, weight / weight.mean()


@_in_numpy
def validate_partial_data(
    estimator: BaseEstimator, X: Any, y: Any, classes: Any, sample_weight: Any, *, is_first: bool
) -> tuple[ExitArray, NDArray[Any], NDArray[np.int64], NDArray[np.float64]]:
    """Check the arguments of ``partial_fit``, and in the first call store the layout of X.

    After the first call, the estimator has ``classes_``. Returns the same as `validate_training_data`.
    """
    _check_y_is_given(estimator, y)
    if is_first:
        checked, y = _validate_first(estimator, X, y)
        if classes is None and checked.layout.classes is None:
            classes = getattr(estimator, "classes_", None)  # of an earlier fit
        labelled = y[is_labelled(y, checked.layout)]
        known = encode_labels(labelled if classes is None else np.unique(classes), checked.layout)[0]
    else:
        checked, known = validate_new_data(estimator, X), estimator.classes_
        y = _one_column(y)
        check_consistent_length(checked, y)
        _check_class_labels(y, checked.layout.replace(classes=known))
        if classes is not None and not np.array_equal(np.unique(classes), known):
            raise ValueError(
                f"classes={np.asarray(classes).tolist()} are not those of the first call to partial_fit, "
                f"{known.tolist()}. Omit classes after the first call, or begin with a clone."
            )
    labels = encode_labelled(
        y, checked.layout.replace(classes=known), "Pass all classes in the first call to partial_fit, as classes=..."
    )[1]
    return _drop_weightless(checked, known, labels, sample_weight)


def _validate_first(estimator: BaseEstimator, X: Any, y: Any) -> tuple[ExitArray, NDArray[Any]]:
    """Check X and y of an estimator that is not fitted, and store the layout and the dtype of X."""
    checked, y = validate_exits(estimator, X, y)
    _check_class_labels(y, checked.layout)
    estimator._layout_in, estimator._dtype_in = checked.layout, checked.stored_dtype.name
    return sort_classes(checked), y


def validate_exits(estimator: BaseEstimator, X: Any, y: Any) -> tuple[ExitArray, Any]:
    """Check X, and y unless None, of an estimator that is not fitted; the layout is that of the estimator or of X."""
    X = _with_exits(X)
    if isinstance(X, ExitArray):
        validate_data(estimator, X, y, skip_check_array=True)
        _check_not_empty(estimator, X)
        checked = X if estimator.layout is None else relabel(X, estimator.layout)
        if y is not None:
            y = _one_column(y)
            check_consistent_length(X, y)
    else:
        own = _own_layout(estimator, X)
        layout = estimator.layout if own is None else own
        # Logits are checked when they are read, where the message can say more.
        has_logits = isinstance(layout, ExitLayout) and any(layout.n_logits)
        array = validate_data(estimator, X, y, dtype=[np.float64, np.float32], ensure_all_finite=not has_logits)
        array, y = (array, None) if y is None else array
        checked = ExitArray.from_array(array, resolve_layout(layout, array, array.shape[1]))
        if own is not None and estimator.layout is not None:
            checked = relabel(checked, estimator.layout)
    return checked.with_layout(warn_of_default_costs(checked.layout)), y


def _check_y_is_given(estimator: BaseEstimator, y: Any) -> None:
    # The sentence of scikit-learn, which its tests expect.
    check_is_given(y, f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None.")


def _one_column(y: Any) -> NDArray[Any]:
    """Labels, checked as by scikit-learn, whose own warning would point at a line of skexit."""
    labels = column_or_1d(y)
    if np.ndim(y) == 2:
        warn(
            DataConversionWarning(
                "A column-vector y was passed when a 1d array was expected. Please change the shape of y to "
                "(n_samples, ), for example using ravel()."
            )
        )
    return labels


def _own_layout(estimator: BaseEstimator, X: Any) -> ExitLayout | None:
    """The layout that X has; if the columns of a DataFrame contradict each other, `layout` replaces it."""
    try:
        return own_layout(X)
    except ValueError:
        if estimator.layout is None:
            raise
        return None


def _with_exits(X: Any) -> Any:
    """X as it was passed; an array of logits with three dimensions becomes an ExitArray."""
    check_is_not_input(X)
    if isinstance(X, list | tuple) and len(X) and np.ndim(X[0]) == 2:
        if not isinstance(X[0], list | tuple):
            raise ValueError(
                f"X is a list of {len(X)} arrays. If each array is of one exit, join them with stack_exits(logits=X) "
                "or stack_exits(features=X). If each is of one sample, join them with numpy.stack(X)."
            )
        X = np.asarray(X)
    elif hasattr(X, "requires_grad"):  # a tensor, of any device
        X = as_numpy(X)
    return ExitArray.from_array(X) if isinstance(X, np.ndarray) and X.ndim == 3 else X


def _drop_weightless(
    checked: ExitArray, classes: NDArray[Any], labels: NDArray[np.int64], sample_weight: Any
) -> tuple[ExitArray, NDArray[Any], NDArray[np.int64], NDArray[np.float64]]:
    """X, classes, labels and weights of the rows with positive weight."""
    weight = check_sample_weight(sample_weight, labels)
    used = weight > 0
    if not used.all():
        checked, labels, weight = checked[used], labels[used], weight[used]
    return checked, classes, labels, weight


@_in_numpy
def validate_new_data(estimator: BaseEstimator, X: Any) -> ExitArray:
    """Check the X of a method of a fitted estimator; its logits are then in the order of ``classes_``."""
    X, known = validate_new_exits(estimator, X), estimator._layout_in.classes
    if X.layout.classes is None and known is not None:
        X = X.with_layout(X.layout.replace(classes=known))
    X = sort_classes(X)
    if X.layout.classes is not None and not np.array_equal(X.layout.classes, estimator.classes_):
        raise ValueError(
            f"the layout of X has the classes {X.layout.classes.tolist()}, but {type(estimator).__name__} was fitted "
            f"with {estimator.classes_.tolist()}. Pass logits of the classes in fit, or fit it again."
        )
    return X


def validate_new_exits(estimator: BaseEstimator, X: Any) -> ExitArray:
    """The X of a method of a fitted estimator, with the columns as in ``fit``; a plain array gets their layout."""
    X = _with_exits(X)
    own, fitted = _own_layout(estimator, X), estimator._layout_in
    # Before scikit-learn's check of the number of columns, whose message says less.
    if own is not None and not _has_same_columns(own, fitted):
        raise ValueError(
            f"X has the layout {own}, but {type(estimator).__name__} was fitted with {fitted}. Pass "
            "logits and features of the same exits as in fit."
        )
    if own is not None:
        check_same_pools(own, fitted, type(estimator).__name__)
    if isinstance(X, ExitArray):
        _check_not_empty(estimator, X)
        return X
    if own is not None and not hasattr(estimator, "feature_names_in_"):
        X = X.to_numpy()  # the names are those of the exits, and say no more than the layout
    array = validate_data(
        estimator, X, reset=False, dtype=[np.float64, np.float32], ensure_all_finite=not any(fitted.n_logits)
    )
    return ExitArray(ArraySource(array), fitted if own is None or own._guessed else own)


def _has_same_columns(own: ExitLayout, fitted: ExitLayout) -> bool:
    """Whether two layouts have the same logits, features and, where both tell them, maps."""
    if any(own.feature_maps) and any(fitted.feature_maps) and own.feature_maps != fitted.feature_maps:
        return False
    return (own.n_logits, own.n_features) == (fitted.n_logits, fitted.n_features)


def _check_not_empty(estimator: BaseEstimator, X: ExitArray) -> None:
    if len(X) == 0:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required by "
            f"{type(estimator).__name__}."
        )


def validate_groups(groups: Any, y: Any, sample_weight: Any = None) -> NDArray[np.int64] | None:
    """Number of the group of each row with positive weight; None without groups."""
    if groups is None:
        return None
    checked = column_or_1d(groups, dtype=object)
    if len(checked) != len(y):
        raise ValueError(f"groups has {len(checked)} values, but there are {len(y)} rows. Give the group of each row.")
    missing = _missing_rows(checked)
    if missing:
        raise ValueError(
            f"groups lacks the group of {len(missing)} rows, the first of which is row {missing[0]}. Give each row a "
            "group. A row that is related to no other row gets a group of its own."
        )
    used = check_sample_weight(sample_weight, y) > 0
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in checked[used]])


def _missing_rows(values: NDArray[Any]) -> list[int]:
    return [row for row, value in enumerate(values.tolist()) if _is_missing(value)]


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas' NA is neither equal to itself nor not
        return True


def _check_class_labels(y: NDArray[Any], layout: ExitLayout) -> None:
    """Raise a ValueError if y is continuous, and warn if it looks like rounded numbers rather than classes."""
    y = y[is_labelled(y, layout)]
    if not len(y):
        return
    missing = _missing_rows(y) if y.dtype.kind in "fO" else []
    if missing:
        raise ValueError(
            f"y has the value {y.tolist()[missing[0]]!r}, which is no label, in {len(missing)} rows. "
            f"{'Leave them out' if layout.n_classes is None else 'Mark rows without a label by -1, or leave them out'}."
        )
    kind = type_of_target(y, input_name="y")
    if kind not in ("binary", "multiclass"):
        cure = (
            "Divide the range of a continuous target into classes first, for example by numpy.digitize."
            if kind == "continuous"
            else f"y has dtype {y.dtype}; convert labels to integers or strings, for example by "
            f"y.astype({'int' if all(isinstance(label, Integral) for label in y.tolist()) else 'str'})."
        )
        raise ValueError(
            f"Unknown label type: {kind}. skexit is for classification only: y holds one class label per row. {cure}"
        )
    if layout.n_classes is None and y.dtype.kind in "iuf" and _looks_continuous(y):
        warn(
            f"y has {len(np.unique(y))} different numbers in {len(y)} rows, and each becomes a class. It looks like "
            "a target of regression, and skexit is for classification only. If the numbers are classes, name them by "
            "stack_exits(..., classes=...). Otherwise divide their range into classes, for example by numpy.digitize."
        )


def _looks_continuous(y: NDArray[Any]) -> bool:
    """Whether nearly all numbers differ, or most are rare and many numbers between them are absent."""
    values = np.unique(y)
    if len(values) <= 20:
        return False
    share_of_range = len(values) / (float(values[-1]) - float(values[0]) + 1)
    return len(values) > len(y) / 2 or (len(values) > len(y) / 4 and share_of_range < 0.8)


def _warn_of_logits_as_features(
    estimator: BaseEstimator, X: ExitArray, classes: NDArray[Any], labels: NDArray[np.int64]
) -> None:
    """Warn if `layout` is a number of exits and the columns of an exit look like logits: the largest is the class."""
    widths = X.layout.n_features
    if not isinstance(estimator.layout, Integral) or set(widths) != {len(classes)} or len(classes) < 2:
        return
    largest = np.argmax(X.features(len(widths) - 1), axis=1)
    share = np.mean(largest == labels)
    by_chance = np.bincount(largest, minlength=len(classes)) @ np.bincount(labels) / len(labels) ** 2
    if share > by_chance + 5 * np.sqrt(by_chance * (1 - by_chance) / len(labels)):
        warn(
            LayoutLostWarning(
                f"layout={estimator.layout} takes the {widths[0]} columns of each exit for features, on which heads "
                f"are trained, but they look like logits: there is one for each of {len(classes)} classes, and at the "
                f"last exit the largest belongs to the label in {share:.0%} of the rows. Declare logits by "
                f"layout=ExitLayout([{widths[0]}] * {len(widths)}), or pass stack_exits(logits)."
            )
        )


def cross_validation_splits(
    cv: Any,
    labels: NDArray[np.int64],
    random_state: int | np.random.RandomState | None,
    groups: NDArray[np.int64] | None = None,
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Training and test rows of each fold, with the rows of a group in one fold.

    An int shuffles, and stratifies where classes allow.
    """
    if isinstance(cv, bool):
        raise ValueError(f"cv={cv!r} must be an integer of at least 2, a splitter, or an iterable of folds.")
    if is_integer(cv):
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
    if not np.array_equal(np.sort(np.concatenate([[], *folds])), np.arange(len(labels))):
        raise ValueError(
            f"cv={cv!r} must put each of the {len(labels)} rows of positive weight into exactly one test fold. Set cv "
            "to an integer, or to KFold() or GroupKFold()."
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
    labelled = np.flatnonzero(labels != UNLABELLED)
    counts = np.bincount(labels[labelled])
    if len(labelled) == 1:
        what = "a single row of positive weight" + (" has a label, and" if len(labels) > 1 else "")
        raise ValueError(f"n_samples=1: {what} cannot be split into folds. Fit on two rows or more.")
    if groups is None:
        n_splits = min(n_splits, len(labelled))
        kind = StratifiedKFold if counts[counts > 0].min() >= n_splits else KFold
        splits = kind(n_splits, shuffle=True, random_state=random_state).split(labelled, labels[labelled])
        return _spread_unlabelled([labelled[test] for _, test in splits], labels)
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
        # A few rows without a label are spread as if they were of the most frequent class.
        few = len(labels) - len(labelled) < n_splits
        strata = np.where(labels == UNLABELLED, counts.argmax() if few else len(counts), labels)
        splits = list(kind.split(labels, strata, groups))
        # With few groups, it may leave a fold without rows.
        if all(len(test) for _, test in splits):
            return splits
    kind = GroupKFold(n_splits, shuffle=True, random_state=random_state)
    return list(kind.split(labels, labels, groups))


def _spread_unlabelled(
    folds: list[NDArray[np.intp]], labels: NDArray[np.int64]
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Training and test rows of folds of the labelled rows, with the others spread evenly over these."""
    fold = np.empty(len(labels), dtype=np.intp)
    for number, rows in enumerate(folds):
        fold[rows] = number
    unlabelled = np.flatnonzero(labels == UNLABELLED)
    fold[np.random.RandomState(len(unlabelled)).permutation(unlabelled)] = np.arange(len(unlabelled)) % len(folds)
    return [(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(len(folds))]


def read_logits(X: ExitArray, k: int, rows: Any = None) -> NDArray[np.float64] | None:
    """Logits of exit `k` in double precision, checked to be finite."""
    logits = X.logits(k, rows)
    return None if logits is None else _finite(logits, k, "logits")


def read_features(X: ExitArray, k: int, rows: Any = None) -> NDArray[np.float64]:
    """Features of exit `k` in double precision, checked to be finite."""
    return _finite(X.features(k, rows), k, "features")


def _finite(block: NDArray[Any], k: int, part: str) -> NDArray[np.float64]:
    # A sum is not finite if an element is not, and takes a tenth of the time of isfinite().all().
    with np.errstate(invalid="ignore"):
        total = np.sum(block, dtype=np.float64)
    if not np.isfinite(total) and not np.isfinite(block).all():
        row = np.flatnonzero(~np.isfinite(block).all(axis=1))[0]
        cure = (
            "Leave out such rows, where numpy.isfinite(X) is False in one of the columns, or look for an overflow in "
            "the network."
        )
        only_masked = part == "logits" and not (np.isnan(block) | np.isposinf(block)).any()
        if only_masked and not np.isneginf(block).all(axis=1).any():
            cure = (
                "All of them are -inf: logarithms of probabilities of 0, or masked classes. Pass probabilities as "
                "stack_exits(probabilities=...) and logits as stack_exits(logits=...), which both put a small "
                "probability in place of 0, or let the network mask by a large negative number such as -1e4."
            )
        raise ValueError(
            f"X contains NaN or infinity: the {part} of exit {k} (first in row {row} of those read). {cure}"
        )
    return block.astype(np.float64, copy=False)


def check_budget(budget: float, layout: ExitLayout, name: str = "budget") -> None:
    """Raise unless the budget, a parameter of this name, is in (0, 1] and pays for the first exit."""
    cost, of_heads = layout.cost_fractions[0], layout.head_fractions[0]
    if check_budget_is_fraction(budget) < cost * (1 - 1e-12):
        including = f", {of_heads:.4g} of it for heads" if of_heads else ""
        cures = [f"Raise it to {at_least(cost)} or more"] if cost <= 1 else []
        cures += ["use heads with fewer features or hidden units"] if of_heads else []
        cure = ", or ".join([*cures, "add an earlier exit"])
        raise ValueError(
            f"{name}={budget!r} is below the cost of the first exit, {at_least(cost)} of the network's{including}. "
            f"{cure[0].upper()}{cure[1:]}."
        )
