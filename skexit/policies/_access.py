"""Policies as users have them: alone, at the end of a pipeline, or found by a search."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from skexit.data._validation import encode_labels
from skexit.policies._base import ExitPolicy


def policy_and_data(estimator: Any, X: Any) -> tuple[ExitPolicy, Any]:
    """The policy of an estimator, and X as the policy sees it.

    The estimator is a fitted policy, a pipeline that ends in one, or a search that chose one of either; X is
    transformed by the steps before the policy. A ValueError says if there is no policy.
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
    """Raise a ValueError unless an estimator is a fitted policy for rows as the first and such labels."""
    policy, first_row = policy_and_data(estimator, X[:1])
    policy.predict_exit(first_row)
    encode_labels(y, policy.layout_.replace(classes=policy.classes_))
