"""Access to the policy of an estimator: a policy, a pipeline, or a search over either."""

from __future__ import annotations

import copy
from typing import Any

from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skexit.data._labels import encode_labels, labelled_rows
from skexit.policies._base import ExitPolicy
from skexit.utils._labels import has_label


def steps_of(estimator: Any) -> list[Any]:
    """List of the steps of an estimator: those that transform X, and then the last one, such as a policy.

    Pipelines, searches and frozen estimators are opened, also within each other.
    """
    if hasattr(estimator, "best_estimator_"):
        return steps_of(estimator.best_estimator_)
    if isinstance(estimator, FrozenEstimator):
        return steps_of(estimator.estimator)
    if isinstance(estimator, Pipeline):
        steps = [step for _, step in estimator.steps if step is not None and step != "passthrough"]
        return [own for step in steps for own in steps_of(step)]
    return [estimator]


def with_last_step(estimator: Any, last: Any) -> Any:
    """A copy of a pipeline with another last step; any other estimator is replaced as a whole."""
    if hasattr(estimator, "best_estimator_"):
        return with_last_step(estimator.best_estimator_, last)
    if isinstance(estimator, FrozenEstimator):
        return with_last_step(estimator.estimator, last)
    if not isinstance(estimator, Pipeline):
        return last
    copied = copy.copy(estimator)
    name, step = estimator.steps[-1]
    copied.steps = [*estimator.steps[:-1], (name, with_last_step(step, last))]
    return copied


def joined(pipeline: Any) -> Any:
    """One policy instead of a pipeline of heads and a policy; fitted if that is frozen. Other estimators as given."""
    *before, policy = steps_of(pipeline)
    is_frozen = isinstance(pipeline, FrozenEstimator)
    if not before:
        return pipeline
    heads = before[0]
    if len(before) > 1 or not hasattr(heads, "exit_logits") or policy.get_params().get("heads", policy) is not None:
        raise ValueError(
            f"{policy} comes after {', '.join(map(str, before))} in a pipeline. Here, only one step may come before "
            "the policy, and it must give logits, such as ExitHeads() or ExitEnsemble(ExitHeads()). Put other steps "
            "before this estimator, in a pipeline that ends in it."
        )
    if not is_frozen:
        return clone(policy).set_params(heads=heads)
    policy = copy.copy(policy).set_params(heads=FrozenEstimator(heads))
    for name in ("_layout_in", "_dtype_in", "n_features_in_", "feature_names_in_"):
        policy.__dict__.pop(name, None)
        if hasattr(heads, name):
            setattr(policy, name, getattr(heads, name))
    policy.heads_ = heads
    return FrozenEstimator(policy)


def last_step_and_data(estimator: Any, X: Any) -> tuple[Any, Any]:
    """The last step of an estimator, and X transformed by the steps before it."""
    *transformers, last = steps_of(estimator)
    for transformer in transformers:
        X = transformer.transform(X)
    return last, X


def policy_and_data(estimator: Any, X: Any) -> tuple[ExitPolicy, Any]:
    """The policy of an estimator, and X transformed by the steps before the policy.

    The estimator is a fitted policy, a pipeline that ends in one, or a search over either. Raises a ValueError if it
    has no policy.
    """
    _policy_of(estimator)
    return last_step_and_data(estimator, X)


def _policy_of(estimator: Any) -> ExitPolicy:
    policy = steps_of(estimator)[-1]
    if not isinstance(policy, ExitPolicy):
        raise ValueError(
            f"{type(policy).__name__} is not an exit policy; pass a fitted policy, such as ThresholdPolicy, or a "
            "Pipeline that ends in one."
        )
    return policy


def policy_and_labelled_data(estimator: Any, X: Any, y: Any) -> tuple[ExitPolicy, Any, NDArray[Any]]:
    """The policy of an estimator, and X as the policy sees it and y, of the rows that have a label."""
    X, y = only_rows_with_labels(estimator, X, y)
    return *policy_and_data(estimator, X), y


def only_rows_with_labels(estimator: Any, X: Any, y: Any) -> tuple[Any, NDArray[Any]]:
    """The rows of X that have a label, and their labels, by the classes of the policy of an estimator."""
    policy = _policy_of(estimator)
    check_is_fitted(policy)
    return labelled_rows(X, y, policy.classes_)


def check_fits(estimator: Any, X: Any, y: NDArray[Any] | None) -> None:
    """Raise a ValueError unless an estimator is a fitted policy for rows like those of X, and for the labels y."""
    policy, first_row = policy_and_data(estimator, X[:1])
    policy.predict_exit(first_row)
    if y is not None:
        encode_labels(
            y[has_label(y, policy.classes_)],
            policy.layout_.replace(classes=policy.classes_),
            "Pass rows of the classes that the policy was fitted with, or a policy that was fitted with all classes.",
        )
