"""Heads whose samples are weighted by a network that learns which exits they leave at (L2W-DEN).

Han, Pu, Lai, Wang, Song, Cao, Huang, Deng, Huang. "Learning to weight samples for dynamic early-exiting networks."
ECCV 2022. A baseline of the JEI-DNN paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch.nn import functional
from tqdm.auto import tqdm

from skexit._nn._dense import DenseNetwork, build, drop_units, to_dense, torch_generator
from skexit._nn._mini_batches import Training, adam, keep_in_memory, scaling
from skexit.data import ExitArray
from skexit.data._validation import read_features
from skexit.heads import ExitHeads
from skexit.policies.jei._training import scaled_inputs
from skexit.utils._threads import one_torch_thread

#: Weights are between 1 less this and 1 plus this (δ; the paper's for CIFAR).
_LARGEST_DEVIATION = 0.8
#: Shares of the samples at the exits fall by this factor from exit to exit (the published script's).
_SHARE_RATIO = 0.75
#: Hidden units, learning rate and penalty of the network that weighs (the published script's).
_HIDDEN, _LEARNING_RATE, _L2 = 500, 1e-4, 1e-4


class WeightedHeads(ExitHeads):
    """Heads without a cascade that are trained together, each for the samples that will leave at its exit.

    They learn from labels alone.
    """

    def _distil(self, *_: object) -> None:
        return None

    def _train(
        self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64], distillation: None
    ) -> list[DenseNetwork | None]:
        settings, random_state = self._head_training(), check_random_state(self.random_state)
        trainer = WeightedTrainer(
            X,
            labels,
            weight,
            settings.hidden_layer_sizes,
            len(self.classes_),
            settings.dropout,
            settings.by_mini_batches(len(X), "WeightedHeads"),
            random_state,
        )
        if trainer.trained:
            trainer.fit("heads" if self.verbose else None)
        return trainer.networks()


class WeightedTrainer:
    """Trains heads for the samples that will leave at their exits, and the network that weighs samples at them."""

    def __init__(
        self,
        X: ExitArray,
        labels: NDArray[np.int64],
        sample_weight: NDArray[np.float64],
        hidden_layer_sizes: Sequence[int],
        n_classes: int,
        dropout: float,
        training: Training,
        random_state: np.random.RandomState,
    ) -> None:
        self.X, self.dropout, self.random_state = X, dropout, random_state
        self.training = training.with_enough_steps(len(X))
        self.labels = torch.as_tensor(labels)
        self.sample_weight = torch.as_tensor(sample_weight / sample_weight.mean(), dtype=torch.float32)
        n_exits, n_features = X.layout.n_exits, X.layout.n_features
        self.shares = _SHARE_RATIO ** np.arange(n_exits) / np.sum(_SHARE_RATIO ** np.arange(n_exits))
        self.trained = [k for k in range(n_exits) if not X.layout.has_logits(k)]
        self.scaling = {k: self._find_scaling(k) for k in self.trained}
        self.widths = [n_features[k] if k in self.scaling else X.layout.n_logits[k] for k in range(n_exits)]
        self.inputs = keep_in_memory(
            lambda rows: scaled_inputs(X, rows, self.scaling, np.ones(n_exits)), len(X), sum(self.widths)
        )
        self.generator = torch_generator(random_state)
        layers = [*hidden_layer_sizes, n_classes]
        self.heads = {k: build([n_features[k], *layers], self.generator) for k in self.trained}
        self.weighting = build([n_exits, _HIDDEN, n_exits], self.generator)

    @one_torch_thread()
    def fit(self, description: str | None) -> None:
        """Each half of a batch in turn trains the heads, and tells how the other is to be weighted."""
        parameters, weighting = self.parameters(), list(self.weighting.parameters())
        # Two steps of the heads for a batch, of `batch_size` rows each, as other trainings have.
        n_batches = max(len(self.X) // (2 * self.training.batch_size), 1)
        n_steps = 2 * n_batches * self.training.max_epochs
        heads, heads_schedule = adam(parameters, self.training, n_steps)
        weights, weights_schedule = adam(
            weighting, replace(self.training, learning_rate=_LEARNING_RATE, l2=_L2), n_steps
        )
        epochs = tqdm(
            range(self.training.max_epochs), desc=description, unit="epoch", disable=description is None, leave=False
        )
        for _ in epochs:
            for batch in np.array_split(self.random_state.permutation(len(self.X)), n_batches):
                halves = np.array_split(batch, 2)
                for train_rows, meta_rows in (halves, halves[::-1]):
                    weights.zero_grad()
                    self.meta_loss(train_rows, meta_rows).backward(inputs=weighting)
                    weights.step()
                    weights_schedule.step()
                    heads.zero_grad()
                    self.weighted_loss(train_rows).backward(inputs=parameters)
                    heads.step()
                    heads_schedule.step()

    def parameters(self) -> list[torch.Tensor]:
        return [parameter for head in self.heads.values() for parameter in head.parameters()]

    def networks(self) -> list[DenseNetwork | None]:
        """The heads for features that are not standardised, as plain NumPy."""
        networks: list[DenseNetwork | None] = [None] * self.X.layout.n_exits
        for k, head in self.heads.items():
            networks[k] = to_dense(head).after_scaling(*self.scaling[k])
        return networks

    def weighted_loss(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Sum over exits of the mean cross-entropy, where samples are weighted; what the heads minimise."""
        losses = self._losses(self._logits(rows, self.parameters(), self.dropout), rows)
        weights = self.weights(losses.detach(), rows)
        return (weights * losses * self.sample_weight[rows, None]).mean(0).sum()

    def meta_loss(self, train_rows: NDArray[np.int64], meta_rows: NDArray[np.int64]) -> torch.Tensor:
        """Loss where samples leave, after a step of the heads with the weights; what the weights minimise.

        It is the sum over exits of the mean cross-entropy of the samples that leave there. Its gradient
        for the network that weighs goes through the step.
        """
        parameters = self.parameters()
        losses = self._losses(self._logits(train_rows, parameters, self.dropout), train_rows)
        weighted = self.weights(losses.detach(), train_rows) * losses * self.sample_weight[train_rows, None]
        gradients = torch.autograd.grad(weighted.mean(0).sum(), parameters, create_graph=True)
        ahead = [
            parameter - self.training.learning_rate * gradient
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
        logits, sample_weight = self._logits(meta_rows, ahead), self.sample_weight[meta_rows]
        confidence = torch.softmax(logits.detach(), dim=-1).amax(-1)
        exits = confident_exits(confidence.double().numpy(), sample_weight.double().numpy(), self.shares)
        leaving = torch.nn.functional.one_hot(torch.as_tensor(exits), len(self.shares)) * sample_weight[:, None]
        mean_losses = (self._losses(logits, meta_rows) * leaving).sum(0) / leaving.sum(0).clamp(min=1e-12)
        return mean_losses.sum()

    def weights(self, losses: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        """Weight of each sample at each exit, from its losses at all exits; 1 on average.

        The paper's bounds hold because what is subtracted from a sigmoid is between 0 and 1. In the
        published code it is subtracted from a hyperbolic tangent, and weights may become negative.
        """
        deviations = torch.sigmoid(self.weighting(losses))
        share = self.sample_weight[rows, None] / self.sample_weight[rows].sum()
        return 1 + _LARGEST_DEVIATION * (deviations - (share * deviations).sum(0).mean())

    def _losses(self, logits: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        """Cross-entropy at each exit, of shape (n_rows, n_exits)."""
        labels = self.labels[rows, None].expand(logits.shape[:2])
        return functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")

    def _logits(
        self, rows: NDArray[np.int64], parameters: Sequence[torch.Tensor], dropout: float = 0.0
    ) -> torch.Tensor:
        """Logits of all exits, of shape (n_rows, n_exits, n_classes), for these parameters of the heads."""
        logits, remaining = [], iter(parameters)
        for k, block in enumerate(self.inputs(rows).split(self.widths, dim=1)):
            if k in self.heads:
                own = [next(remaining) for _ in self.heads[k].parameters()]
                block = self._head_logits(own, block, dropout)
            logits.append(block)
        return torch.stack(logits, dim=1)

    def _head_logits(self, parameters: list[torch.Tensor], inputs: torch.Tensor, dropout: float) -> torch.Tensor:
        *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)
        for weight, bias in hidden:
            inputs = drop_units(functional.relu(functional.linear(inputs, weight, bias)), dropout, self.generator)
        return functional.linear(inputs, *last)

    def _find_scaling(self, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return scaling(lambda rows: read_features(self.X, k, rows), np.arange(len(self.X)), self.training.batch_size)


def confident_exits(
    confidence: NDArray[np.float64], sample_weight: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Exit of each sample, where the most confident of those that are left leave until shares are full.

    `confidence` is of shape (n_samples, n_exits), and the shares of the exits sum to one.
    """
    n_samples, n_exits = confidence.shape
    exits = np.full(n_samples, n_exits - 1)
    remaining = np.arange(n_samples)
    for k in range(n_exits - 1):
        order = np.argsort(-confidence[remaining, k], kind="stable")
        n_leaving = np.searchsorted(
            np.cumsum(sample_weight[remaining[order]]), shares[k] * sample_weight.sum(), "right"
        )
        exits[remaining[order[:n_leaving]]] = k
        remaining = remaining[order[n_leaving:]]
    return exits
