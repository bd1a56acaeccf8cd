"""What is measured, and at which sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.speed.synthetic import make_exits
from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitArray,
    ExitHeads,
    ExitLayout,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    ThresholdPolicy,
)


class Size(NamedTuple):
    """Numbers that vary one at a time around the first of SIZES."""

    rows: int
    exits: int
    classes: int

    def __str__(self) -> str:
        return f"{self.rows}rows-{self.exits}exits-{self.classes}classes"


BASE = Size(10_000, 6, 10)
AXES = {
    "rows": [BASE._replace(rows=n) for n in (1_000, 3_000, 10_000, 30_000, 100_000)],
    "exits": [BASE._replace(exits=n) for n in (3, 6, 9, 18)],
    "classes": [BASE._replace(classes=n) for n in (2, 10, 30, 100)],
}
SIZES = list(dict.fromkeys(size for sizes in AXES.values() for size in sizes))

#: With default settings. The first is what the others are held against.
ESTIMATORS: dict[str, Callable[[], Any]] = {
    "LogisticRegression": LogisticRegression,
    "ExitHeads": lambda: ExitHeads(random_state=0),
    "ThresholdPolicy, geometric": ThresholdPolicy,
    "RiskControlledPolicy": lambda: RiskControlledPolicy(random_state=0),
    "OptimalStoppingPolicy": lambda: OptimalStoppingPolicy(random_state=0),
    "EMExitAssigner": lambda: EMExitAssigner(random_state=0),
    "EENetPolicy": lambda: EENetPolicy(random_state=0),
    "JEIGatedEnsemble": lambda: JEIGatedEnsemble(random_state=0),
}


def make_data(name: str, size: Size) -> tuple[Any, np.ndarray]:
    """The same array for all: policies read logits and features in it, heads features only."""
    X, y = make_exits(*size)
    if name == "LogisticRegression":
        return np.asarray(X), y
    if name == "ExitHeads":
        widths = [X.layout.n_columns // size.exits] * size.exits
        return ExitArray.from_array(np.asarray(X), ExitLayout([0] * size.exits, widths)), y
    return X, y


def predict(estimator: Any, X: Any) -> Any:
    """Labels, or of heads the logits that they add, read at once."""
    if isinstance(estimator, ExitHeads):
        X_out = estimator.transform(X)
        return [X_out.logits(k) for k in range(X_out.layout.n_exits)]
    return estimator.predict(X)
