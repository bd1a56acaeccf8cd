"""Accuracy and cost together: what is measured on the answers, exits and scores of policies."""

from skexit.metrics._accuracy_cost import (
    AccuracyCostCurve,
    accuracy_at_budget,
    accuracy_cost_curve,
    area_under_accuracy_cost,
    cost_at_accuracy,
    speedup,
)
from skexit.metrics._bootstrap import bootstrap_interval
from skexit.metrics._exits import OracleRegret, exit_distribution_by_class, exit_report, oracle_regret
from skexit.metrics._savings import Savings, daily_savings
from skexit.metrics._scores import area_under_risk_coverage, early_exit_failure_prediction, exit_auroc

__all__ = [
    "AccuracyCostCurve",
    "OracleRegret",
    "Savings",
    "accuracy_at_budget",
    "accuracy_cost_curve",
    "area_under_accuracy_cost",
    "area_under_risk_coverage",
    "bootstrap_interval",
    "cost_at_accuracy",
    "daily_savings",
    "early_exit_failure_prediction",
    "exit_auroc",
    "exit_distribution_by_class",
    "exit_report",
    "oracle_regret",
    "speedup",
]
