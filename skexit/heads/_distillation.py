"""The loss of heads: the cross-entropy of labels, and that of the network's own softened probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from skexit._nn._mini_batches import ReadRows, keep_in_memory

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Distillation:
    """The part of the loss that compares heads with a teacher.

    With the teacher's logits t, those z of a head, the label y, the share d and the temperature T, the loss is ``(1 -
    d) CE(y, softmax(z)) + d T² CE(softmax(t / T), softmax(z / T))``. `teacher` takes row numbers, and gives logits of
    shape (n_rows, n_classes).
    """

    share: float
    temperature: float
    teacher: ReadRows

    def soft_targets(self, rows: NDArray[np.int64]) -> Floats:
        """The teacher's probabilities at the temperature."""
        targets: Floats = softmax(self.teacher(rows) / self.temperature, axis=1)
        return targets

    def soft_tensors(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The same for torch."""
        import torch

        return torch.as_tensor(self.soft_targets(rows), dtype=torch.float32)

    def loss_and_errors(self, logits: Floats, labels: NDArray[np.int64], soft_targets: Floats) -> tuple[Floats, Floats]:
        """Loss of each row, and its gradient with respect to the logits."""
        of_labels, errors = label_loss_and_errors(logits, labels)
        log_probabilities = log_softmax(logits / self.temperature, axis=1)
        of_teacher = -(self.temperature**2) * np.sum(soft_targets * log_probabilities, axis=1)
        errors *= 1 - self.share
        errors += self.share * self.temperature * (np.exp(log_probabilities) - soft_targets)
        return (1 - self.share) * of_labels + self.share * of_teacher, errors


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
            self._soft_targets = keep_in_memory(distillation.soft_tensors, len(labels), n_classes)

    def __call__(self, logits: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        import torch
        from torch.nn import functional

        labels = torch.as_tensor(self._labels[rows])[:, None].expand(-1, len(logits))
        of_labels = functional.cross_entropy(logits.movedim(0, -1), labels, reduction="none").sum(dim=1)
        if self._distillation is None:
            return of_labels
        share, temperature = self._distillation.share, self._distillation.temperature
        log_probabilities = torch.log_softmax(logits / temperature, dim=-1)
        of_teacher = -(temperature**2) * (self._soft_targets(rows) * log_probabilities.sum(dim=0)).sum(dim=1)
        return (1 - share) * of_labels + share * of_teacher
