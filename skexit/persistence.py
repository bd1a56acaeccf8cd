"""Names under which fitted estimators are saved.

joblib, skops and JSON files hold names of types. Public types are saved as ``skexit.NAME``, the others as
``skexit.persistence.NAME``, wherever their modules are, so that a module can move and files still load.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["TRUSTED_TYPES"]

#: Modules of the types that are saved but not public.
_MODULES = {
    "AssignerFitState": "skexit.policies.em._assignment",
    "ConformalScores": "skexit.uncertainty._conformal",
    "DenseNetwork": "skexit._nn._dense",
    "FitState": "skexit.policies._budgeted",
    "GateFitState": "skexit.policies.jei._gate_fitting",
    "LogLinearModel": "skexit.policies._log_linear",
    "Moments": "skexit._nn._dense",
    "OptimizerState": "skexit.heads._partial_fit",
    "PartialFit": "skexit.heads._partial_fit",
    "SampleDraws": "skexit.policies._draws",
    "StoppingFitState": "skexit.policies._stopping",
}

_ESTIMATORS = [
    "EENetPolicy",
    "EMExitAssigner",
    "ExitEnsemble",
    "ExitHeads",
    "ExitLayout",
    "ExitPipeline",
    "ExitTransformer",
    "JEIGatedEnsemble",
    "OptimalStoppingPolicy",
    "RandomExit",
    "RiskControlledPolicy",
    "StaticExit",
    "ThresholdPolicy",
]

#: Types of fitted estimators, for ``skops.io.load(file, trusted=skexit.TRUSTED_TYPES)``. Each holds
#: arrays, numbers and estimators only, and none runs anything from the file when it is loaded.
TRUSTED_TYPES = [f"skexit.{name}" for name in _ESTIMATORS] + [f"skexit.persistence.{name}" for name in _MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
