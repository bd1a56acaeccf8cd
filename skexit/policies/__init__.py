"""Exit policies: estimators that decide at which exit a sample may stop."""

from skexit.policies.base import BudgetedPolicy, ExitPolicy
from skexit.policies.baselines import Oracle, RandomExit, StaticExit, oracle
from skexit.policies.eenet import EENetPolicy
from skexit.policies.em import EMExitAssigner
from skexit.policies.jei import JEIGatedEnsemble, LambdaPath
from skexit.policies.risk import RiskControlledPolicy
from skexit.policies.stopping import OptimalStoppingPolicy
from skexit.policies.thresholds import ThresholdPolicy

__all__ = [
    "BudgetedPolicy",
    "EENetPolicy",
    "EMExitAssigner",
    "ExitPolicy",
    "JEIGatedEnsemble",
    "LambdaPath",
    "OptimalStoppingPolicy",
    "Oracle",
    "RandomExit",
    "RiskControlledPolicy",
    "StaticExit",
    "ThresholdPolicy",
    "oracle",
]
