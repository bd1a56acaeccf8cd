"""Checks of parameters of metrics and estimators."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from skexit.utils._labels import check_is_given, has_label_among_answers
from skexit.utils._sklearn import _check_sample_weight


def at_least(value: float) -> str:
    """The value with four digits, rounded up, for errors that ask for at least this value.

    >>> at_least(1 / 3), at_least(0.1)
    ('0.3334', '0.1')
    """
    return _four_digits(value, ROUND_CEILING)


def at_most(value: float) -> str:
    """The value with four digits, rounded down, for errors that ask for at most this value."""
    return _four_digits(value, ROUND_FLOOR)


def _four_digits(value: float, rounding: str) -> str:
    # Twelve digits first, because 0.1 in binary is slightly more than 0.1.
    return f"{Context(prec=4, rounding=rounding).create_decimal(f'{value:.12g}'):.4g}"


def is_integer(value: Any) -> bool:
    """Whether a value is an integer. True and False are not, although Python counts them as integers."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_positive(name: str, value: Any) -> int:
    """The value of the parameter `name`, checked to be an integer of at least 1."""
    if not is_integer(value):
        raise ValueError(f"{name}={value!r} must be an integer of at least 1.")
    if value < 1:
        raise ValueError(f"{name}={value!r} must be at least 1.")
    return int(value)


def check_labels(y_true: ArrayLike) -> NDArray[Any]:
    """Class labels as an array of shape (n_samples,), without NaN."""
    check_is_given(y_true, "y_true is None.")
    return check_array(column_or_1d(y_true), ensure_2d=False, dtype=None, input_name="y_true")


def check_sample_weight(sample_weight: Any, X: Any) -> NDArray[np.float64]:
    """Weights of the rows of X, by default 1. Raises a ValueError if one is negative, or all are zero."""
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    if not weight.any():  # scikit-learn 1.9 and later raise this error themselves
        raise ValueError(
            "sample_weight is zero for every row; give at least one row a positive weight, or leave sample_weight out."
        )
    return np.asarray(weight)


def check_budget_is_fraction(budget: Any) -> float:
    """The budget, checked to be in (0, 1]."""
    if not isinstance(budget, Real) or isinstance(budget, bool) or not 0 < float(budget) <= 1:
        raise ValueError(f"budget={budget!r} must be in (0, 1]: it is a fraction of the network's cost.")
    return float(budget)


def right_answers(y_true: ArrayLike, y_pred: ArrayLike) -> NDArray[np.bool_]:
    """Whether each prediction is correct; predictions have the shape (n_samples, n_columns)."""
    labels = check_labels(y_true)
    answers = check_array(y_pred, dtype=None, input_name="y_pred")
    check_consistent_length(labels, answers)
    # A string never equals a number, so that every prediction would be wrong.
    if {labels.dtype.kind in "US", answers.dtype.kind in "US"} == {True, False} and "O" not in (
        labels.dtype.kind,
        answers.dtype.kind,
    ):
        raise ValueError(
            f"y_true has dtype {labels.dtype} and y_pred {answers.dtype}; pass class labels of the same kind, such "
            "as y_true.astype(y_pred.dtype)."
        )
    return np.asarray(answers == labels[:, None], dtype=bool)


def answers_with_labels(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which answers are right in the rows that have a label, and which rows these are."""
    right = right_answers(y_true, y_pred)
    labelled = has_label_among_answers(check_labels(y_true), np.asarray(y_pred))
    return right[labelled], labelled


def check_exits(exits: ArrayLike, n_exits: int) -> NDArray[np.int64]:
    """Exits as an array of shape (n_samples,), checked to be whole numbers from 0 to ``n_exits - 1``."""
    checked = column_or_1d(exits)
    if checked.dtype.kind not in "iu":
        raise ValueError(f"exits has dtype {checked.dtype}; pass whole numbers, as predict_exit returns.")
    outside = checked[(checked < 0) | (checked >= n_exits)]
    if len(outside):
        raise ValueError(
            f"exits has the exit {outside[0]}, but there are {n_exits} exits: pass numbers from 0 to {n_exits - 1}."
        )
    return checked.astype(np.int64, copy=False)


def check_costs(costs: ArrayLike, n_exits: int) -> NDArray[np.float64]:
    """Cumulative costs of the exits."""
    checked = np.asarray(costs, dtype=np.float64)
    if checked.shape != (n_exits,):
        raise ValueError(f"costs has shape {checked.shape}; pass one cost for each of the {n_exits} exits of y_pred.")
    if not np.isfinite(checked).all() or checked[0] <= 0 or (np.diff(checked) <= 0).any():
        raise ValueError(
            f"costs={checked.tolist()} must be positive and increase from exit to exit; pass policy.costs_."
        )
    return checked
