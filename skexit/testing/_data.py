"""Small data on which policies are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitArray, stack_exits

#: A number that is no width of anything else, so that an array with so many rows is one of the fitted rows.
N_ROWS = 151
N_ROWS_LARGE = 2 * N_ROWS + 1


@dataclass(frozen=True)
class CheckData:
    """What is passed to ``fit``.

    Parameters
    ----------
    X : ExitArray of shape (n_samples, n_columns)
    y : ndarray of shape (n_samples,)
    sample_weight : ndarray of shape (n_samples,), default=None
    """

    X: ExitArray
    y: NDArray[Any]
    sample_weight: NDArray[np.float64] | None = None


@cache
def make_data(name: str) -> CheckData:
    """Data for the checks; the same object in every call.

    Parameters
    ----------
    name : {"main", "large", "logits", "features", "binary", "weighted", "scaled", "dropped"}
        ``"main"`` has four exits with logits and features, and words as classes that are not sorted; ``"large"``
        has twice its rows. ``"logits"``, ``"features"`` and ``"binary"`` are other layouts. ``"weighted"`` is
        ``"main"`` with weights, of which some are zero; ``"scaled"`` has eight times these weights, and
        ``"dropped"`` lacks the rows of zero weight.

    Returns
    -------
    CheckData
    """
    if name in ("weighted", "scaled", "dropped"):
        main = make_data("main")
        weight = np.random.default_rng(1).uniform(0.5, 1.5, N_ROWS)
        weight[::7] = 0
        kept = weight > 0
        return {
            "weighted": CheckData(main.X, main.y, weight),
            "scaled": CheckData(main.X, main.y, 8 * weight),
            "dropped": CheckData(main.X[kept], main.y[kept], weight[kept]),
        }[name]
    return {
        "main": lambda: _make_exits(N_ROWS, ["owl", "cat", "dog"]),
        "large": lambda: _make_exits(N_ROWS_LARGE, ["owl", "cat", "dog"]),
        "logits": lambda: _make_exits(N_ROWS, [0, 1, 2], has_features=False),
        "features": lambda: _make_exits(N_ROWS, ["owl", "cat", "dog"], has_logits=False, costs=[0.4, 1.0]),
        "binary": lambda: _make_exits(N_ROWS, [0, 1], costs=[1e6, 3e6, 4e6], cost_unit="FLOPs"),
    }[name]()


def _make_exits(
    n_samples: int,
    classes: Sequence[Any],
    *,
    has_logits: bool = True,
    has_features: bool = True,
    costs: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    cost_unit: str | None = None,
) -> CheckData:
    """Exits that are the more often right the later they are, and samples of which some are harder than others."""
    rng = np.random.default_rng(0)
    truth = np.eye(len(classes))[rng.integers(len(classes), size=n_samples)]
    difficulty = rng.exponential(size=(n_samples, 1))
    logits, features = [], []
    for k in range(len(costs)):
        logits.append((1 + k) * truth + (0.3 + difficulty) * rng.normal(size=truth.shape))
        signal = np.hstack([(1 + k) * truth, difficulty])
        features.append(signal + rng.normal(size=signal.shape))
    X = stack_exits(
        logits if has_logits else None,
        features if has_features else None,
        costs=costs,
        cost_unit=cost_unit,
        classes=classes,
    )
    return CheckData(X, np.asarray(classes)[truth.argmax(axis=1)])
