"""The choice of the best setting of a search within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.utils._checks import at_least, check_budget_is_fraction
from skexit.utils._module_names import set_module

#: Mean costs are compared up to this rounding error.
_TOLERANCE = 1e-9


def best_within(
    budget: float, *, score: str = "accuracy", cost: str = "mean_cost", one_standard_error: bool = False
) -> Callable[[Mapping[str, Any]], int]:
    """Choose the setting of a search with the best score, by default the accuracy, within a budget.

    A setting is within the budget if its mean cost over the test folds is at most the budget, up to a rounding error of
    1e-9. A policy meets its own budget on the rows that it was fitted on. On test folds, it costs more in about half of
    all cases. So include somewhat lower budgets in the search.

    Parameters
    ----------
    budget : float
        Highest mean cost of a sample, a fraction in (0, 1] of the network's cost.
    score : str, default="accuracy"
        Name of the score in the search, such as ``"f1"`` for ``scoring={"f1": "f1_macro",
        "mean_cost": neg_mean_cost_scorer}``. Higher is better.
    cost : str, default="mean_cost"
        Name of the mean cost in the search. The values may be negative, as those of :func:`neg_mean_cost_scorer`.
    one_standard_error : bool, default=False
        Choose the cheapest setting whose score is at most one standard error below the best score. The standard error
        is the standard deviation of the best setting's scores over the n folds, with n - 1 degrees of freedom, divided
        by the square root of n.

    Returns
    -------
    callable
        For the parameter `refit` of :class:`~sklearn.model_selection.GridSearchCV` or
        :class:`~sklearn.model_selection.RandomizedSearchCV`, with ``scoring=accuracy_and_cost()`` or a dict of scorers.
        It takes ``cv_results_`` and returns the index of the setting: among equally good settings the cheapest, and
        among these the first. Settings whose score or cost is nan are left out. It can be pickled.

    Raises
    ------
    ValueError
        If the budget is not in (0, 1]. When called: if no setting is within the budget or has a score, the search has
        no scores with these names, or ``one_standard_error=True`` and there is a single fold.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skexit import ThresholdPolicy
    >>> from skexit.model_selection import accuracy_and_cost, best_within
    >>> X, y = load_digits(return_X_y=True)
    >>> grid = {"budget": [0.6, 0.7, 0.9]}
    >>> policy = ThresholdPolicy(layout=2)
    >>> search = GridSearchCV(policy, grid, scoring=accuracy_and_cost(), refit=best_within(0.75), cv=2).fit(X, y)
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


@set_module("skexit.model_selection")
def _best_within(
    cv_results: Mapping[str, Any], *, budget: float, score: str, cost: str, one_standard_error: bool
) -> int:
    # The cost of neg_mean_cost_scorer is negative, because higher scores must be better.
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
