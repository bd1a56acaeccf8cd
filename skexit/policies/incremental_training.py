"""Routers of EM and networks of EENet, trained in several calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from skexit.incremental import PartialFit, SeparateNetworks, take_steps
from skexit.networks import DenseNetwork, torch_generator
from skexit.policies.blending import sigmoid
from skexit.policies.eenet_network import (
    SchedulerLoss,
    apply_scheduler,
    assignment_targets,
    build_scheduler,
    scheduler_networks,
    start_at_confidence,
)
from skexit.policies.quotas import tilted_distribution

Floats = NDArray[np.float64]


def train_routers_further(
    seen: Sequence[Floats],
    targets: Floats,
    weight: Floats,
    training_rows: NDArray[np.int64],
    state: PartialFit,
    *,
    hidden: Sequence[int],
    learning_rate: float,
    alpha: float,
    batch_size: int,
) -> tuple[PartialFit, list[DenseNetwork]]:
    """Train the routers of all exits but the last once on a batch of rows.

    Parameters
    ----------
    seen : sequence of ndarray of shape (n_samples, n_inputs), one an exit but the last
        What the routers see.
    targets : ndarray of shape (n_samples, n_exits)
        Probability that each row's exit is each or an earlier one.
    weight : ndarray of shape (n_samples,)
    training_rows : ndarray of shape (n_training,) of int
    state : PartialFit
    hidden : sequence of int
        Width of each hidden layer.
    learning_rate, alpha, batch_size
        As of `take_steps`.

    Returns
    -------
    state : PartialFit
    routers : list of DenseNetwork, one an exit but the last
    """
    import torch
    from torch.nn import functional

    if not seen:
        return state, []
    ends = np.cumsum([0, *(block.shape[1] for block in seen)]).tolist()
    columns = [slice(start, end) for start, end in pairwise(ends)]
    values = np.concatenate(seen, axis=1)
    moments, inputs = state.standardise(values)
    random_state = state.random_state()
    routers = SeparateNetworks(columns, [*hidden, 1], torch_generator(random_state))
    wanted = torch.as_tensor(targets[:, :-1], dtype=torch.float32)
    relative_weight = state.relative(weight)

    def loss(batch: NDArray[np.int64]) -> torch.Tensor:
        said = torch.cat(list(routers(inputs[batch])), dim=1)
        losses = functional.binary_cross_entropy_with_logits(said, wanted[batch], reduction="none").sum(1)
        return (losses * relative_weight[batch]).mean()

    optimizer = take_steps(
        loss,
        routers.parameters(),
        state.optimizer,
        training_rows,
        learning_rate=learning_rate,
        alpha=alpha,
        batch_size=batch_size,
        random_state=random_state,
    )
    return replace(state, optimizer=optimizer, moments=moments), routers.to_dense(*moments.scaling())


def train_scheduler_further(
    values: Floats,
    correct: NDArray[np.bool_],
    weight: Floats,
    training_rows: NDArray[np.int64],
    state: PartialFit,
    loss: SchedulerLoss,
    *,
    n_classes: int,
    hidden_ratio: float,
    from_confidence: bool,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
) -> tuple[PartialFit, list[DenseNetwork]]:
    """Train utilities and assignments of all exits once on a batch of rows.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_exits * n_inputs)
        `exit_inputs` of all exits side by side.
    correct : ndarray of shape (n_samples, n_exits) of bool
    weight : ndarray of shape (n_samples,)
    training_rows : ndarray of shape (n_training,) of int
    state : PartialFit
    loss : SchedulerLoss
    n_classes, hidden_ratio, from_confidence
        As of `train_scheduler`.
    learning_rate, weight_decay, batch_size
        As of `take_steps`.

    Returns
    -------
    state : PartialFit
    networks : list of DenseNetwork, one an exit
    """
    import torch

    n_samples, n_exits = correct.shape
    moments, inputs = state.standardise(values)
    inputs = inputs.view(n_samples, n_exits, -1)
    random_state = state.random_state()
    generator = torch_generator(random_state)
    models = build_scheduler(n_exits, inputs.shape[2], hidden_ratio, 2 if from_confidence else 1, generator)
    if from_confidence and state.optimizer.n_steps == 0:
        confidences = inputs[:, :, n_classes].numpy()
        shares = tilted_distribution(np.zeros(n_exits), np.arange(n_exits, dtype=float), loss.costs, loss.budget)
        start_at_confidence(models, confidences, correct, weight, shares)
    known = [torch.as_tensor(value, dtype=torch.float32) for value in (correct, assignment_targets(correct), weight)]

    def total(batch: NDArray[np.int64]) -> torch.Tensor:
        return loss.total(loss.parts(*apply_scheduler(models, inputs[batch]), *(value[batch] for value in known)))

    optimizer = take_steps(
        total,
        [parameter for model in models for parameter in model.parameters()],
        state.optimizer,
        training_rows,
        learning_rate=learning_rate,
        alpha=weight_decay,
        batch_size=batch_size,
        random_state=random_state,
    )
    return replace(state, optimizer=optimizer, moments=moments), scheduler_networks(models, *moments.scaling())


def scheduler_outputs(networks: Sequence[DenseNetwork], values: Floats) -> tuple[Floats, Floats]:
    """What trained networks say of each exit.

    Parameters
    ----------
    networks : sequence of DenseNetwork, one an exit
    values : ndarray of shape (n_samples, n_exits * n_inputs)
        `exit_inputs` of all exits side by side.

    Returns
    -------
    utility_logits, log_assignment : ndarray of shape (n_samples, n_exits)
    """
    outputs: list[Floats] = []
    for network, own in zip(networks, np.split(values, len(networks), axis=1), strict=True):
        utilities = [sigmoid(earlier[:, :1]) for earlier in outputs]
        outputs.append(network(np.concatenate([own, *utilities], axis=1)))
    utility_logits, assignment_logits = np.moveaxis(np.stack(outputs, axis=1), 2, 0)
    return utility_logits, log_softmax(assignment_logits, axis=1)


def measure_losses(
    loss: SchedulerLoss, utility_logits: Floats, log_assignment: Floats, correct: NDArray[np.bool_], weight: Floats
) -> dict[str, float]:
    """Losses of utility, budget and assignment.

    Parameters
    ----------
    loss : SchedulerLoss
    utility_logits, log_assignment : ndarray of shape (n_samples, n_exits)
    correct : ndarray of shape (n_samples, n_exits) of bool
    weight : ndarray of shape (n_samples,)

    Returns
    -------
    dict of str to float
    """
    import torch

    known = (utility_logits, log_assignment, correct, assignment_targets(correct), weight)
    parts = loss.parts(*(torch.as_tensor(value, dtype=torch.float64) for value in known))
    return {name: part.item() for name, part in parts.items()}
