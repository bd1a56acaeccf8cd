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
from skexit.utils._labels import check_is_given


@dataclass(frozen=True, eq=False)
class BudgetCurve:
    """Accuracies and mean costs on test folds, for several budgets.

    Parameters
    ----------
    budgets : ndarray of shape (n_budgets,)
        Budgets of the policies, as fractions of the network's cost.
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
    """Accuracy and mean cost of an estimator for several budgets, by cross-validation.

    A policy that has ``with_budget`` is fitted once per fold, at the middle budget, and ``with_budget`` then sets each
    budget. For a :class:`~skexit.ThresholdPolicy`, this gives the same result as a fit at each budget. Policies that
    learn for their budget may be a little less accurate at the other budgets. An estimator without ``with_budget`` is
    fitted once per fold and budget.

    Parameters
    ----------
    estimator : ExitPolicy or Pipeline
        A policy with a parameter `budget`, or a Pipeline that ends in one. It is cloned and does not change; its own
        budget is not used.
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Logits and features of the exits.
    y : array-like of shape (n_samples,)
        Class labels.
    budgets : array-like of shape (n_budgets,)
        Mean costs of a sample, as fractions in (0, 1] of the network's cost.
    cv : int, cross-validation splitter or iterable of (train, test), default=5
        As in :func:`~sklearn.model_selection.cross_validate`. An int makes stratified folds. All budgets have the same
        folds.
    n_jobs : int, default=None
        Number of jobs that run in parallel.
    params : dict of str to array-like of shape (n_samples,), default=None
        Parameters of ``fit`` besides X and y, as in :func:`~sklearn.model_selection.cross_validate`. ``"groups"`` are
        also passed to the splitter.

    Returns
    -------
    BudgetCurve
        Accuracies and costs, in the order of `budgets`.

    Raises
    ------
    ValueError
        If `budgets` is empty, a budget is outside (0, 1] or below the cost of the first exit, or the estimator is not a
        policy with a parameter `budget`.

    See Also
    --------
    sklearn.model_selection.validation_curve : The same for any parameter, without costs.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> from skexit.model_selection import budget_curve
    >>> X, y = load_digits(return_X_y=True)
    >>> curve = budget_curve(ThresholdPolicy(layout=2), X, y, [0.5, 0.7, 0.9], cv=2)
    >>> curve.costs.mean(axis=1).round(1), curve.accuracies.mean(axis=1).round(1)
    (array([0.5, 0.7, 0.9]), array([0.8, 0.8, 0.8]))
    """
    check_is_given(y, "y is None.")
    checked = _check_budgets(budgets)
    parameter, policy = _budget_parameter(estimator)
    # The folds are drawn once, because a splitter with a random state of None would give each budget other folds.
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
    """Name of the parameter of the estimator that is the policy's budget, and the policy."""
    if isinstance(estimator, Pipeline):
        parameter, policy = _budget_parameter(estimator[-1])
        return f"{estimator.steps[-1][0]}__{parameter}", policy
    if "budget" not in estimator.get_params(deep=False):
        raise ValueError(
            f"{type(estimator).__name__} has no parameter budget. Pass a policy that has one, such as ThresholdPolicy, "
            "a Pipeline that ends in one, or the best_estimator_ of a search."
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
