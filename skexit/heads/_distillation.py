"""The loss of heads: the cross-entropy of labels, and that of the network's own softened probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from skexit._nn._mini_batches import ReadRows, keep_in_memory
from skexit._nn._plain_torch import plain_torch
from skexit.data import ExitArray, ExitLayout
from skexit.data._labels import UNLABELLED
from skexit.data._unused_parameters import Unused
from skexit.data._validation import read_logits
from skexit.heads._least_squares import TwoHalves

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]

UNUSED_TEMPERATURE = Unused(
    ("temperature",),
    "distillation",
    lambda heads: heads.distillation == 0,
    "It is the temperature of the teacher's logits. Leave it out, or set distillation above 0.",
)

#: ``distillation="auto"``, where it is on.
_SHARE = 0.9
#: Rows that are enough to see that logits are of no use.
_ENOUGH_ROWS = 2000


def resolve_share_of_network(distillation: float | str, X: ExitArray, labels: NDArray[np.int64]) -> float:
    """The share of the loss that compares heads with the network's own logits; a ValueError says if X lacks them.

    ``"auto"`` is off where X lacks them, and where they are of no use.
    """
    has_teacher = network_teaches(X.layout)
    if distillation == "auto":
        return _SHARE if has_teacher and not _is_clearly_worse_than_features(X, labels) else 0.0
    if distillation and not has_teacher:
        raise ValueError(
            f"distillation={distillation!r} teaches heads in partial_fit with the network's own logits, but the last "
            "exit of X has none. Use distillation='auto' or 0, call fit, in which the deepest head teaches, or extract "
            "them: ExitExtractor stores them with head='output'."
        )
    return cast(float, distillation)


def network_teaches(layout: ExitLayout) -> bool:
    """Whether the last exit has logits: those of the network."""
    return layout.has_logits(layout.n_exits - 1)


def _is_clearly_worse_than_features(X: ExitArray, labels: NDArray[np.int64]) -> bool:
    """Whether a least-squares classifier on the deepest features that get a head beats the network's own logits.

    Those of a network whose last layer is not trained, or whose classes are in another order, would teach nonsense. By
    a sign test, the classifier must be correct at least two standard errors more often.
    """
    deepest = max((k for k, width in enumerate(X.layout.n_logits) if not width), default=None)
    halves = TwoHalves.draw(labels, _ENOUGH_ROWS)
    if deepest is None or halves is None:
        return False
    logits = cast(Floats, read_logits(X, X.layout.n_exits - 1, halves.rows))
    gains = halves.is_correct(X, deepest).astype(float) - (logits.argmax(axis=1) == halves.labels)
    return bool(gains.sum() > 2 * np.sqrt(np.abs(gains).sum()))


@dataclass(frozen=True)
class Distillation:
    """The part of the loss that compares heads with a teacher.

    With the teacher's logits t, those z of a head, the label y, the head's share d and the temperature T, the loss is
    ``(1 - d) CE(y, softmax(z)) + d T² CE(softmax(t / T), softmax(z / T))``. `shares` has d for each exit. `teacher`
    takes row numbers, and gives logits of shape (n_rows, n_classes).
    """

    shares: Floats
    temperature: float
    teacher: ReadRows

    @classmethod
    def from_network(cls, X: ExitArray, share: float, temperature: float) -> Distillation | None:
        """The network's own logits at the last exit teach all heads alike; None if the share is zero."""
        if share == 0:
            return None
        last = X.layout.n_exits - 1
        shares = np.full(X.layout.n_exits, share)
        return cls(shares, temperature, lambda rows: cast(Floats, read_logits(X, last, rows)))

    def soft_targets(self, rows: NDArray[np.int64]) -> Floats:
        """The teacher's probabilities at the temperature."""
        targets: Floats = softmax(self.teacher(rows) / self.temperature, axis=1)
        return targets

    def soft_tensors(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The same for torch."""
        import torch

        return torch.as_tensor(self.soft_targets(rows), dtype=torch.float32)

    def loss_and_errors(self, logits: Floats, labels: NDArray[np.int64], soft_targets: Floats) -> tuple[Floats, Floats]:
        """Loss of each row at the head of a single exit, and its gradient with respect to the logits."""
        (share,) = self.shares
        of_labels, errors = label_loss_and_errors(logits, labels)
        log_probabilities = log_softmax(logits / self.temperature, axis=1)
        of_teacher = -(self.temperature**2) * np.sum(soft_targets * log_probabilities, axis=1)
        of_labels[labels == UNLABELLED] = errors[labels == UNLABELLED] = 0
        errors *= 1 - share
        errors += share * self.temperature * (np.exp(log_probabilities) - soft_targets)
        return (1 - share) * of_labels + share * of_teacher, errors


def distillation_of(distillation: Distillation | None, exits: list[int]) -> Distillation | None:
    """The same teacher for the heads of some exits; None if these learn from labels alone."""
    if distillation is None or not distillation.shares[exits].any():
        return None
    return replace(distillation, shares=distillation.shares[exits])


def label_loss_and_errors(logits: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Cross-entropy of each row's label, and its gradient with respect to the logits."""
    rows, log_probabilities = np.arange(len(labels)), log_softmax(logits, axis=1)
    errors = np.exp(log_probabilities)
    errors[rows, labels] -= 1
    return -log_probabilities[rows, labels], errors


class HeadLoss:
    """The loss of rows by mini-batches, in torch. The teacher's probabilities are kept in memory where they are small.

    Called with logits of shape (n_heads, n_rows, n_classes) and row numbers, it gives the sum over the heads for each
    row.
    """

    def __init__(self, labels: NDArray[np.int64], n_classes: int, distillation: Distillation | None) -> None:
        self._labels, self._distillation = labels, distillation
        if distillation is not None:
            with plain_torch():
                self._soft_targets = keep_in_memory(distillation.soft_tensors, len(labels), n_classes)

    def __call__(self, logits: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        import torch
        from torch.nn import functional

        labels = torch.as_tensor(self._labels[rows])[:, None].expand(-1, len(logits))
        of_labels = functional.cross_entropy(logits.movedim(0, -1), labels, ignore_index=UNLABELLED, reduction="none")
        if self._distillation is None:
            return of_labels.sum(dim=1)
        shares = torch.as_tensor(self._distillation.shares, dtype=logits.dtype)
        temperature = self._distillation.temperature
        log_probabilities = torch.tensordot(shares, torch.log_softmax(logits / temperature, dim=-1), dims=1)
        of_teacher = -(temperature**2) * (self._soft_targets(rows) * log_probabilities).sum(dim=1)
        return of_labels @ (1 - shares) + of_teacher
