"""Heads that are trained in several calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skexit._validation import read_features
from skexit.arrays import ExitArray
from skexit.cascade import Cascade
from skexit.incremental import PartialFit, take_steps
from skexit.networks import DenseNetwork, build, drop_units, to_dense, torch_generator

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
    moments = state.moments.add(features, np.ones(len(features)))
    mean, scale = moments.scaling()
    inputs = torch.as_tensor((features - mean) / scale, dtype=torch.float32)
    random_state = state.random_state()
    generator = torch_generator(random_state)
    widths = [X.layout.n_features[k] for k in read]
    model: Cascade | _Separate
    if cascade and hidden:
        model = Cascade(widths, hidden, n_classes, dropout, generator)
    else:
        ends = np.cumsum([0, *widths]).tolist()
        columns = [slice(0 if cascade else ends[read.index(k)], ends[read.index(k) + 1]) for k in trained]
        model = _Separate(columns, hidden, n_classes, dropout, generator)
    targets = torch.as_tensor(labels)
    relative_weight = torch.as_tensor(weight / state.mean_weight, dtype=torch.float32)

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
    for k, network in zip(trained, model.to_dense(mean, scale), strict=True):
        networks[k] = network
    return replace(state, optimizer=optimizer, moments=moments), networks


class _Separate:
    """Heads that share nothing, each on some of the features."""

    def __init__(
        self, columns: Sequence[slice], hidden: int, n_classes: int, dropout: float, generator: torch.Generator
    ) -> None:
        self.columns, self.dropout, self.generator = columns, dropout, generator
        layers = [hidden, n_classes] if hidden else [n_classes]
        self.heads = [build([own.stop - own.start, *layers], generator) for own in columns]

    def __call__(self, features: torch.Tensor) -> Iterator[torch.Tensor]:
        for head, own in zip(self.heads, self.columns, strict=True):
            seen = features[:, own]
            if len(head) > 1:
                seen = drop_units(head[:-1](seen), self.dropout, self.generator)
            yield head[-1](seen)

    def parameters(self) -> list[torch.Tensor]:
        return [parameter for head in self.heads for parameter in head.parameters()]

    def to_dense(self, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> list[DenseNetwork]:
        """The heads for features that are not standardised, as plain NumPy."""
        return [
            to_dense(head).after_scaling(mean[own], scale[own])
            for head, own in zip(self.heads, self.columns, strict=True)
        ]
