"""Stop neural networks early: exit policies as scikit-learn estimators."""

from skexit.arrays import ExitArray, stack_exits
from skexit.cache import FeatureCache
from skexit.ensemble import ExitEnsemble
from skexit.heads import ExitHeads
from skexit.layout import ExitLayout
from skexit.merging import merge_caches
from skexit.persistence import TRUSTED_TYPES
from skexit.policies import (
    EENetPolicy,
    EMExitAssigner,
    JEIGatedEnsemble,
    LambdaPath,
    OptimalStoppingPolicy,
    Oracle,
    RandomExit,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    oracle,
)
from skexit.recommended import recommended_pipeline

__version__ = "0.1.0"

__all__ = [
    "TRUSTED_TYPES",
    "EENetPolicy",
    "EMExitAssigner",
    "ExitArray",
    "ExitEnsemble",
    "ExitHeads",
    "ExitLayout",
    "FeatureCache",
    "JEIGatedEnsemble",
    "LambdaPath",
    "OptimalStoppingPolicy",
    "Oracle",
    "RandomExit",
    "RiskControlledPolicy",
    "StaticExit",
    "ThresholdPolicy",
    "merge_caches",
    "oracle",
    "recommended_pipeline",
    "stack_exits",
]
