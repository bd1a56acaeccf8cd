"""What a file may hold for skops to load it as an estimator of skexit."""

from __future__ import annotations

#: Types of fitted estimators, for ``skops.io.load(file, trusted=skexit.TRUSTED_TYPES)``. Each holds
#: arrays and numbers only, and none runs anything from the file when it is loaded.
TRUSTED_TYPES = [
    "skexit.ensemble.ExitEnsemble",
    "skexit.heads.ExitHeads",
    "skexit.incremental.OptimizerState",
    "skexit.incremental.PartialFit",
    "skexit.layout.ExitLayout",
    "skexit.networks.DenseNetwork",
    "skexit.networks.Moments",
    "skexit.policies.baselines.RandomExit",
    "skexit.policies.baselines.StaticExit",
    "skexit.policies.draws.SampleDraws",
    "skexit.policies.eenet.EENetPolicy",
    "skexit.policies.em.EMExitAssigner",
    "skexit.policies.jei.JEIGatedEnsemble",
    "skexit.policies.log_linear.LogLinearModel",
    "skexit.policies.risk.RiskControlledPolicy",
    "skexit.policies.stopping.OptimalStoppingPolicy",
    "skexit.policies.thresholds.ThresholdPolicy",
    "skexit.uncertainty.conformal.ConformalScores",
]
