"""What a file may hold for skops to load it as an estimator of skexit."""

from __future__ import annotations

#: Types of fitted estimators, for ``skops.io.load(file, trusted=skexit.TRUSTED_TYPES)``. Each holds
#: arrays and numbers only, and none runs anything from the file when it is loaded.
TRUSTED_TYPES = [
    "skexit.heads._ensemble.ExitEnsemble",
    "skexit.heads._heads.ExitHeads",
    "skexit.heads._partial_fit.OptimizerState",
    "skexit.heads._partial_fit.PartialFit",
    "skexit.data._layout.ExitLayout",
    "skexit._nn._dense.DenseNetwork",
    "skexit._nn._dense.Moments",
    "skexit.policies._baselines.RandomExit",
    "skexit.policies._baselines.StaticExit",
    "skexit.policies._draws.SampleDraws",
    "skexit.policies.eenet._policy.EENetPolicy",
    "skexit.policies.em._assigner.EMExitAssigner",
    "skexit.policies.jei._ensemble.JEIGatedEnsemble",
    "skexit.policies._log_linear.LogLinearModel",
    "skexit.policies._risk.RiskControlledPolicy",
    "skexit.policies._stopping.OptimalStoppingPolicy",
    "skexit.policies._thresholds.ThresholdPolicy",
    "skexit.uncertainty._conformal.ConformalScores",
]
