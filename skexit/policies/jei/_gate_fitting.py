"""The fit of gates to the statistics of their exits, and the fitting data that another budget needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from skexit._nn._dense import DenseNetwork, weighted_scaling
from skexit.utils._module_names import set_module
from skexit.utils._threads import one_blas_thread

Floats = NDArray[np.float64]


@set_module("skexit.persistence")
@dataclass(frozen=True)
class GateFitState:
    """Fitting data that JEIGatedEnsemble needs for another budget.

    `statistics`, of shape (n_samples, n_exits, 4), are the inputs of the gates, and `confidence` is the log-odds of the
    largest probability. `correct` tells which exits are correct. `path` has gates for each of several prices.
    """

    draws: Floats
    statistics: Floats
    confidence: Floats
    correct: NDArray[np.bool_]
    weight: Floats
    path: list[tuple[float, list[DenseNetwork]]]


def fit_gate(statistics: Floats, targets: Floats, weight: Floats, l2: float) -> DenseNetwork:
    """Fit the gate of one exit by logistic regression; it gives the logit of the probability to open.

    Targets are 1 if the gate should open, else 0. The penalty on standardised statistics is ``l2 / 2`` times the
    squared norm of the weights.
    """
    if targets.min() == targets.max():
        # As if half a sample had the other target: a gate whose targets are all equal is not certain.
        share = (targets[0] * len(targets) + 0.5) / (len(targets) + 1)
        return DenseNetwork((np.zeros((statistics.shape[1], 1)),), (np.log([share / (1 - share)]),))
    mean, scale = weighted_scaling(iter([(statistics, weight)]))
    model = LogisticRegression(C=1 / (l2 * weight.sum()), solver="newton-cholesky")
    with one_blas_thread():
        model.fit((statistics - mean) / scale, targets, sample_weight=weight)
    return DenseNetwork((model.coef_.T,), (model.intercept_,)).after_scaling(mean, scale)
