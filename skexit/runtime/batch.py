"""Samples that are still running, and the answers of those that left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from array_api_compat import array_namespace
from numpy.typing import NDArray

from skexit.runtime.decisions import Notes
from skexit.runtime.rows import as_tensor, select_rows
from skexit.uncertainty import softmax


class ExitOutput(NamedTuple):
    """Answers of a live network, in the order of its inputs.

    Parameters
    ----------
    labels : tensor of shape (n_samples,), or ndarray where classes are names
    probabilities : tensor of shape (n_samples, n_classes)
    exits : tensor of shape (n_samples,) of int64
        The exit at which each sample left, counted from 0.
    """

    labels: torch.Tensor | NDArray[Any]
    probabilities: torch.Tensor
    exits: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Samples that go on to the next stage.

    Parameters
    ----------
    tensors : list of tensor
        What the exit before gave.
    side : list of tensor
        The inputs beside the first, as attention masks.
    rows : array of shape (n_samples,)
        Where the samples belong in the output.
    notes : Notes
        What the policy knows of them.
    """

    tensors: list[torch.Tensor]
    side: list[torch.Tensor]
    rows: Any
    notes: Notes

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, kept: Any) -> Batch:
        """Some of the samples; the tensors are copied."""
        index = as_tensor(kept)
        return Batch(
            select_rows(self.tensors, index), select_rows(self.side, index), self.rows[kept], self.notes.keep(kept)
        )

    def split(self, n_samples: int) -> tuple[Batch, Batch]:
        """The first samples, and the others; nothing is copied."""
        return self._slice(slice(None, n_samples)), self._slice(slice(n_samples, None))

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """The samples of several batches, one after the other."""
        if len(batches) == 1:
            return batches[0]
        tensors, side = (
            [torch.cat(parts) for parts in zip(*lists, strict=True)]
            for lists in ([batch.tensors for batch in batches], [batch.side for batch in batches])
        )
        rows = array_namespace(batches[0].rows).concat([batch.rows for batch in batches])
        return cls(tensors, side, rows, Notes.join([batch.notes for batch in batches]))

    def _slice(self, rows: slice) -> Batch:
        return Batch(
            [tensor[rows] for tensor in self.tensors],
            [tensor[rows] for tensor in self.side],
            self.rows[rows],
            self.notes.keep(rows),
        )


class Answers:
    """Collects the answers of the samples that left.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
    temperatures : ndarray of shape (n_exits,)
        By which an exit's logits are divided.
    """

    def __init__(self, classes: NDArray[Any], temperatures: NDArray[np.float64]) -> None:
        self._classes, self._temperatures = classes, temperatures
        self._rows: list[Any] = []
        self._classes_predicted: list[Any] = []
        self._probabilities: list[Any] = []
        self._exits: list[int] = []

    def add(self, k: int, rows: Any, logits: Any) -> None:
        """Record the answers of the samples that leave at exit `k`."""
        self._rows.append(rows)
        self._exits.append(k)
        self._classes_predicted.append(array_namespace(logits).argmax(logits, axis=1))
        self._probabilities.append(softmax(logits / float(self._temperatures[k])))

    def output(self) -> tuple[Any, ExitOutput]:
        """Rows that were answered, in order, and their answers."""
        xp = array_namespace(*self._rows)
        rows = xp.concat(self._rows)
        order = xp.argsort(rows)
        exits = xp.concat([xp.full_like(part, k) for part, k in zip(self._rows, self._exits, strict=True)])
        predicted = as_tensor(xp.concat(self._classes_predicted)[order])
        output = ExitOutput(
            _labels(self._classes, predicted),
            as_tensor(xp.concat(self._probabilities)[order]),
            as_tensor(exits[order]),
        )
        return rows[order], output


def _labels(classes: NDArray[Any], predicted: torch.Tensor) -> torch.Tensor | NDArray[Any]:
    if classes.dtype.kind in "biuf":
        return torch.as_tensor(classes, device=predicted.device)[predicted]
    labels: NDArray[Any] = classes[predicted.cpu().numpy()]
    return labels
