"""Training of convolutional heads with torch, by mini-batches."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skexit._nn._conv import ConvNetwork
from skexit._nn._dense import DenseNetwork, torch_generator
from skexit._nn._mini_batches import keep_in_memory, minimize
from skexit._nn._plain_torch import plain_torch
from skexit.data import ExitArray
from skexit.data._layout_checks import FeatureMap
from skexit.data._validation import read_features
from skexit.heads._conv_scaling import head_scaling
from skexit.heads._distillation import Distillation, HeadLoss, distillation_of
from skexit.heads._settings import TrainingSettings
from skexit.heads._training import HeadTrainer, HeadTraining

if TYPE_CHECKING:
    import torch

#: Largest absolute value of a standardised feature; half precision ends at 65504.
_LARGEST = 1e4


@dataclass(frozen=True)
class ConvTraining(TrainingSettings):
    """Parameters of ConvExitHeads for training."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class ConvHeadTrainer:
    """Trains the heads of the exits that have no logits, one after another."""

    X: ExitArray
    labels: NDArray[np.int64]
    weight: NDArray[np.float64]
    n_classes: int
    settings: ConvTraining
    random_state: np.random.RandomState
    distillation: Distillation | None

    def train(self) -> list[ConvNetwork | DenseNetwork | None]:
        """The heads: linear for an exit without a map, None for an exit that keeps its own logits."""
        networks: list[ConvNetwork | DenseNetwork | None] = [None] * self.X.layout.n_exits
        exits = [k for k in range(self.X.layout.n_exits) if not self.X.layout.has_logits(k)]
        for k in tqdm(exits, desc="heads", unit="exit", disable=not self.settings.verbose, leave=False):
            place = self.X.layout.feature_maps[k]
            networks[k] = self._train_linear(k) if place is None else self._train_convolutions(k, place)
        return networks

    def _train_linear(self, k: int) -> DenseNetwork:
        shared = {field.name: getattr(self.settings, field.name) for field in fields(TrainingSettings)}
        settings = HeadTraining(
            **shared, hidden_layer_sizes=(), cascade=False, training="separate", solver="auto", overfits=False
        )
        trainer = HeadTrainer(
            self.X, self.labels, self.weight, self.n_classes, settings, self.random_state, self.distillation
        )
        return trainer.train_linear(k)

    @plain_torch()
    def _train_convolutions(self, k: int, place: FeatureMap) -> ConvNetwork:
        n_rows, n_features = len(self.X), self.X.layout.n_features[k]
        training = self.settings.by_mini_batches(n_rows, "ConvExitHeads").with_enough_steps(n_rows)

        import torch

        from skexit.heads._conv_model import ConvModel

        scaling = head_scaling(self.X, k, place)
        mean, scale = scaling.columns()
        model = ConvModel(
            place,
            n_features,
            self.n_classes,
            channels=self.settings.channels,
            strides=self.settings.strides,
            dropout=self.settings.dropout_share(n_rows),
            generator=torch_generator(self.random_state),
        )

        def read_scaled(batch: NDArray[np.int64]) -> torch.Tensor:
            scaled = np.clip((read_features(self.X, k, batch) - mean) / scale, -_LARGEST, _LARGEST)
            return torch.as_tensor(scaled, dtype=torch.float32)

        read_inputs = keep_in_memory(read_scaled, n_rows, n_features, allow_half=True)
        relative_weight = torch.as_tensor(self.weight / self.weight.mean(), dtype=torch.float32)
        loss = HeadLoss(self.labels, self.n_classes, distillation_of(self.distillation, [k]))

        def mean_loss(batch: NDArray[np.int64]) -> torch.Tensor:
            losses = loss(model(read_inputs(batch).float())[None], batch)
            return losses @ relative_weight[batch] / len(batch)

        rows = np.arange(n_rows)
        minimize(
            mean_loss,
            list(model.parameters()),
            rows,
            rows[:0],
            np.ones(n_rows),  # mean_loss multiplies by the weights
            training=training,
            random_state=self.random_state,
            description=f"head of exit {k}" if self.settings.verbose else None,
            one_thread=False,
        )
        return model.to_network(scaling)
