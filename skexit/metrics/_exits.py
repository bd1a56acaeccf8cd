"""Results of each exit: how many samples stop there, its accuracy, and the comparison with the oracle."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, column_or_1d

from skexit.uncertainty._labels import index_of_true_labels
from skexit.utils._checks import answers_with_labels, check_costs, check_exits, check_labels, is_integer
from skexit.utils._docstring import shared_docs
from skexit.utils._labels import classes_in, has_label

_COLUMNS = ("share", "cost", "accuracy_leaving", "accuracy_all", "samples")
_HEADINGS = ("share", "cost", "accuracy leaving", "accuracy all", "samples")


@shared_docs
def exit_report(
    y_true: ArrayLike, y_pred: ArrayLike, exits: ArrayLike, costs: ArrayLike, *, output: str = "text", digits: int = 3
) -> Any:
    """How many samples stop at each exit, at what cost, and the accuracy of the exit.

    Parameters
    ----------
    %(answers)s
    output : {"text", "dict", "frame"}, default="text"
        A table to print, a dict of dicts, or a pandas DataFrame.
    digits : int, default=3
        Decimals in the text.

    Returns
    -------
    str, dict of str to dict of str to float, or pandas.DataFrame
        Rows ``"exit 0"``, ``"exit 1"``, ..., ``"total"``, with the columns

        - ``share``: the share of the samples that stop at the exit;
        - ``cost``: the cost of stopping there, in the unit of `costs`;
        - ``accuracy_leaving``: the accuracy of the exit on the samples that stop there; nan if none does;
        - ``accuracy_all``: the accuracy of the exit on all samples;
        - ``samples``: the number of samples that stop there.

        In the row ``"total"``, each sample counts at its exit: ``cost`` is the mean cost, and both
        accuracies are that of the policy.

    Raises
    ------
    ValueError
        If the shapes do not agree, an exit does not exist, the costs do not increase, or output or
        digits has another value than those above.

    Examples
    --------
    >>> from skexit.metrics import exit_report
    >>> y_pred = [[0, 0], [1, 1], [0, 1], [1, 1]]  # four samples, two exits
    >>> print(exit_report([0, 1, 1, 0], y_pred, exits=[0, 0, 1, 0], costs=[0.25, 1.0]))
            share   cost  accuracy leaving  accuracy all  samples
    exit 0  0.750  0.250             0.667         0.500        3
    exit 1  0.250  1.000             1.000         0.750        1
     total  1.000  0.438             0.750         0.750        4
    """
    if output not in ("text", "dict", "frame"):
        raise ValueError(f"output={output!r} must be 'text', 'dict' or 'frame'.")
    if not is_integer(digits) or digits < 0:
        raise ValueError(f"digits={digits!r} must be a whole number, 0 or more.")
    rows = _report_rows(y_true, y_pred, exits, costs)
    if output == "text":
        return _as_text(rows, int(digits))
    if output == "dict":
        return rows
    import pandas as pd

    return pd.DataFrame.from_dict(rows, orient="index", columns=list(_COLUMNS)).astype({"samples": np.int64})


def _report_rows(
    y_true: ArrayLike, y_pred: ArrayLike, exits: ArrayLike, costs: ArrayLike
) -> dict[str, dict[str, float]]:
    right, stops, exit_costs = _check_answers(y_true, y_pred, exits, costs)
    rows = {}
    for k, cost in enumerate(exit_costs):
        leaving = stops == k
        accuracy = float(right[leaving, k].mean()) if leaving.any() else float("nan")
        values = (float(leaving.mean()), float(cost), accuracy, float(right[:, k].mean()), int(leaving.sum()))
        rows[f"exit {k}"] = dict(zip(_COLUMNS, values, strict=True))
    accuracy = float(right[np.arange(len(stops)), stops].mean())
    total = (1.0, float(exit_costs[stops].mean()), accuracy, accuracy, len(stops))
    return {**rows, "total": dict(zip(_COLUMNS, total, strict=True))}


def _as_text(rows: dict[str, dict[str, float]], digits: int) -> str:
    names = max(len(name) for name in rows)
    widths = [max(len(heading), digits + 2) for heading in _HEADINGS]
    widths[1] = max(widths[1], *(len(f"{row['cost']:.{digits}f}") for row in rows.values()))
    widths[-1] = max(widths[-1], len(str(rows["total"]["samples"])))
    lines = [" " * names + "".join(f"  {heading:>{w}}" for heading, w in zip(_HEADINGS, widths, strict=True))]
    for name, row in rows.items():
        cells = [f"  {row[column]:>{w}.{digits}f}" for column, w in zip(_COLUMNS[:-1], widths, strict=False)]
        lines.append(f"{name:>{names}}" + "".join(cells) + f"  {row['samples']:>{widths[-1]}d}")
    return "\n".join(lines)


def _check_answers(
    y_true: ArrayLike, y_pred: ArrayLike, exits: ArrayLike, costs: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    """Whether each exit is correct for each sample, where the samples stop, and the costs of the exits."""
    right, labelled = answers_with_labels(y_true, y_pred)
    stops = check_exits(exits, right.shape[1])
    check_consistent_length(labelled, stops)
    return right, stops[labelled], check_costs(costs, right.shape[1])


def exit_distribution_by_class(
    y_true: ArrayLike, exits: ArrayLike, *, n_exits: int, labels: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Shares of the exits among the samples of each class.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Class labels. Rows with the label -1 are left out if `labels` are given and do not contain -1.
    exits : array-like of shape (n_samples,) of int
        Exit at which each sample stops, as returned by ``policy.predict_exit(X)``.
    n_exits : int
        Number of exits.
    labels : array-like of shape (n_classes,), default=None
        Class of each row of the result. By default the sorted classes of `y_true`.

    Returns
    -------
    ndarray of shape (n_classes, n_exits)
        Rows sum to one; nan if a class has no sample.

    Raises
    ------
    ValueError
        If the shapes do not agree, an exit does not exist, y_true has a class that is not in labels, or
        labels has a class twice.

    Examples
    --------
    >>> from skexit.metrics import exit_distribution_by_class
    >>> exit_distribution_by_class(["cat", "dog", "cat"], [0, 1, 1], n_exits=2)
    array([[0.5, 0.5],
           [0. , 1. ]])
    """
    if not is_integer(n_exits) or n_exits < 1:
        raise ValueError(f"n_exits={n_exits!r} must be a positive integer.")
    true_labels, stops = check_labels(y_true), check_exits(exits, int(n_exits))
    check_consistent_length(true_labels, stops)
    classes = classes_in(true_labels) if labels is None else column_or_1d(labels)
    labelled = has_label(true_labels, classes)
    true_labels, stops = true_labels[labelled], stops[labelled]
    index = index_of_true_labels(true_labels, classes)
    shares = np.full((len(classes), int(n_exits)), np.nan)
    for row in range(len(classes)):
        own = stops[index == row]
        if len(own):
            shares[row] = np.bincount(own, minlength=int(n_exits)) / len(own)
    return shares


