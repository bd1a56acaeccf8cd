"""Thresholds of a policy for every budget: one number moves them all."""

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
#: Rows from which the table is made: with more, it takes seconds, and the controller makes good what they say wrong.
_MOST_ROWS = 5000


@dataclass(frozen=True)
class ThresholdTable:
    """Thresholds at budgets from the cost of the first exit in use to that of the last.

    `is_capped` tells that even the largest budget lets some samples leave early, because more compute makes answers
    worse on the rows that were fitted.
    """

    budgets: Floats
    thresholds: Floats
    is_capped: bool

    @classmethod
    def from_policy(cls, estimator: Any) -> ThresholdTable:
        """The table of a fitted policy, of the rows that it was fitted on."""
        policy = steps_of(estimator)[-1]
        if not isinstance(policy, BudgetedPolicy) or policy.budget is None:
            raise ValueError(
                f"policy={policy!r} has no budget, so that no number moves its thresholds. Pass a fitted policy with "
                "with_budget, such as ThresholdPolicy, or a pipeline that ends in one."
            )
        if policy.fit_state_ is None:
            raise ValueError(
                f"this {type(policy).__name__} was shipped without fit_state_, by which its thresholds follow from a "
                "budget. Make the controller of the policy that was fitted, and ship the controller."
            )
        scores, weight = policy._fitted_scores()
        if len(scores) > _MOST_ROWS:
            # At random: rows may come in an order that repeats.
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
        """The row of the largest budget in the table that is at most the given one."""
        low, high = self.budgets[0], self.budgets[-1]
        if high == low:
            return len(self.budgets) - 1
        return int(np.clip((budget - low) / (high - low) * (len(self.budgets) - 1) + 1e-9, 0, len(self.budgets) - 1))

    def uncapped(self) -> ThresholdTable:
        """The same, but at the largest budget no sample leaves early."""
        thresholds = self.thresholds.copy()
        thresholds[-1, :-1] = np.inf
        return ThresholdTable(self.budgets, thresholds, False)

    def to_dict(self) -> dict[str, Any]:
        """Lists and numbers, as JSON can write them."""
        return {"budgets": self.budgets.tolist(), "thresholds": self.thresholds.tolist(), "is_capped": self.is_capped}
