"""Expectation-maximisation over the exit of each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitArray
from skexit.data._walk import no_features, own_logits, walk_batches
from skexit.uncertainty import log_odds
from skexit.utils._module_names import set_module

Floats = NDArray[np.float64]


@set_module("skexit.persistence")
@dataclass(frozen=True)
class AssignerFitState:
    """Fitting data that EMExitAssigner needs for another budget.

    `correct` tells which exits are correct, and `confidence` is the log-odds of the largest class probability, both of
    shape (n_samples, n_exits). `patterns` are the distinct rows of `correct`, with their weights. `router_log_odds` is
    None before routers are trained, and `held_out_log_odds`, by routers trained on other rows, if no weight is chosen.
    """

    correct: NDArray[np.bool_]
    confidence: Floats
    weight: Floats
    patterns: NDArray[np.bool_]
    pattern_weight: Floats
    router_log_odds: Floats | None = None
    held_out_log_odds: NDArray[np.float32] | None = None


def correct_and_confident(X: ExitArray, labels: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Floats]:
    """Which exits are correct for which rows, and their confidence: log-odds of the largest probability."""
    correct = np.empty((len(X), X.layout.n_exits), dtype=bool)
    confidence = np.empty(correct.shape)
    for k, rows, logits in walk_batches(own_logits, X, uses_features=no_features):
        correct[rows, k] = np.argmax(logits, axis=1) == labels[rows]
        confidence[rows, k] = log_odds(logits)
    return correct, confidence


def group_patterns(
    correct: NDArray[np.bool_], weight: Floats
) -> tuple[NDArray[np.bool_], NDArray[Any], NDArray[np.intp]]:
    """Group samples by the exits that are correct for them.

    Returns each pattern that occurs, of shape (n_patterns, n_exits); the weight of the samples with each pattern; and
    the index of each sample's pattern.
    """
    n_exits = correct.shape[1]
    if n_exits <= 20:
        codes = np.zeros(len(correct), dtype=np.int64)
        for k in range(n_exits):
            codes |= correct[:, k].astype(np.int64) << k
        weights = np.bincount(codes, weights=weight, minlength=2**n_exits)
        occurring = np.flatnonzero(weights)
        position = np.zeros(2**n_exits, dtype=np.int64)
        position[occurring] = np.arange(len(occurring))
        return (occurring[:, None] >> np.arange(n_exits) & 1).astype(bool), weights[occurring], position[codes]
    patterns, pattern_of_row = np.unique(correct, axis=0, return_inverse=True)
    return patterns, np.bincount(pattern_of_row, weights=weight), pattern_of_row


def expectation(
    correct: NDArray[np.bool_], prior: Floats, lam: float, costs: Floats, noise: float
) -> tuple[Floats, Floats]:
    """E-step: probability of each exit for each sample or pattern, and the log-likelihood of the sample or pattern.

    The probability is ``prior_k * (1 if correct else noise) * exp(-lam * c_k)``, normalised; the log-likelihood is the
    logarithm of the sum by which it is divided. Costs are fractions of the network's cost.
    """
    with np.errstate(divide="ignore"):
        joint = np.log(prior) - lam * costs + np.where(correct, 0.0, np.log(noise))
    largest = joint.max(axis=1, keepdims=True)
    posterior = np.exp(joint - largest)
    total = posterior.sum(axis=1, keepdims=True)
    return posterior / total, (largest + np.log(total))[:, 0]


def fit_exit_prior(
    patterns: NDArray[np.bool_], pattern_weight: Floats, lam: float, costs: Floats, noise: float, max_iter: int
) -> tuple[Floats, Floats]:
    """Iterate E-step and M-step from a uniform prior.

    Returns the prior, and the weighted mean log-likelihood of the samples before each iteration and after the last.
    """
    share = pattern_weight / pattern_weight.sum()
    prior = np.full(len(costs), 1 / len(costs))
    log_likelihood = np.empty(max_iter + 1)
    for iteration in range(max_iter):
        posterior, evidence = expectation(patterns, prior, lam, costs, noise)
        log_likelihood[iteration] = share @ evidence
        prior = share @ posterior
    log_likelihood[max_iter] = share @ expectation(patterns, prior, lam, costs, noise)[1]
    return prior, log_likelihood
