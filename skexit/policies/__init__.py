"""Exit policies: estimators that decide at which exit a sample stops."""

from skexit.policies._base import ExitPolicy
from skexit.policies._baselines import OracleResult, RandomExit, StaticExit, oracle
from skexit.policies._budgeted import BudgetedPolicy
from skexit.policies._quotas import quota_thresholds, shared_threshold
from skexit.policies._risk import RiskControlledPolicy
from skexit.policies._steps import ExitState, ExitStep
from skexit.policies._stopping import OptimalStoppingPolicy
from skexit.policies._thresholds import ThresholdPolicy
from skexit.policies.eenet import EENetPolicy
from skexit.policies.em import EMExitAssigner
from skexit.policies.jei import JEIGatedEnsemble, LambdaPath

__all__ = [
    "BudgetedPolicy",
    "EENetPolicy",
    "EMExitAssigner",
    "ExitPolicy",
    "ExitState",
    "ExitStep",
    "JEIGatedEnsemble",
    "LambdaPath",
    "OptimalStoppingPolicy",
    "OracleResult",
    "RandomExit",
    "RiskControlledPolicy",
    "StaticExit",
    "ThresholdPolicy",
    "oracle",
    "quota_thresholds",
    "shared_threshold",
]
