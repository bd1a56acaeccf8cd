"""Parts of docstrings that many estimators share."""

from __future__ import annotations

import re

#: Text by name. In a docstring, a line with nothing but ``%(name)s`` stands for it.
SHARED = {
    "heads": """heads : ExitHeads, default=None
    Heads to fit where exits have no logits; by default ``ExitHeads()`` with this `random_state`, or 0
    where there is none.""",
    "layout": """layout : ExitLayout or int, default=None
    Layout of X, or the number of exits into which its columns split evenly. By default found
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
    Cumulative costs as fractions of the last exit's.
classes_ : ndarray of shape (n_classes,)
    Class labels.
layout_ : ExitLayout
    Layout of X, with the logits and costs of the heads.
heads_ : ExitHeads or None
    The heads that were fitted.
n_features_in_ : int
    Number of columns of X.
feature_names_in_ : ndarray of shape (n_columns,)
    Names of the columns, when X was a DataFrame.""",
}

_PLACEHOLDER = re.compile(r"^( *)%\((\w+)\)s$", flags=re.M)


def fill_docstring(text: str | None) -> str | None:
    """Put the shared parts into a docstring, each with the indentation of its line."""
    if text is None:  # Python runs with -OO
        return None
    return _PLACEHOLDER.sub(lambda match: "\n".join(match[1] + line for line in SHARED[match[2]].split("\n")), text)
