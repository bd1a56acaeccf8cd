"""Gates fitted to the statistics of their exits, and what a new budget needs of the fitting data."""

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
    """What JEIGatedEnsemble needs of the fitting data for another budget.

    The draws, what the gates see, of shape (n_samples, n_exits, 4), the log-odds of the largest probability, which
    exits are right, and prices with the gates that were fitted for each.
    """

    draws: Floats
    statistics: Floats
    confidence: Floats
    correct: NDArray[np.bool_]
    weight: Floats
    path: list[tuple[float, list[DenseNetwork]]]


def fit_gate(statistics: Floats, targets: Floats, weight: Floats, l2: float) -> DenseNetwork:
    """Fit the gate of one exit, which gives the logit of the probability to open, by logistic regression.

    Targets are 1 where the gate should open, else 0. The penalty on standardised statistics is ``l2 / 2`` times the
    squared norm of the weights.
    """
    if targets.min() == targets.max():
        # As if half a sample had been the other way: a gate that has seen one answer only is not certain.
        share = (targets[0] * len(targets) + 0.5) / (len(targets) + 1)
        return DenseNetwork((np.zeros((statistics.shape[1], 1)),), (np.log([share / (1 - share)]),))
    mean, scale = weighted_scaling(iter([(statistics, weight)]))
    model = LogisticRegression(C=1 / (l2 * weight.sum()), solver="newton-cholesky")
    with one_blas_thread():
        model.fit((statistics - mean) / scale, targets, sample_weight=weight)
    return DenseNetwork((model.coef_.T,), (model.intercept_,)).after_scaling(mean, scale)
