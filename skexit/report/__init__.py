"""A report on fitted policies: one HTML file with tables and plots."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skexit.data._labels import labelled_rows
from skexit.policies._access import steps_of
from skexit.report._answers import Day
from skexit.report._calibration import measure_calibration
from skexit.report._measures import best_within, candidates_at, measure_exits, measure_network, measure_policies
from skexit.report._page import Request, render
from skexit.utils._checks import check_budget_is_fraction
from skexit.utils._files import refuse_folder
from skexit.utils._labels import check_is_given
from skexit.utils._optional import import_pyplot

__all__ = ["write_report"]


def write_report(
    X: Any,
    y: ArrayLike | None,
    policies: Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    budgets: Sequence[float] = (),
    source: str | None = None,
    samples_per_day: float = 1_000_000,
    network_ms: float | None = None,
    price_per_hour: float | None = None,
    random_state: int = 0,
) -> Path:
    """Measure fitted policies on labelled rows, and write a report to one HTML file.

    The page begins with the saved compute and the lost accuracy. If policies have ``with_budget``, the reader can
    select budgets in steps of 5 %. The file contains its plots. It has no scripts and no links to other files.

    A policy is within a budget if its mean cost on the rows is at most the budget. A policy that costs slightly more is
    within the budget too, if it was set to this budget or a lower one and the 95 % interval of its cost contains the
    budget.

    Parameters
    ----------
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Rows that neither the network nor the policies were fitted on.
    y : array-like of shape (n_samples,)
        Class labels. Rows with the label -1 are left out, unless -1 is a class.
    policies : dict of str to ExitPolicy or Pipeline
        Fitted policies, or fitted Pipelines that end in a policy.
    out : str or path-like
        File to write.
    budgets : sequence of float, default=()
        Budgets as fractions in (0, 1] of the network's cost without exits. The page opens with the first one. Each
        policy that has ``with_budget`` is measured at each of these budgets, other policies as they are. By default,
        the page opens with all policies as they are.
    source : str, default=None
        Name of the data, for the reader.
    samples_per_day : float, default=1_000_000
        Number of samples per day, for the savings of :func:`~skexit.metrics.daily_savings`.
    network_ms : float, default=None
        Milliseconds of the plain network per sample, at the batch size that you use. The page then has the saved time.
        By default, the cost of the network if costs are in milliseconds.
    price_per_hour : float, default=None
        Price of an hour of the machine. The page then has the saved money.
    random_state : int, default=0
        Seeds the split for calibration.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If there are no labels or no policies, the layout of the rows differs from that of a policy, a budget is outside
        (0, 1] or below the cost of the first exit, or a number for the savings is negative or not finite.
    TypeError
        If `policies` is not a dict.
    FileNotFoundError
        If the folder of `out` does not exist.
    IsADirectoryError
        If `out` is a folder.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> from skexit.report import write_report
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = ThresholdPolicy(budget=0.7, layout=2).fit(X[:900], y[:900])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = write_report(X[900:], y[900:], {"thresholds": policy}, f"{folder}/report.html")
    ...     "thresholds" in file.read_text(encoding="utf-8")
    True
    """
    path = Path(out)
    import_pyplot()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into; make it first.")
    refuse_folder(path, "out")
    check_is_given(y, "y is None: a report needs the labels of the rows.")
    if policies and not isinstance(policies, Mapping):
        raise TypeError(
            f"policies is a {type(policies).__name__}; give a dict of names and fitted policies, such as "
            "{'my policy': policy}."
        )
    if not policies:
        raise ValueError("policies is empty; give at least one fitted policy.")
    if np.ndim(budgets) != 1:
        raise ValueError(f"budgets={budgets!r} must be a list of budgets, such as [0.5].")
    asked = [check_budget_is_fraction(budget) for budget in dict.fromkeys(budgets)]
    classes = getattr(steps_of(next(iter(policies.values())))[-1], "classes_", None)
    # Without classes it is no fitted policy, and measure_policies raises the error.
    X, labels = (X, np.asarray(y)) if classes is None else labelled_rows(X, y, classes)
    candidates = measure_policies(policies, X, labels, asked)
    wanted: list[float | None] = [*asked] or [None]
    shown = [each for each in candidates if each.is_fixed or each.set_to in wanted]
    chosen = [best_within(candidates_at(candidates, budget), budget) for budget in wanted]
    # Details are of the first budget that a policy meets; where none does, of the most accurate policy.
    best = next((candidate for candidate in chosen if candidate is not None), None) or best_within(shown, None)
    assert best is not None
    static = measure_exits(best, labels)
    network = measure_network(X, labels, best)
    calibration = measure_calibration(best, labels, random_state)
    request = Request(
        {name: repr(estimator) for name, estimator in policies.items()},
        tuple(asked),
        source,
        Day(samples_per_day, network_ms, price_per_hour),
        random_state,
    )
    path.write_text(render(request, labels, candidates, shown, best, static, network, calibration), encoding="utf-8")
    return path
