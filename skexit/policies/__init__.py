"""Exit policies: estimators that decide at which exit a sample may stop."""

from skexit.policies.base import BudgetedPolicy, ExitPolicy
from skexit.policies.baselines import Oracle, RandomExit, StaticExit, oracle
from skexit.policies.em import EMExitAssigner
from skexit.policies.thresholds import ThresholdPolicy

__all__ = [
    "BudgetedPolicy",
    "EMExitAssigner",
    "ExitPolicy",
    "Oracle",
    "RandomExit",
    "StaticExit",
    "ThresholdPolicy",
    "oracle",
]
