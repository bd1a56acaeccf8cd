"""Heads that are trained in several calls."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skexit._validation import read_features
from skexit.arrays import ExitArray
from skexit.cascade import Cascade
from skexit.incremental import PartialFit, SeparateNetworks, take_steps
from skexit.networks import DenseNetwork, torch_generator

if TYPE_CHECKING:
    import torch


def train_further(
    X: ExitArray,
    labels: NDArray[np.int64],
    weight: NDArray[np.float64],
    state: PartialFit,
    *,
    hidden: int,
    cascade: bool,
    dropout: float,
    n_classes: int,
    learning_rate: float,
    alpha: float,
    batch_size: int,
) -> tuple[PartialFit, list[DenseNetwork | None]]:
    """Train the heads of all exits that lack logits once on these rows, on from where the last call ended.

    Parameters
    ----------
    X : ExitArray of shape (n_samples, n_columns)
    labels : ndarray of shape (n_samples,)
        Class indices.
    weight : ndarray of shape (n_samples,)
    state : PartialFit
    hidden, cascade, dropout, learning_rate, alpha, batch_size
        As in :class:`skexit.ExitHeads`.
    n_classes : int

    Returns
    -------
    state : PartialFit
    networks : list of DenseNetwork or None, one an exit
    """
    import torch
    from torch.nn import functional

    networks: list[DenseNetwork | None] = [None] * X.layout.n_exits
    trained = [k for k in range(X.layout.n_exits) if not X.layout.has_logits(k)]
    if not trained:
        return state, networks
    read = list(range(trained[-1] + 1)) if cascade and not hidden else trained
    features = np.concatenate([read_features(X, k) for k in read], axis=1)
    moments, inputs = state.standardise(features)
    random_state = state.random_state()
    generator = torch_generator(random_state)
    widths = [X.layout.n_features[k] for k in read]
    model: Cascade | SeparateNetworks
    if cascade and hidden:
        model = Cascade(widths, hidden, n_classes, dropout, generator)
    else:
        ends = np.cumsum([0, *widths]).tolist()
        columns = [slice(0 if cascade else ends[read.index(k)], ends[read.index(k) + 1]) for k in trained]
        layers = [hidden, n_classes] if hidden else [n_classes]
        model = SeparateNetworks(columns, layers, generator, dropout)
    targets = torch.as_tensor(labels)
    relative_weight = state.relative(weight)

    def loss(batch: NDArray[np.int64]) -> torch.Tensor:
        losses = [functional.cross_entropy(out, targets[batch], reduction="none") for out in model(inputs[batch])]
        return (sum(losses) * relative_weight[batch]).mean()

    optimizer = take_steps(
        loss,
        model.parameters(),
        state.optimizer,
        np.arange(len(labels)),
        learning_rate=learning_rate,
        alpha=alpha,
        batch_size=batch_size,
        random_state=random_state,
    )
    for k, network in zip(trained, model.to_dense(*moments.scaling()), strict=True):
        networks[k] = network
    return replace(state, optimizer=optimizer, moments=moments), networks
