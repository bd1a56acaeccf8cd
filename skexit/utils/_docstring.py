"""Parts of docstrings that many estimators share."""

from __future__ import annotations

import re
from types import FunctionType
from typing import Any, TypeVar

Documented = TypeVar("Documented", bound=Any)

#: Text by name. In a docstring, a line with nothing but ``%(name)s`` stands for it.
SHARED = {
    "heads": """heads : ExitHeads, default=None
    Heads to fit where exits have no logits; by default ``ExitHeads()`` with this `random_state`, or 0
    where there is none.""",
    "layout": """layout : ExitLayout or int, default=None
    Layout of X, or the number of exits of features into which its columns split evenly. By default found
    in X: from an ExitArray, or from column names; else X is one exit of features.""",
    "use_most_confident": """use_most_confident : bool, default=False
    Answer with the most confident exit so far, rather than with the last that ran.""",
    "columns": """n_features_in_ : int
    Number of columns of X.
feature_names_in_ : ndarray of shape (n_columns,)
    Names of the columns, when X was a DataFrame.""",
    "thresholds": """thresholds_ : ndarray of shape (n_exits,)
    A sample stops where its score is at least the threshold; ``inf`` where nobody stops,
    ``-inf`` at the last exit.""",
    "policy_attributes": """exit_distribution_ : ndarray of shape (n_exits,)
    Share of the fitting samples that stop at each exit.
temperatures_ : ndarray of shape (n_exits,)
    Temperatures of the answers; 1 before ``calibrate``.
costs_ : ndarray of shape (n_exits,)
    Cumulative costs, heads included, as fractions of the cost of the network without heads.
classes_ : ndarray of shape (n_classes,)
    Class labels.
layout_ : ExitLayout
    Layout of X, with the logits and costs of the heads.
heads_ : ExitHeads or None
    The heads that were fitted.
%(columns)s""",
    "estimator_X_y": """estimator : ExitPolicy or Pipeline
    Fitted; a Pipeline ends in a policy.
%(X_y)s""",
    "X": """X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
    Logits and features of the exits; logits alone also of shape (n_samples, n_exits, n_classes).""",
    "X_y": """%(X)s
y : array-like of shape (n_samples,)
    Class labels.""",
    "X_y_weight": """%(X_y)s
sample_weight : array-like of shape (n_samples,), default=None
    Weight of each sample; all count alike by default.""",
    "plotted": """**plot_parameters
    Passed to :meth:`plot`.

Returns
-------
%(class)s""",
    "display": """Returns
-------
%(class)s
    The display itself.

Raises
------
ImportError
    If matplotlib is not installed.""",
    "bootstrap": """n_resamples : int, default=0
    Draws of the rows for intervals of the accuracies, as of
    ``bootstrap_interval(..., method="share")``; 0 for none.
confidence_level : float, default=0.95
    Between 0 and 1, both excluded.
random_state : int, RandomState instance or None, default=None
    Seeds the bootstrap.
oracle : OracleResult, default=None
    The bound for every policy; of :func:`skexit.oracle`.""",
    "settings": """y_true : array-like of shape (n_samples,)
    Class labels.
y_pred : array-like of shape (n_samples, n_points) or (n_samples,)
    Answers under each setting, such as a budget; one dimension is one setting.
sample_costs : array-like of the shape of `y_pred`
    What each sample cost under each setting, as a fraction of the network's cost:
    ``policy.costs_[policy.predict_exit(X)]``.""",
    "answers": """y_true : array-like of shape (n_samples,)
    Class labels.
y_pred : array-like of shape (n_samples, n_exits)
    Answers of every exit, as of ``policy.predict_at_exits(X)``.
exits : array-like of shape (n_samples,) of int
    Exit at which each sample stops, as of ``policy.predict_exit(X)``.
costs : array-like of shape (n_exits,)
    Cumulative costs of the exits, as of ``policy.costs_``: fractions of the network's cost.""",
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
    """Put the shared parts into a docstring, each with the indentation of its line.

    A part may have lines that stand for other parts; ``%(class)s`` stands for the name of the class.
    """
    if text is None:  # Python runs with -OO
        return None

    def shared_part(match: re.Match[str]) -> str:
        text = class_name if match[2] == "class" else SHARED[match[2]]
        return _PLACEHOLDER.sub(shared_part, "\n".join(match[1] + line if line else "" for line in text.split("\n")))

    return _PLACEHOLDER.sub(shared_part, text)


def shared_docs(documented: Documented) -> Documented:
    """Put the shared parts into the docstring of a function, or of a class and its methods."""
    is_class = isinstance(documented, type)
    for member in (documented, *(vars(documented).values() if is_class else ())):
        member = getattr(member, "__func__", member)  # of a classmethod
        if member is documented or isinstance(member, FunctionType):
            member.__doc__ = fill_docstring(member.__doc__, documented.__name__)
    return documented
