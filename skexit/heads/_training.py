"""How the heads of exits are trained: alone or together, in memory or by mini-batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skexit._nn._dense import DenseNetwork
from skexit._nn._mini_batches import ReadRows, train
from skexit.data import ExitArray
from skexit.data._labels import UNLABELLED
from skexit.data._lazy import fit_in_memory
from skexit.data._validation import read_features
from skexit.heads._boosting import PREDICTION_REWEIGHTING
from skexit.heads._cascade import train_cascade
from skexit.heads._distillation import Distillation, HeadLoss, distillation_of
from skexit.heads._linear import solve_linear
from skexit.heads._settings import TrainingSettings

#: Up to this many bytes of features and logits, a linear head is solved for in memory, which takes a few times as many.
_IN_MEMORY_BYTES = 2**28
#: Factors of the penalty and of the dropout of heads that overfit.
_STRONG_PENALTY, _STRONG_DROPOUT = 10, 1.75


@dataclass(frozen=True)
class HeadTraining(TrainingSettings):
    """The parameters of ExitHeads that say how heads are trained.

    `overfits` tells whether heads overfit with the usual values of ``"auto"``. These are then stronger.
    """

    hidden_layer_sizes: tuple[int, ...]
    cascade: bool
    training: str
    solver: str
    overfits: bool

    def penalty(self, n_rows: int) -> float:
        is_strong = self.overfits and self.l2 == "auto"
        return super().penalty(n_rows) * (_STRONG_PENALTY if is_strong else 1)

    def dropout_share(self, n_rows: int) -> float:
        is_strong = self.overfits and self.dropout == "auto"
        return super().dropout_share(n_rows) * (_STRONG_DROPOUT if is_strong else 1)

    def check(self) -> None:
        """Raise a ValueError where parameters contradict each other."""
        if self.hidden_layer_sizes and self.solver == "lbfgs":
            raise ValueError(
                f"solver='lbfgs' fits linear heads only, but hidden_layer_sizes={self.hidden_layer_sizes}; use "
                "solver='adam', or hidden_layer_sizes=()."
            )
        if self.training == "boosted" and self.cascade and self.hidden_layer_sizes:
            raise ValueError(
                "training='boosted' trains one head after another, but cascade=True with "
                f"hidden_layer_sizes={self.hidden_layer_sizes} trains all together; use cascade=False, or "
                "hidden_layer_sizes=()."
            )


@dataclass
class HeadTrainer:
    """Trains the heads of the exits that have no logits."""

    X: ExitArray
    labels: NDArray[np.int64]
    weight: NDArray[np.float64]
    n_classes: int
    settings: HeadTraining
    random_state: np.random.RandomState
    distillation: Distillation | None

    def train(self) -> list[DenseNetwork | None]:
        """The heads, and None where an exit keeps its own logits."""
        self.settings.check()
        n_exits = self.X.layout.n_exits
        networks: list[DenseNetwork | None] = [None] * n_exits
        offset: ReadRows | None = None
        groups = self._trained_together()
        for exits in tqdm(groups, desc="heads", unit="exit", disable=not self.settings.verbose, leave=False):
            if self.settings.hidden_layer_sizes:
                trained = self._train_with_hidden_layers(exits, offset)
            else:
                trained = [self.train_linear(exits[0], offset)]
            for k, network in zip(exits, trained, strict=True):
                networks[k] = network
            if self.settings.training == "boosted":
                offset = self._next_offset(exits[0], trained[0], offset)
        return networks

    def _trained_together(self) -> list[list[int]]:
        """Exits without logits, those together whose heads are trained together."""
        without_logits = [k for k in range(self.X.layout.n_exits) if not self.X.layout.has_logits(k)]
        # A hidden layer that goes on to the next exit is trained with the exits that see it.
        if self.settings.hidden_layer_sizes and self.settings.cascade and without_logits:
            return [without_logits]
        return [[k] for k in without_logits]

    def _next_offset(self, k: int, network: DenseNetwork, offset: ReadRows | None) -> ReadRows:
        """What the boosted head after that at exit `k` adds to."""

        def read(rows: Any) -> NDArray[np.float64]:
            logits = network(self._inputs(k, rows))
            return PREDICTION_REWEIGHTING * (logits if offset is None else logits + offset(rows))

        if not fit_in_memory(len(self.X), 1, self.n_classes):
            return read
        kept = np.concatenate([read(batch) for batch in self.X.batches()])
        return kept.__getitem__

    def train_linear(self, k: int, offset: ReadRows | None = None) -> DenseNetwork:
        """The linear head at exit `k`, whose logits are added to those that `offset` gives."""
        distillation = distillation_of(self.distillation, [k])
        if distillation is None and (self.labels == UNLABELLED).any():
            rows = np.flatnonzero(self.labels != UNLABELLED)
            labelled = replace(self, X=self.X[rows], labels=self.labels[rows], weight=self.weight[rows])
            return labelled.train_linear(k, None if offset is None else lambda batch: offset(rows[batch]))
        if self._in_memory(k):
            return solve_linear(
                self._inputs(k),
                self.labels,
                self.weight,
                n_classes=self.n_classes,
                l2=self.settings.penalty(len(self.X)),
                offset=None if offset is None else offset(np.arange(len(self.X))),
                distillation=distillation,
            )
        loss = HeadLoss(self.labels, self.n_classes, distillation)
        return train(
            lambda rows: self._inputs(k, rows),
            self.labels,
            self.weight,
            hidden_layer_sizes=(),
            n_outputs=self.n_classes,
            training=self.settings.by_mini_batches(len(self.X), "ExitHeads"),
            random_state=self.random_state,
            offset=offset,
            losses=lambda outputs, rows: loss(outputs[None], rows),
            description=self._describe(f"head of exit {k}"),
        )

    def _in_memory(self, k: int) -> bool:
        """Whether the linear head at exit `k` is solved for in memory."""
        n_numbers = sum(self.X.layout.n_features[j] for j in self._seen_exits(k)) + self.n_classes
        is_small = 8 * len(self.X) * n_numbers <= _IN_MEMORY_BYTES
        return self.settings.solver == "lbfgs" or (self.settings.solver == "auto" and is_small)

    def _inputs(self, k: int, rows: Any = None) -> NDArray[np.float64]:
        """Features that a head sees which is trained alone."""
        return np.concatenate([read_features(self.X, j, rows) for j in self._seen_exits(k)], axis=1)

    def _seen_exits(self, k: int) -> range:
        """Exits whose features the head at exit `k` sees."""
        return range(0 if self.settings.cascade else k, k + 1)

    def _train_with_hidden_layers(self, exits: list[int], offset: ReadRows | None) -> list[DenseNetwork]:
        return train_cascade(
            lambda rows: np.concatenate([read_features(self.X, k, rows) for k in exits], axis=1),
            HeadLoss(self.labels, self.n_classes, distillation_of(self.distillation, exits)),
            self.weight,
            widths=[self.X.layout.n_features[k] for k in exits],
            hidden_layer_sizes=self.settings.hidden_layer_sizes,
            n_classes=self.n_classes,
            dropout=self.settings.dropout_share(len(self.X)),
            training=self.settings.by_mini_batches(len(self.X), "ExitHeads"),
            random_state=self.random_state,
            offset=offset,
            description=self._describe(f"heads of exits {exits}"),
        )

    def _describe(self, what: str) -> str | None:
        return what if self.settings.verbose else None
