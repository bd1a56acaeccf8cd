"""Stop neural networks early: exit policies as scikit-learn estimators."""

from skexit._version import __version__ as __version__
from skexit.cache import FeatureCache, merge_caches
from skexit.cascade import ModelCascade
from skexit.data import ExitArray, ExitLayout, stack_exits
from skexit.heads import ConvExitHeads, ExitEnsemble, ExitHeads, ExitTransformer
from skexit.persistence import TRUSTED_TYPES
from skexit.pipeline import ExitPipeline, make_exit_pipeline, recommended_heads, recommended_pipeline
from skexit.policies import (
    EENetPolicy,
    EMExitAssigner,
    JEIGatedEnsemble,
    LambdaPath,
    OptimalStoppingPolicy,
    OracleResult,
    RandomExit,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    oracle,
)

__all__ = [
    "TRUSTED_TYPES",
    "ConvExitHeads",
    "EENetPolicy",
    "EMExitAssigner",
    "ExitArray",
    "ExitEnsemble",
    "ExitHeads",
    "ExitLayout",
    "ExitPipeline",
    "ExitTransformer",
    "FeatureCache",
    "JEIGatedEnsemble",
    "LambdaPath",
    "ModelCascade",
    "OptimalStoppingPolicy",
    "OracleResult",
    "RandomExit",
    "RiskControlledPolicy",
    "StaticExit",
    "ThresholdPolicy",
    "make_exit_pipeline",
    "merge_caches",
    "oracle",
    "recommended_heads",
    "recommended_pipeline",
    "stack_exits",
]
