"""Choosing settings under a budget: scorers, the choice itself, and curves over budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.metrics import accuracy_score
from sklearn.model_selection import check_cv, cross_validate
from sklearn.pipeline import Pipeline

from skexit.policies._access import policy_and_data
from skexit.utils._checks import at_least, check_budget_is_fraction

__all__ = ["BudgetCurve", "accuracy_and_cost", "best_within", "budget_curve", "neg_mean_cost_scorer", "utility_scorer"]

#: Mean costs are compared up to this rounding error.
_TOLERANCE = 1e-9


def accuracy_and_cost(lam: float = 0.0) -> Callable[[Any, Any, ArrayLike], dict[str, float]]:
    """Scoring by accuracy, mean cost and utility at once.

    Parameters
    ----------
    lam : float, default=0.0
        Price of the whole network, in units of accuracy.

    Returns
    -------
    callable
        The `scoring` of :class:`~sklearn.model_selection.GridSearchCV`,
        :class:`~sklearn.model_selection.RandomizedSearchCV` and
        :func:`~sklearn.model_selection.cross_validate`. Called with a fitted estimator, X and y, it
        gives the dict of ``"accuracy"``, ``"mean_cost"`` (a fraction of the network's cost) and
        ``"utility"``, accuracy minus `lam` times mean cost. The estimator is a policy, a
        :class:`~sklearn.pipeline.Pipeline` that ends in one, or a search over either. It can be
        pickled.

    Raises
    ------
    ValueError
        If lam is negative or not finite; when called, if the estimator is no policy.

    See Also
    --------
    best_within : Which setting to take, as `refit` of the search.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import cross_validate
    >>> from skexit import ThresholdPolicy
    >>> from skexit.model_selection import accuracy_and_cost
    >>> X, y = load_digits(return_X_y=True)
    >>> results = cross_validate(ThresholdPolicy(budget=0.6, layout=2), X, y, scoring=accuracy_and_cost(lam=0.1))
    >>> results["test_mean_cost"].mean().round(1), results["test_accuracy"].mean().round(1)
    (np.float64(0.6), np.float64(0.8))
    """
    return partial(_accuracy_and_cost, lam=_check_price(lam))


def utility_scorer(lam: float) -> Callable[[Any, Any, ArrayLike], float]:
    """Scoring by accuracy minus `lam` times mean cost.

    Parameters
    ----------
    lam : float
        Price of the whole network, in units of accuracy.

    Returns
    -------
    callable
        The `scoring` of searches that take a single one, such as
        :class:`~sklearn.model_selection.HalvingGridSearchCV`. For which estimators, see
        :func:`accuracy_and_cost`. It can be pickled.

    Raises
    ------
    ValueError
        If lam is negative or not finite; when called, if the estimator is no policy.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import StaticExit
    >>> from skexit.model_selection import utility_scorer
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = StaticExit(exit=0, layout=2).fit(X, y)
    >>> bool(utility_scorer(lam=0.2)(policy, X, y) == policy.score(X, y) - 0.2 * 0.5)
    True
    """
    return partial(_utility, lam=_check_price(lam))


def neg_mean_cost_scorer(estimator: Any, X: Any, y: ArrayLike | None = None) -> float:
    """Minus the mean cost of a sample: a scorer, for which higher is better.

    Parameters
    ----------
    estimator : ExitPolicy, Pipeline or search
        Fitted; a policy, a Pipeline that ends in one, or a search over either.
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Logits and features of the exits.
    y : ignored
        Not used.

    Returns
    -------
    float
        Mean cost as a fraction of the network's cost, negated.

    Raises
    ------
    ValueError
        If the estimator is no policy.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import StaticExit
    >>> from skexit.model_selection import neg_mean_cost_scorer
    >>> X, y = load_digits(return_X_y=True)
    >>> neg_mean_cost_scorer(StaticExit(exit=0, layout=2).fit(X, y), X)
    -0.5
    """
    policy, X = policy_and_data(estimator, X)
    return -float(policy.mean_cost(X))


def _accuracy_and_cost(estimator: Any, X: Any, y: ArrayLike, *, lam: float) -> dict[str, float]:
    accuracy, mean_cost = _measure(*policy_and_data(estimator, X), y)
    return _Scores({"accuracy": accuracy, "mean_cost": mean_cost, "utility": accuracy - lam * mean_cost})


class _Scores(dict[str, float]):
    """Scores by name. A search whose `refit` is `best_within` looks there for that, in its ``score``."""

    def __missing__(self, refit: Any) -> float:
        if getattr(refit, "func", None) is _best_within:
            return self[refit.keywords["score"]]
        raise KeyError(refit)


def _utility(estimator: Any, X: Any, y: ArrayLike, *, lam: float) -> float:
    return _accuracy_and_cost(estimator, X, y, lam=lam)["utility"]


def _check_price(lam: float) -> float:
    if not isinstance(lam, Real) or not 0 <= lam < np.inf:
        raise ValueError(f"lam={lam!r} must be a finite number, 0 or more: the price of the whole network.")
    return float(lam)


def _measure(policy: Any, X: Any, y: ArrayLike) -> tuple[float, float]:
    return float(accuracy_score(y, policy.predict(X))), float(policy.mean_cost(X))


def best_within(
    budget: float, *, score: str = "accuracy", cost: str = "mean_cost", one_standard_error: bool = False
) -> Callable[[Mapping[str, Any]], int]:
    """Take the setting of a search with the best score, the accuracy, whose mean cost stays within a budget.

    A setting is within the budget if its cost, as a mean over the test folds, is at most that (up
    to a rounding error of 1e-9). A policy meets its own budget on the rows it was fitted on, and on
    test folds costs more than that about as often as less: search over somewhat lower budgets, too.

    Parameters
    ----------
    budget : float
        Highest mean cost of a sample, a fraction in (0, 1] of the network's cost.
    score : str, default="accuracy"
        Name of the score among those of the search, such as ``"f1"`` for ``scoring={"f1": "f1_macro",
        "mean_cost": neg_mean_cost_scorer}``. Higher is better.
    cost : str, default="mean_cost"
        Name of the mean cost, or of minus the mean cost, among the scores.
    one_standard_error : bool, default=False
        Take the cheapest setting whose score is at most one standard error below that of the best one: its standard
        deviation over the folds, with n - 1 degrees of freedom, over the square root of their number n.

    Returns
    -------
    callable
        The `refit` of :class:`~sklearn.model_selection.GridSearchCV` or
        :class:`~sklearn.model_selection.RandomizedSearchCV` with ``scoring=accuracy_and_cost()``, or a dict
        of scorers. Called with ``cv_results_``, it gives the index of the setting. Of settings that are
        equally good it takes the cheapest, and of these the first; settings that could not be
        scored (nan) are left out. It can be pickled.

    Raises
    ------
    ValueError
        If the budget is not in (0, 1]; when called, if no setting is within it, the search has no scores
        of these names, or a standard error is asked for of a single fold.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skexit import ThresholdPolicy
    >>> from skexit.model_selection import accuracy_and_cost, best_within
    >>> X, y = load_digits(return_X_y=True)
    >>> grid = {"budget": [0.6, 0.7, 0.8, 0.9]}
    >>> policy = ThresholdPolicy(layout=2)
    >>> search = GridSearchCV(policy, grid, scoring=accuracy_and_cost(), refit=best_within(0.75)).fit(X, y)
    >>> search.best_params_
    {'budget': 0.7}
    """
    return partial(
        _best_within,
        budget=check_budget_is_fraction(budget),
        score=score,
        cost=cost,
        one_standard_error=bool(one_standard_error),
    )


def _best_within(
    cv_results: Mapping[str, Any], *, budget: float, score: str, cost: str, one_standard_error: bool
) -> int:
    # Scorers have it negated, as higher must be better for them.
    scores, costs = _mean_scores(cv_results, score), np.abs(_mean_scores(cv_results, cost))
    scored = np.isfinite(scores) & np.isfinite(costs)
    if not scored.any():
        raise ValueError("no setting could be scored: all are nan. Search with error_score='raise' to see why.")
    allowed = np.flatnonzero(scored & (costs <= budget + _TOLERANCE))
    if len(allowed) == 0:
        cheapest = costs[scored].min()
        cures = [f"Raise it to {at_least(cheapest)} or more"] if cheapest <= 1 else []
        cure = ", or ".join([*cures, "search over cheaper settings"])
        raise ValueError(
            f"budget={budget!r} is met by no setting: the cheapest costs {at_least(cheapest)} of the network's cost. "
            f"{cure[0].upper()}{cure[1:]}."
        )
    best = allowed[np.lexsort((costs[allowed], -scores[allowed]))[0]]
    if not one_standard_error:
        return int(best)
    near = allowed[scores[allowed] >= scores[best] - _standard_error(cv_results, score, best)]
    return int(near[np.lexsort((-scores[near], costs[near]))[0]])


def _mean_scores(cv_results: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    key = f"mean_test_{name}"
    if key not in cv_results:
        known = [key.removeprefix("mean_test_") for key in cv_results if key.startswith("mean_test_")]
        raise ValueError(
            f"cv_results_ has no {key!r}; its scores are {known}. Search with scoring=accuracy_and_cost(), or name "
            "yours by score= and cost= of best_within."
        )
    return np.asarray(cv_results[key], dtype=np.float64)


def _standard_error(cv_results: Mapping[str, Any], score: str, setting: int) -> float:
    """Standard error of a setting's mean score over the folds."""
    n_folds = sum(name.startswith("split") and name.endswith(f"_test_{score}") for name in cv_results)
    if n_folds < 2:
        raise ValueError("one_standard_error=True needs two folds or more; search with cv=2 or more folds.")
    scores = [cv_results[f"split{fold}_test_{score}"][setting] for fold in range(n_folds)]
    return float(np.std(scores, ddof=1) / np.sqrt(n_folds))


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
        accuracy, cost = _measure(policy.with_budget(budget), X, y)
        scores.update({f"accuracy_{index}": accuracy, f"cost_{index}": cost})
    return scores
