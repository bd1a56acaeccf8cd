"""Heads as weak learners of an additive model: each head adds to the sum of the heads before it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

#: Factor of the sum of the earlier heads before a head adds to it, so that late heads still have something to learn:
#: "prediction reweighting", with the value of the published scripts.
PREDICTION_REWEIGHTING = 0.5

Floats = NDArray[np.float64]


def fit_addition(
    inputs: Floats,
    loss_and_errors: Callable[[Floats], tuple[Floats, Floats]],
    weight: Floats,
    offset: Floats,
    l2: float,
) -> tuple[Floats, Floats]:
    """Fit a linear classifier whose logits are added to `offset`; return its weights and biases.

    The fit minimises the mean loss plus ``l2 / 2`` times the squared norm of the weights. `loss_and_errors` takes the
    logits of all rows, and returns the loss of each row and its gradient. The inputs are standardised.
    """
    n_inputs, n_classes, share = inputs.shape[1], offset.shape[1], weight / weight.sum()

    def loss_and_gradient(parameters: Floats) -> tuple[float, Floats]:
        weights, biases = np.split(parameters.reshape(-1, n_classes), [n_inputs])
        losses, errors = loss_and_errors(offset + inputs @ weights + biases)
        errors *= share[:, None]
        gradient = np.concatenate([inputs.T @ errors + l2 * weights, errors.sum(axis=0, keepdims=True)])
        return float(share @ losses + l2 / 2 * np.sum(weights**2)), gradient.ravel()

    start = np.zeros((n_inputs + 1) * n_classes)
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-5}
    solution = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    return solution.reshape(-1, n_classes)[:-1], solution.reshape(-1, n_classes)[-1]
