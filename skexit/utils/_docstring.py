"""Parts of docstrings that many estimators share."""

from __future__ import annotations

import re
from types import FunctionType
from typing import Any, TypeVar

Documented = TypeVar("Documented", bound=Any)

#: Text by name. It replaces a line of a docstring that is only ``%(name)s``.
SHARED = {
    "heads": """heads : ExitHeads, default=None
    Heads that are fitted if exits have no logits. By default ``ExitHeads()``, with the `random_state` of this
    policy, or 0 if it has none.""",
    "layout": """layout : ExitLayout or int, default=None
    Layout of X. A number of exits divides the columns evenly among them, as features. By default, an ExitArray
    has a layout, and so has a DataFrame with the names of the columns; any other X is one exit with features.""",
    "use_most_confident": """use_most_confident : bool, default=False
    Predict with the most confident exit so far, rather than with the last exit that ran.""",
    "columns": """n_features_in_ : int
    Number of columns of X.
feature_names_in_ : ndarray of shape (n_columns,)
    Names of the columns, if X was a DataFrame.""",
    "thresholds": """thresholds_ : ndarray of shape (n_exits,)
    A sample stops at an exit if its score is at least the threshold; ``inf`` if no sample stops
    there, ``-inf`` at the last exit.""",
    "policy_attributes": """exit_distribution_ : ndarray of shape (n_exits,)
    Share of the fitting samples that stop at each exit.
temperatures_ : ndarray of shape (n_exits,)
    Temperatures of the predicted probabilities; 1 before ``calibrate``.
costs_ : ndarray of shape (n_exits,)
    Cumulative costs, heads included, as fractions of the cost of the network without heads.
classes_ : ndarray of shape (n_classes,)
    Class labels.
layout_ : ExitLayout
    Layout of X, with the logits and costs of the heads.
heads_ : ExitHeads or None
    The heads that were fitted.
%(columns)s""",
    "head_attributes": """distillation_ : float
    Share of the loss that compares a head with its teacher: `distillation`, or the value that ``"auto"`` chose. If the
    deepest head teaches, the share falls with the cost of the exit, and this is its value at a cost of 0.
classes_ : ndarray of shape (n_classes,)
    Class labels, in the order of the logits.
layout_ : ExitLayout
    Layout of the X that was fitted, its classes sorted.
layout_out_ : ExitLayout
    Layout of the X that ``transform`` returns. If costs are in FLOPs or MACs, the cost of each exit includes the heads
    up to it, and ``head_costs`` has their part.
%(columns)s""",
    "estimator_X_y": """estimator : ExitPolicy or Pipeline
    A fitted policy, or a fitted Pipeline that ends in a policy.
%(X_y)s""",
    "X": """X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
    Logits and features of the exits. Logits alone may have the shape (n_samples, n_exits, n_classes).""",
    "X_y": """%(X)s
y : array-like of shape (n_samples,)
    Class labels.""",
    "X_y_weight": """%(X_y)s
sample_weight : array-like of shape (n_samples,), default=None
    Weight of each sample; by default all weights are equal.""",
    "plotted": """**plot_parameters
    Passed to :meth:`plot`.

Returns
-------
%(class)s
    The display, which has been drawn.""",
    "display": """Returns
-------
%(class)s
    The display itself.

Raises
------
ImportError
    If matplotlib is not installed.""",
    "bootstrap": """n_resamples : int, default=0
    Bootstrap resamples of the rows for intervals of the accuracies, as in
    ``bootstrap_interval(..., method="share")``; 0 for no intervals.
confidence_level : float, default=0.95
    Between 0 and 1, both excluded.
random_state : int, RandomState instance or None, default=None
    Seed of the bootstrap.
oracle : OracleResult, default=None
    The bound for every policy, from :func:`skexit.oracle`.""",
    "settings": """y_true : array-like of shape (n_samples,)
    Class labels. Rows with the label -1 are left out if there is a class 0 and no prediction is -1.
y_pred : array-like of shape (n_samples, n_points) or (n_samples,)
    Predictions under each setting, such as a budget; one dimension is one setting.
sample_costs : array-like of the shape of `y_pred`
    Cost of each sample under each setting, as a fraction of the network's cost:
    ``policy.costs_[policy.predict_exit(X)]``.""",
    "answers": """y_true : array-like of shape (n_samples,)
    Class labels. Rows with the label -1 are left out if there is a class 0 and no prediction is -1.
y_pred : array-like of shape (n_samples, n_exits)
    Predictions of every exit, as in ``policy.predict_at_exits(X)``.
exits : array-like of shape (n_samples,) of int
    Exit at which each sample stops, as in ``policy.predict_exit(X)``.
costs : array-like of shape (n_exits,)
    Cumulative costs of the exits as fractions of the network's cost, as in ``policy.costs_``.""",
    "probabilities": """Parameters
----------
probabilities : array of shape (..., n_classes)
    Along the last axis, they sum to 1.

Returns
-------
array of shape (...)""",
    "logits": """Parameters
----------
logits : array of shape (..., n_classes)
    Logits along the last axis.

Returns
-------
array of shape (...)""",
}

_PLACEHOLDER = re.compile(r"^( *)%\((\w+)\)s$", flags=re.M)


def fill_docstring(text: str | None, class_name: str = "") -> str | None:
    """Replace placeholders in a docstring by the shared parts, each with the indentation of its line.

    A part may have placeholders of other parts; ``%(class)s`` is replaced by the name of the class.
    """
    if text is None:  # Python runs with -OO
        return None

    def shared_part(match: re.Match[str]) -> str:
        text = class_name if match[2] == "class" else SHARED[match[2]]
        return _PLACEHOLDER.sub(shared_part, "\n".join(match[1] + line if line else "" for line in text.split("\n")))

    return _PLACEHOLDER.sub(shared_part, text)


def shared_docs(documented: Documented) -> Documented:
    """Replace placeholders in the docstring of a function, or of a class and its methods."""
    is_class = isinstance(documented, type)
    for member in (documented, *(vars(documented).values() if is_class else ())):
        member = getattr(member, "__func__", member)  # of a classmethod
        if member is documented or isinstance(member, FunctionType):
            member.__doc__ = fill_docstring(member.__doc__, documented.__name__)
    return documented
