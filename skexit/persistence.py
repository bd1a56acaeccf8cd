"""Names under which fitted estimators are saved.

joblib, skops and JSON files store the names of types. Public types are saved as ``skexit.NAME``, others as
``skexit.persistence.NAME``, whatever their modules are: files can still be loaded after a type has moved.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["TRUSTED_TYPES"]

#: Modules of the types that are saved but not public.
_MODULES = {
    "AssignerFitState": "skexit.policies.em._assignment",
    "ConformalScores": "skexit.uncertainty._conformal",
    "ConvNetwork": "skexit._nn._conv",
    "DenseNetwork": "skexit._nn._dense",
    "FitState": "skexit.policies._budgeted",
    "GateFitState": "skexit.policies.jei._gate_fitting",
    "LogLinearModel": "skexit.policies._log_linear",
    "Moments": "skexit._nn._dense",
    "OptimizerState": "skexit.heads._partial_fit",
    "PartialFit": "skexit.heads._partial_fit",
    "SampleDraws": "skexit.policies._draws",
}

_ESTIMATORS = [
    "ConvExitHeads",
    "EENetPolicy",
    "EMExitAssigner",
    "ExitEnsemble",
    "ExitHeads",
    "ExitLayout",
    "ExitPipeline",
    "ExitTransformer",
    "JEIGatedEnsemble",
    "ModelCascade",
    "OptimalStoppingPolicy",
    "RandomExit",
    "RiskControlledPolicy",
    "StaticExit",
    "ThresholdPolicy",
]

#: Types of skexit in fitted estimators.
SAVED_TYPES = [f"skexit.{name}" for name in _ESTIMATORS] + [f"skexit.persistence.{name}" for name in _MODULES]

#: Other types and functions in a search with skexit's scorers. skops checks the function of a partial separately.
_IN_SEARCHES = [
    "functools.partial",
    "skexit.model_selection._AccuracyAndCost",
    "skexit.model_selection._Utility",
    "skexit.model_selection._best_within",
    "skexit.model_selection.neg_mean_cost_scorer",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.StratifiedKFold",
]

#: Types of fitted estimators and searches, for ``skops.io.load(file, trusted=skexit.TRUSTED_TYPES)``.
#: None of them runs code from the file when it is loaded.
TRUSTED_TYPES = SAVED_TYPES + _IN_SEARCHES


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
