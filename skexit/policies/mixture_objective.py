"""The mixture of exits, whose cross-entropy modules and gates minimise together (DiffBranch).

Gates that are fitted to modules as these are need no torch: the gradient is written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from threadpoolctl import threadpool_limits

from skexit.networks import DenseNetwork, weighted_scaling
from skexit.policies.blending import sigmoid
from skexit.policies.gates import exit_probabilities

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]

#: Probabilities of leaving that are smaller count as this, so that they have a logarithm.
_SMALLEST = 1e-30


def mixture_losses(losses: torch.Tensor, probabilities: torch.Tensor, prices: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the mixture of the exits, plus the price that is expected of a sample.

    Parameters
    ----------
    losses : Tensor of shape (..., n_samples, n_exits)
        Cross-entropy at each exit.
    probabilities : Tensor of shape (..., n_samples, n_exits)
        Probability of leaving at each exit, P(G = l).
    prices : Tensor of shape (n_exits,)
        λ times the cost of each exit.

    Returns
    -------
    Tensor of shape (..., n_samples)
    """
    import torch

    log_mixture = torch.logsumexp(probabilities.clamp(min=_SMALLEST).log() - losses, dim=-1)
    return (probabilities * prices).sum(-1) - log_mixture


def fit_mixture_gates(
    inputs: Sequence[Floats], losses: Floats, prices: Floats, weight: Floats, *, reading: str, alpha: float
) -> list[DenseNetwork]:
    """Gates of least mixture loss for modules that are fixed.

    The loss is not convex in all gates together. They start where every exit is as probable.

    Parameters
    ----------
    inputs : sequence of ndarray of shape (n_samples, n_inputs), one a gate
    losses : ndarray of shape (n_samples, n_exits)
        Cross-entropy at each exit.
    prices : ndarray of shape (n_exits,)
        λ times the cost of each exit.
    weight : ndarray of shape (n_samples,)
    reading : {"stop", "exit"}
        What a gate says, as in `exit_probabilities`.
    alpha : float
        Strength of the penalty: ``alpha / 2`` times the squared norm of the weights, for
        standardised inputs.

    Returns
    -------
    list of DenseNetwork, one a gate
    """
    n_exits = losses.shape[1]
    if n_exits == 1:
        return []
    scalings = [weighted_scaling(iter([(values, weight)])) for values in inputs]
    scaled = [(values - mean) / scale for values, (mean, scale) in zip(inputs, scalings, strict=True)]
    ends = np.cumsum([values.shape[1] for values in scaled])
    # Of those that get to an exit, one in as many as there are exits left stops there.
    one_in = np.arange(n_exits, 1, -1) if reading == "stop" else np.full(n_exits - 1, n_exits)
    start = np.concatenate([np.zeros(ends[-1]), -np.log(one_in - 1)])

    def loss_and_gradient(parameters: Floats) -> tuple[float, Floats]:
        weights, biases = np.split(parameters[: ends[-1]], ends[:-1]), parameters[ends[-1] :]
        logits = np.column_stack([values @ of_gate for values, of_gate in zip(scaled, weights, strict=True)]) + biases
        loss, slopes = mixture_loss_and_gradient(logits, losses, prices, weight, reading)
        gradient = [values.T @ slopes[:, k] for k, values in enumerate(scaled)]
        penalty = np.concatenate([alpha * parameters[: ends[-1]], np.zeros_like(biases)])
        return loss + parameters @ penalty / 2, np.concatenate([*gradient, slopes.sum(axis=0)]) + penalty

    options = {"maxiter": 1000, "ftol": 1e-10, "gtol": 1e-6}
    with threadpool_limits(1, user_api="blas"):
        solution = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    weights, biases = np.split(solution[: ends[-1]], ends[:-1]), solution[ends[-1] :]
    return [
        DenseNetwork((of_gate[:, None],), (biases[k : k + 1],)).after_scaling(*scalings[k])
        for k, of_gate in enumerate(weights)
    ]


def mixture_loss_and_gradient(
    logits: Floats, losses: Floats, prices: Floats, weight: Floats, reading: str
) -> tuple[float, Floats]:
    """Weighted mean of the mixture losses, and its gradient for the logits of the gates.

    Parameters
    ----------
    logits : ndarray of shape (n_samples, n_exits - 1)
    losses : ndarray of shape (n_samples, n_exits)
        Cross-entropy at each exit.
    prices : ndarray of shape (n_exits,)
    weight : ndarray of shape (n_samples,)
    reading : {"stop", "exit"}

    Returns
    -------
    loss : float
    gradient : ndarray of shape (n_samples, n_exits - 1)
    """
    gates = sigmoid(logits)
    probabilities = exit_probabilities(np.column_stack([gates, np.ones(len(gates))]), reading)
    log_joint = np.log(np.maximum(probabilities, _SMALLEST)) - losses
    share = weight / weight.sum()
    loss = share @ (probabilities @ prices - logsumexp(log_joint, axis=1))
    # Exits whose probability is raised to have a logarithm do not change it.
    responsibilities = np.where(probabilities > _SMALLEST, softmax(log_joint, axis=1), 0)
    slopes = prices - responsibilities / np.maximum(probabilities, _SMALLEST)
    return loss, share[:, None] * _gradient_of_gates(gates, probabilities, slopes, reading) * gates * (1 - gates)


def _gradient_of_gates(gates: Floats, probabilities: Floats, slopes: Floats, reading: str) -> Floats:
    """Gradient for the gates, from that for the probabilities of leaving, from the last gate to the first."""
    gradient = np.empty_like(gates)
    # What more samples that get to an exit would do to the loss; at the last, all of them leave.
    of_remaining = slopes[:, -1]
    remaining = np.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1]
    for k in reversed(range(gates.shape[1])):
        of_leaving = slopes[:, k] - of_remaining
        if reading == "stop":
            by_gate, by_remaining = remaining[:, k], gates[:, k]
        else:
            by_remaining = (probabilities[:, k] < gates[:, k]).astype(np.float64)
            by_gate = 1 - by_remaining
        gradient[:, k] = of_leaving * by_gate
        of_remaining = of_remaining + of_leaving * by_remaining
    return gradient
