"""Scorers of accuracy and cost, for scikit-learn's searches."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.metadata_routing import UNUSED

from skexit.model_selection._best_within import _best_within
from skexit.policies._access import policy_and_data
from skexit.utils._module_names import set_module


def accuracy_and_cost(lam: float = 0.0) -> Callable[[Any, Any, ArrayLike], dict[str, float]]:
    """Scoring that measures accuracy, mean cost and utility together.

    Parameters
    ----------
    lam : float, default=0.0
        Price of the whole network, in units of accuracy.

    Returns
    -------
    callable
        For the parameter `scoring` of :class:`~sklearn.model_selection.GridSearchCV`,
        :class:`~sklearn.model_selection.RandomizedSearchCV` and :func:`~sklearn.model_selection.cross_validate`. It
        takes a fitted estimator, X and y, and returns a dict of ``"accuracy"``, ``"mean_cost"`` (a fraction of the
        network's cost) and ``"utility"`` (accuracy minus `lam` times mean cost). The estimator is a policy, a
        :class:`~sklearn.pipeline.Pipeline` that ends in one, or a search over either. Rows without a label, -1, count
        in the mean cost but not in the accuracy. It can be pickled. If metadata routing is enabled,
        ``accuracy_and_cost().set_score_request(sample_weight=True)`` weights both.

    Raises
    ------
    ValueError
        If `lam` is negative or not finite. When called: if the estimator is not a policy.

    See Also
    --------
    best_within : Chooses the best setting within a budget, as `refit` of the search.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import cross_validate
    >>> from skexit import ThresholdPolicy
    >>> from skexit.model_selection import accuracy_and_cost
    >>> X, y = load_digits(return_X_y=True)
    >>> results = cross_validate(ThresholdPolicy(budget=0.6, layout=2), X, y, scoring=accuracy_and_cost(lam=0.1), cv=2)
    >>> results["test_mean_cost"].mean().round(1), results["test_accuracy"].mean().round(1)
    (np.float64(0.6), np.float64(0.8))
    """
    return _AccuracyAndCost(_check_price(lam))


def utility_scorer(lam: float) -> Callable[[Any, Any, ArrayLike], float]:
    """Scorer of the utility: accuracy minus `lam` times mean cost.

    Parameters
    ----------
    lam : float
        Price of the whole network, in units of accuracy.

    Returns
    -------
    callable
        For the parameter `scoring` of searches that take a single score, such as
        :class:`~sklearn.model_selection.HalvingGridSearchCV`. It takes the same estimators as
        :func:`accuracy_and_cost`, and can be pickled.

    Raises
    ------
    ValueError
        If `lam` is negative or not finite. When called: if the estimator is not a policy.

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
    return _Utility(_check_price(lam))


@set_module("skexit.model_selection")
def neg_mean_cost_scorer(estimator: Any, X: Any, y: ArrayLike | None = None) -> float:
    """Scorer of minus the mean cost of a sample, so that higher is better.

    Parameters
    ----------
    estimator : ExitPolicy, Pipeline or search
        A fitted policy, a fitted Pipeline that ends in one, or a fitted search over either.
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
        If the estimator is not a policy.

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


class _Scorer(BaseEstimator):
    """A scorer that requests sample weights by ``set_score_request``, if metadata routing is enabled."""

    __metadata_request__score: ClassVar[dict[str, str]] = {"estimator": UNUSED}

    def __init__(self, lam: float) -> None:
        self.lam = lam

    def __call__(self, estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Any:
        return self.score(estimator, X, y, sample_weight)

    def score(self, estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Any:
        policy, X = policy_and_data(estimator, X)
        accuracy, mean_cost = policy.score(X, y, sample_weight), policy.mean_cost(X, sample_weight)
        return _Scores({"accuracy": accuracy, "mean_cost": mean_cost, "utility": accuracy - self.lam * mean_cost})


@set_module("skexit.model_selection")
class _AccuracyAndCost(_Scorer):
    """What :func:`accuracy_and_cost` returns."""


@set_module("skexit.model_selection")
class _Utility(_Scorer):
    """What :func:`utility_scorer` returns."""

    def score(self, estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        return float(super().score(estimator, X, y, sample_weight)["utility"])


class _Scores(dict[str, float]):
    """Scores by name. The ``score`` of a search looks up its `refit` here; for `best_within`, this is its score."""

    def __missing__(self, refit: Any) -> float:
        if getattr(refit, "func", None) is _best_within:
            return self[refit.keywords["score"]]
        raise KeyError(refit)


def _check_price(lam: float) -> float:
    if not isinstance(lam, Real) or not 0 <= lam < np.inf:
        raise ValueError(f"lam={lam!r} must be a finite number, 0 or more: the price of the whole network.")
    return float(lam)


def measure(policy: Any, X: Any, y: ArrayLike) -> tuple[float, float]:
    """Accuracy on the rows that have a label, and mean cost of all rows."""
    return policy.score(X, y), policy.mean_cost(X)
