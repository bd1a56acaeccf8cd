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
    """Measure fitted policies on labelled rows, and write a report of one HTML file.

    The page begins with the compute that is saved and the accuracy that is lost. Its reader can select any budget in
    steps of 5 %, as far as the policies have ``with_budget``. The file holds its pictures, and neither scripts nor
    links to other files.

    A policy counts as within a budget if its mean cost on the rows is at most the budget; or if the policy was set to
    the budget or a lower one, and its cost on the rows is above it by no more than chance, so that the budget is in the
    95 % interval.

    Parameters
    ----------
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Rows that neither network nor policies were fitted on.
    y : array-like of shape (n_samples,)
        Class labels. Rows without one, -1, are left out, unless -1 is a class.
    policies : dict of str to ExitPolicy or Pipeline
        Fitted policies; a Pipeline ends in a policy.
    out : str or path-like
        File to write.
    budgets : sequence of float, default=()
        Budgets that are asked about, as fractions in (0, 1] of what the network costs without exits; the first one is
        selected when the page opens. Each policy that has ``with_budget`` is measured at each of them, the others as
        they are. With none, all policies are measured as they are.
    source : str, default=None
        Where the rows come from, for the reader.
    samples_per_day : float, default=1_000_000
        Samples a day for which savings are computed, by :func:`~skexit.metrics.daily_savings`.
    network_ms : float, default=None
        Milliseconds of the plain network for a sample, at the batch size that you use; then the page says what time is
        saved. By default, the cost of the network where costs are in milliseconds.
    price_per_hour : float, default=None
        What an hour of the machine costs; then the page says what money is saved.
    random_state : int, default=0
        Seeds the split for calibration.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If there are no labels or no policies, a policy does not fit the rows, a budget is outside (0, 1] or below the
        first exit's cost, or a number for the savings is negative or not finite.
    FileNotFoundError
        If there is no folder to write the file into.
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
    if y is None:
        raise ValueError("y is None: a report needs the labels of the rows.")
    if not policies:
        raise ValueError("policies is empty; give at least one fitted policy.")
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