class OracleRegret(NamedTuple):
    """Differences in accuracy and cost between the oracle and a policy.

    Parameters
    ----------
    accuracy : float
        Accuracy of the oracle minus that of the policy; never negative.
    cost : float
        Mean cost of the policy minus that of the oracle, in the unit of the costs.
        Negative if the policy stops before the first correct exit.
    """

    accuracy: float
    cost: float


@shared_docs
def oracle_regret(y_true: ArrayLike, y_pred: ArrayLike, exits: ArrayLike, costs: ArrayLike) -> OracleRegret:
    """How far a policy is from the oracle, which stops each sample at the first exit that predicts its class.

    If no exit does, the oracle stops at the first.

    Parameters
    ----------
    %(answers)s

    Returns
    -------
    OracleRegret
        A named tuple of ``accuracy``, that of the oracle minus that of the policy, and ``cost``,
        the mean cost of the policy minus that of the oracle, in the unit of `costs`.

    Raises
    ------
    ValueError
        If the shapes do not agree, an exit does not exist, or the costs do not increase.

    See Also
    --------
    skexit.oracle : The oracle's exits, from X.

    Examples
    --------
    >>> from skexit.metrics import oracle_regret
    >>> y_pred = [[0, 0], [1, 1], [0, 1], [1, 1]]  # four samples, two exits
    >>> oracle_regret([0, 1, 1, 0], y_pred, exits=[0, 1, 0, 0], costs=[0.5, 1.0])
    OracleRegret(accuracy=0.25, cost=0.0)
    """
    right, stops, exit_costs = _check_answers(y_true, y_pred, exits, costs)
    accuracy = right[np.arange(len(stops)), stops].mean()
    best_stops = np.argmax(right, axis=1)
    return OracleRegret(
        accuracy=float(right.any(axis=1).mean() - accuracy),
        cost=float((exit_costs[stops] - exit_costs[best_stops]).mean()),
    )
