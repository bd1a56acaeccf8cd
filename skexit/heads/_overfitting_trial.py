"""A trial on held-out rows: whether heads with hidden layers overfit with the usual penalty and dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitArray, ExitLayout
from skexit.data._validation import cross_validation_splits
from skexit.heads._held_out import exceeds_zero, numbered, some_rows
from skexit.uncertainty._scores import log_softmax
from skexit.uncertainty._temperature import temperature_within_bounds
from skexit.utils._threads import run_side_by_side

#: Rows that are enough for a trial.
_ENOUGH_ROWS = 8000
#: Fewest rows or groups for a trial.
_FEWEST = 100
#: One of so many parts of the rows measures the heads.
_PARTS = 4
#: The trial trains the heads of so many exits.
_EXITS = 3
#: Standard errors by which strong regularisation must be better.
_ERRORS = 1

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
#: Takes rows and whether to regularise strongly, trains heads, and returns a function that gives logits by exit.
Train = Callable[["TrialRows", bool], Callable[[ExitArray], Mapping[int, Floats]]]


@dataclass(frozen=True)
class TrialRows:
    """Rows of a trial, all with labels; `groups` may be None."""

    X: ExitArray
    labels: Integers
    weight: Floats
    groups: Integers | None

    def take(self, rows: NDArray[np.intp]) -> TrialRows:
        """Some of the rows."""
        groups = None if self.groups is None else numbered(self.groups[rows])
        return TrialRows(self.X[rows], self.labels[rows], self.weight[rows], groups)

    @property
    def independent(self) -> Integers:
        """A number for each row, which differs if rows are independent of each other."""
        return np.arange(len(self.labels)) if self.groups is None else self.groups


def heads_overfit(train: Train, rows: TrialRows) -> bool:
    """Whether heads predict new rows better if they are strongly regularised.

    Heads at the first, the middle and the last exit without logits are trained on three quarters of the rows, and
    measured on the others. On average over the exits, strongly regularised heads must have a smaller cross-entropy, by
    one standard error, and must not be less accurate. More evidence is not asked for, because strong regularisation
    costs little where it does not help. The logits of each head are first divided by the temperature
    that fits the held-out labels best, because ensembles and policies learn from new rows how confident heads are. At
    most 8,000 rows are used. If rows are too few for a trial, heads do not overfit.
    """
    rows = rows.take(some_rows(rows.labels, _ENOUGH_ROWS))
    if len(np.unique(rows.independent)) < _FEWEST:
        return False
    rows = TrialRows(rows.X.select_exits(_some_exits(rows.X.layout)), rows.labels, rows.weight, rows.groups)
    fitted, held_out = cross_validation_splits(_PARTS, rows.labels, 0, rows.groups)[0]
    measured = rows.take(held_out)
    tasks = [partial(train, rows.take(fitted), strong) for strong in (False, True)]
    usual, strong = (_scores(logits(measured.X), measured) for logits in run_side_by_side(tasks))
    less_loss, more_correct = (strong - usual).T
    is_as_accurate = bool(measured.weight @ more_correct >= 0)
    return is_as_accurate and exceeds_zero(less_loss, measured.weight, measured.independent, _ERRORS)


def _some_exits(layout: ExitLayout) -> list[int]:
    """The first, the middle and the last exit without logits."""
    without_logits = [k for k in range(layout.n_exits) if not layout.has_logits(k)]
    chosen = np.linspace(0, len(without_logits) - 1, _EXITS).round().astype(int)
    return sorted({without_logits[index] for index in chosen})


def _scores(logits: Mapping[int, Floats], rows: TrialRows) -> Floats:
    """Logarithm of the probability of each row's label, and whether it is predicted: means over the exits."""
    numbers, scores = np.arange(len(rows.labels)), np.zeros((len(rows.labels), 2))
    for values in logits.values():
        temperature = temperature_within_bounds(values, rows.labels, rows.weight)
        of_labels = log_softmax(values / temperature)[numbers, rows.labels]
        scores += np.column_stack([of_labels, values.argmax(axis=1) == rows.labels]) / len(logits)
    return scores
