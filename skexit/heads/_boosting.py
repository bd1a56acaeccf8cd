"""Heads as weak learners of an additive model: each adds to what the heads before it say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

#: What the sum of the earlier heads is multiplied by before a head adds to it, so that late heads
#: are left something to learn: "prediction reweighting", with the value of the published scripts.
PREDICTION_REWEIGHTING = 0.5


def fit_addition(
    inputs: NDArray[np.float64],
    labels: NDArray[np.int64],
    weight: NDArray[np.float64],
    offset: NDArray[np.float64],
    l2: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights and biases of the linear classifier whose logits, added to those given, have the least cross-entropy.

    Inputs are standardised, and each class occurs. The penalty is ``l2 / 2`` times the squared norm of the weights.
    """
    (n_samples, n_inputs), n_classes = inputs.shape, offset.shape[1]
    rows, share = np.arange(n_samples), weight / weight.sum()

    def loss_and_gradient(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, biases = np.split(parameters.reshape(-1, n_classes), [n_inputs])
        log_probabilities = log_softmax(offset + inputs @ weights + biases, axis=1)
        loss = -share @ log_probabilities[rows, labels] + l2 / 2 * np.sum(weights**2)
        errors = np.exp(log_probabilities)
        errors[rows, labels] -= 1
        errors *= share[:, None]
        gradient = np.concatenate([inputs.T @ errors + l2 * weights, errors.sum(axis=0, keepdims=True)])
        return loss, gradient.ravel()

    start = np.zeros((n_inputs + 1) * n_classes)
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-5}
    solution = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    return solution.reshape(-1, n_classes)[:-1], solution.reshape(-1, n_classes)[-1]
