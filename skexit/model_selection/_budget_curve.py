"""Accuracy and cost over budgets, by cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.model_selection import check_cv, cross_validate
from sklearn.pipeline import Pipeline

from skexit.model_selection._scoring import accuracy_and_cost, measure
from skexit.policies._access import policy_and_data


@dataclass(frozen=True, eq=False)
class BudgetCurve:
    """Accuracies and mean costs over budgets, on test folds.

    Parameters
    ----------
    budgets : ndarray of shape (n_budgets,)
        Budgets that the policies were given, as fractions of the network's cost.
    accuracies : ndarray of shape (n_budgets, n_folds)
        Accuracies on the test folds.
    costs : ndarray of shape (n_budgets, n_folds)
        Mean costs on the test folds, as fractions of the network's cost.
    """

    budgets: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    costs: NDArray[np.float64]


def budget_curve(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    budgets: ArrayLike,
    *,
    cv: Any = 5,
    n_jobs: int | None = None,
    params: dict[str, Any] | None = None,
) -> BudgetCurve:
    """Accuracy and mean cost of an estimator over budgets, by cross-validation.

    A policy that has ``with_budget`` is fitted once a fold, at the middle one of the budgets, and then given each of
    them. For a :class:`~skexit.ThresholdPolicy` this is the same as fitting at each budget; policies that learn for
    their budget lose what ``with_budget`` loses. An estimator without ``with_budget`` is fitted once a fold and budget.

    Parameters
    ----------
    estimator : ExitPolicy or Pipeline
        A policy with a parameter `budget`, or a Pipeline that ends in one. What its budget is does
        not matter, and it stays as it is.
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Logits and features of the exits.
    y : array-like of shape (n_samples,)
        Class labels.
    budgets : array-like of shape (n_budgets,)
        Mean costs, fractions in (0, 1] of the network's cost.
    cv : int, cross-validation splitter or iterable of (train, test), default=5
        As of :func:`~sklearn.model_selection.cross_validate`; an int stratifies. All budgets have the same folds.
    n_jobs : int, default=None
        Number of folds that are fitted at once.
    params : dict of str to array-like of shape (n_samples,), default=None
        What ``fit`` takes besides X and y, as for :func:`~sklearn.model_selection.cross_validate`. The
        folds get its ``"groups"``, too.

    Returns
    -------
    BudgetCurve
        In the order of `budgets`.

    Raises
    ------
    ValueError
        If budgets is empty or has one outside (0, 1] or below the first exit's cost, or the
        estimator has no parameter `budget` or is no policy.

    See Also
    --------
    sklearn.model_selection.validation_curve : The same for any parameter, without costs.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> from skexit.model_selection import budget_curve
    >>> X, y = load_digits(return_X_y=True)
    >>> curve = budget_curve(ThresholdPolicy(layout=2), X, y, [0.5, 0.7, 0.9])
    >>> curve.costs.mean(axis=1).round(1), curve.accuracies.mean(axis=1).round(1)
    (array([0.5, 0.7, 0.9]), array([0.8, 0.8, 0.8]))
    """
    checked = _check_budgets(budgets)
    parameter, policy = _budget_parameter(estimator)
    # The folds are drawn once: a splitter that shuffles by chance would part the budgets.
    folds = list(check_cv(cv, y, classifier=True).split(X, y, (params or {}).get("groups")))
    cross_validated = partial(_cross_validate, estimator, parameter, X=X, y=y, cv=folds, n_jobs=n_jobs, params=params)
    if hasattr(policy, "with_budget"):
        middle = float(np.sort(checked)[len(checked) // 2])
        scoring = partial(_score_at_budgets, budgets=checked.tolist())
        scores = cross_validated(middle, scoring=scoring)
        accuracies, costs = (
            np.array([scores[f"test_{name}_{index}"] for index in range(len(checked))]) for name in ("accuracy", "cost")
        )
        return BudgetCurve(checked, accuracies, costs)
    by_budget = [cross_validated(budget, scoring=accuracy_and_cost()) for budget in checked.tolist()]
    accuracies, costs = (
        np.array([scores[name] for scores in by_budget]) for name in ("test_accuracy", "test_mean_cost")
    )
    return BudgetCurve(checked, accuracies, costs)


def _check_budgets(budgets: ArrayLike) -> NDArray[np.float64]:
    checked = np.asarray(budgets, dtype=np.float64)
    if checked.ndim != 1 or len(checked) == 0:
        raise ValueError(f"budgets has shape {checked.shape}; pass a list of one budget or more.")
    outside = checked[~((checked > 0) & (checked <= 1))]
    if len(outside):
        raise ValueError(f"budgets has {outside[0]!s}; pass numbers in (0, 1], fractions of the network's cost.")
    return checked


def _budget_parameter(estimator: Any) -> tuple[str, Any]:
    """Name of the budget among the estimator's parameters, and the policy whose it is."""
    if isinstance(estimator, Pipeline):
        parameter, policy = _budget_parameter(estimator[-1])
        return f"{estimator.steps[-1][0]}__{parameter}", policy
    if "budget" not in estimator.get_params(deep=False):
        raise ValueError(
            f"{type(estimator).__name__} has no parameter budget. Pass a policy that has one, such as ThresholdPolicy, "
            "or a Pipeline that ends in one; best_estimator_ of a search."
        )
    return "budget", estimator


def _cross_validate(estimator: Any, parameter: str, budget: float, **arguments: Any) -> dict[str, Any]:
    fitted_at = clone(estimator).set_params(**{parameter: budget})
    results: dict[str, Any] = cross_validate(fitted_at, error_score="raise", **arguments)
    return results


def _score_at_budgets(estimator: Any, X: Any, y: ArrayLike, *, budgets: list[float]) -> dict[str, float]:
    """Scores of a fitted policy at each of the budgets, without fitting it again."""
    policy, X = policy_and_data(estimator, X)
    scores = {}
    for index, budget in enumerate(budgets):
        accuracy, cost = measure(policy.with_budget(budget), X, y)
        scores.update({f"accuracy_{index}": accuracy, f"cost_{index}": cost})
    return scores
