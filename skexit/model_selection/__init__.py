"""Model selection under a budget: scorers, the choice of a setting, curves over budgets, and the choice of exits."""

from skexit.model_selection._best_within import _best_within as _best_within
from skexit.model_selection._best_within import best_within
from skexit.model_selection._budget_curve import BudgetCurve, budget_curve
from skexit.model_selection._exit_choice import ExitChoice, choose_exits
from skexit.model_selection._scoring import _AccuracyAndCost as _AccuracyAndCost
from skexit.model_selection._scoring import _Utility as _Utility
from skexit.model_selection._scoring import accuracy_and_cost, neg_mean_cost_scorer, utility_scorer

__all__ = [
    "BudgetCurve",
    "ExitChoice",
    "accuracy_and_cost",
    "best_within",
    "budget_curve",
    "choose_exits",
    "neg_mean_cost_scorer",
    "utility_scorer",
]
