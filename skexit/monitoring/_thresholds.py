"""Thresholds of a policy for a range of budgets."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.policies import BudgetedPolicy
from skexit.policies._access import steps_of
from skexit.utils._warnings import silenced

Floats = NDArray[np.float64]

_N_BUDGETS = 201
#: Most rows from which thresholds are computed. More rows would take seconds, and the controller corrects errors.
_MOST_ROWS = 5000


@dataclass(frozen=True)
class ThresholdTable:
    """Thresholds for budgets from the cost of the first exit in use to the cost of the last exit.

    `is_capped` is True if some samples leave early even at the largest budget, because later exits made predictions
    worse on the rows that the policy was fitted on.
    """

    budgets: Floats
    thresholds: Floats
    is_capped: bool

    @classmethod
    def from_policy(cls, estimator: Any) -> ThresholdTable:
        """The table of a fitted policy, computed from the rows that it was fitted on."""
        policy = steps_of(estimator)[-1]
        if not isinstance(policy, BudgetedPolicy) or policy.budget is None:
            raise ValueError(
                f"policy={policy!r} has no budget, which a controller needs. Pass a fitted policy with a budget, such "
                "as ThresholdPolicy(budget=0.5), or a pipeline that ends in one."
            )
        if policy.fit_state_ is None:
            raise ValueError(
                f"policy={policy!r} has no fit_state_, from which thresholds for a budget are computed. Make the "
                "controller from the policy that was fitted, before without_fit_state()."
            )
        scores, weight = policy._fitted_scores()
        if len(scores) > _MOST_ROWS:
            # Random rows, because the order of the rows may have a period.
            rows = np.random.default_rng(0).choice(len(scores), _MOST_ROWS, replace=False)
            scores, weight = scores[rows], weight[rows]
        first = next(k for k in range(len(policy.costs_)) if k not in policy._without)
        budgets = np.linspace(policy.costs_[first], policy.costs_[-1], _N_BUDGETS)
        thresholds, own = np.empty((_N_BUDGETS, len(policy.costs_))), copy.copy(policy)
        with silenced():
            for row, budget in enumerate(budgets):
                own.budget = budget
                thresholds[row] = own.choose_thresholds(scores, weight)
        thresholds[:, list(policy._without)] = np.inf
        is_capped = bool(np.isfinite(thresholds[-1, :-1]).any())
        thresholds[0, first] = -np.inf
        if not is_capped:
            thresholds[-1, :-1] = np.inf
        return cls(budgets, thresholds, is_capped)

    def row_of(self, budget: float) -> int:
        """Number of the row with the largest budget that is at most `budget`; the first row if there is none."""
        low, high = self.budgets[0], self.budgets[-1]
        if high == low:
            return len(self.budgets) - 1
        return int(np.clip((budget - low) / (high - low) * (len(self.budgets) - 1) + 1e-9, 0, len(self.budgets) - 1))

    def uncapped(self) -> ThresholdTable:
        """The same table, but no sample leaves early at the largest budget."""
        thresholds = self.thresholds.copy()
        thresholds[-1, :-1] = np.inf
        return ThresholdTable(self.budgets, thresholds, False)

    def to_dict(self) -> dict[str, Any]:
        """The table as lists and numbers, which JSON can write."""
        return {"budgets": self.budgets.tolist(), "thresholds": self.thresholds.tolist(), "is_capped": self.is_capped}
