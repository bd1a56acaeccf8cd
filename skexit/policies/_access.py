"""Policies as users have them: alone, at the end of a pipeline, or found by a search."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from skexit.data._validation import encode_labels
from skexit.policies._base import ExitPolicy


def policy_and_data(estimator: Any, X: Any) -> tuple[ExitPolicy, Any]:
    """The policy of an estimator, and X as the policy sees it.

    Parameters
    ----------
    estimator : ExitPolicy, Pipeline or search
        Fitted; a Pipeline ends in a policy, and a search chose one of either.
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Logits and features of the exits.

    Returns
    -------
    policy : ExitPolicy
        The last step of a pipeline, or the estimator itself.
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Transformed by the steps before the policy.

    Raises
    ------
    ValueError
        If the estimator is no policy and no pipeline that ends in one.
    """
    if hasattr(estimator, "best_estimator_"):
        return policy_and_data(estimator.best_estimator_, X)
    if isinstance(estimator, Pipeline):
        return policy_and_data(estimator[-1], estimator[:-1].transform(X) if len(estimator) > 1 else X)
    if not isinstance(estimator, ExitPolicy):
        raise ValueError(
            f"{type(estimator).__name__} is no exit policy; pass a fitted policy, or a Pipeline that ends in one."
        )
    return estimator, X


def check_fits(estimator: Any, X: Any, y: NDArray[Any]) -> None:
    """Raise a ValueError unless an estimator is a fitted policy for such rows and labels.

    Parameters
    ----------
    estimator : ExitPolicy or Pipeline
        A fitted policy, or a pipeline that ends in one.
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Only the first row is looked at.
    y : ndarray of shape (n_samples,)
        Class labels.
    """
    policy, first_row = policy_and_data(estimator, X[:1])
    policy.predict_exit(first_row)
    encode_labels(y, policy.layout_.replace(classes=policy.classes_))
