"""Samples that are still running, and the answers of those that left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skexit.runtime.decisions import Notes
from skexit.runtime.output import ExitOutput
from skexit.runtime.rows import select_rows


@dataclass(slots=True)
class Batch:
    """Samples that go on to the next stage.

    Parameters
    ----------
    tensors : list of tensor
        What the exit before gave.
    side : list of tensor
        The inputs beside the first, as attention masks.
    rows : tensor of shape (n_samples,) of int64
        Where the samples belong in the output.
    notes : Notes
        What the policy knows of them.
    gone : tensor of shape (n_samples,) of bool or None
        Which samples were answered and are taken along only, None for none.
    """

    tensors: list[torch.Tensor]
    side: list[torch.Tensor]
    rows: torch.Tensor
    notes: Notes
    gone: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, kept: torch.Tensor) -> Batch:
        """Some of the samples, of which none is gone; the tensors are copied."""
        return Batch(
            select_rows(self.tensors, kept), select_rows(self.side, kept), self.rows[kept], self.notes.keep(kept)
        )

    def split(self, n_samples: int) -> tuple[Batch, Batch]:
        """The first samples, and the others; nothing is copied."""
        return self._slice(slice(None, n_samples)), self._slice(slice(n_samples, None))

    def compact(self) -> Batch:
        """The samples, without the larger batch that they were split off from."""
        return Batch(
            [_compact(tensor) for tensor in self.tensors],
            [_compact(tensor) for tensor in self.side],
            _compact(self.rows),
            self.notes.map(_compact),
        )

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """The samples of several batches, one after the other."""
        if len(batches) == 1:
            return batches[0]
        tensors, side = (
            [torch.cat(parts) for parts in zip(*lists, strict=True)]
            for lists in ([batch.tensors for batch in batches], [batch.side for batch in batches])
        )
        rows = torch.cat([batch.rows for batch in batches])
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
        self._rows: list[torch.Tensor] = []
        self._predicted: list[torch.Tensor] = []
        self._probabilities: list[torch.Tensor] = []
        self._exits: list[torch.Tensor] = []

    def add(self, k: int, rows: torch.Tensor, logits: torch.Tensor) -> None:
        """Record the answers of the samples that leave at exit `k`."""
        predicted, exits = logits.argmax(1), torch.full_like(rows, k)
        probabilities = torch.softmax(logits / float(self._temperatures[k]), 1)
        # Only now, so that nothing is recorded where memory does not suffice.
        self._rows.append(rows)
        self._predicted.append(predicted)
        self._probabilities.append(probabilities)
        self._exits.append(exits)

    def output(self) -> tuple[torch.Tensor, ExitOutput]:
        """Rows that were answered, in order, and their answers."""
        lists = (self._rows, self._predicted, self._probabilities, self._exits)
        rows, predicted, probabilities, exits = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in lists)
        if len(self._rows) > 1:
            rows, order = rows.sort()
            predicted, probabilities, exits = predicted[order], probabilities[order], exits[order]
        return rows, ExitOutput(_labels(self._classes, predicted), probabilities, exits)


def _labels(classes: NDArray[Any], predicted: torch.Tensor) -> torch.Tensor | NDArray[Any]:
    if classes.dtype.kind in "biuf":
        return torch.as_tensor(classes, device=predicted.device)[predicted]
    labels: NDArray[Any] = classes[predicted.cpu().numpy()]
    return labels


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied where it keeps more than twice its own memory alive."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > 2 * tensor.nbytes else tensor
