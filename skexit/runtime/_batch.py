"""Samples that are still running, and the predictions of samples that have left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from skexit.backbone._rows import select_rows
from skexit.data._walk import Memories
from skexit.policies._steps import check_answers
from skexit.runtime._output import ExitOutput


@dataclass(slots=True)
class Batch:
    """Samples that continue to the next stage.

    `tensors` are the outputs of the stage before, and `side` the inputs of the network after the first one, such as
    attention masks. `rows` are the rows of the samples in the output of the live network. `notes` are the policy's
    notes on the samples. `gone` is a mask of the samples that have left but are still in the batch; None if there are
    none.
    """

    tensors: list[torch.Tensor]
    side: list[torch.Tensor]
    rows: torch.Tensor
    notes: Memories
    gone: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, kept: torch.Tensor) -> Batch:
        """A copy of some samples, none of which may be gone."""
        return Batch(
            select_rows(self.tensors, kept), select_rows(self.side, kept), self.rows[kept], self.notes.keep(kept)
        )

    def without_gone(self) -> Batch:
        """The samples that have not left."""
        return self if self.gone is None else self.select(torch.nonzero(~self.gone).flatten())

    def slice(self, rows: slice) -> Batch:
        """A view of a range of samples, none of which may be gone."""
        return self.map(lambda tensor: tensor[rows])

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with a function applied to each tensor."""
        tensors, side = ([function(tensor) for tensor in tensors] for tensors in (self.tensors, self.side))
        return Batch(tensors, side, function(self.rows), self.notes.map(function))

    def parts(self) -> list[torch.Tensor]:
        """All tensors. Their order is the same for all batches before a stage."""
        noted = [tensor for memory in self.notes for tensor in memory.values()]
        return [*self.tensors, *self.side, self.rows, *noted]


class Answers:
    """Collects the predictions of the samples that have left.

    `classes` is a tensor of numbers or an ndarray of names. The logits of an exit are divided by its temperature; if
    `temperatures` is None, all are 1.
    """

    def __init__(self, classes: torch.Tensor | NDArray[Any], temperatures: torch.Tensor | None) -> None:
        self._classes, self._temperatures = classes, temperatures
        self._rows: list[torch.Tensor] = []
        self._logits: list[torch.Tensor] = []
        self._exits: list[int] = []

    def add(self, k: int, rows: torch.Tensor, logits: torch.Tensor) -> None:
        """Record the predictions for the samples that leave at exit `k`."""
        self._rows.append(rows)
        self._logits.append(logits)
        self._exits.append(k)

    def output(self) -> tuple[torch.Tensor, ExitOutput]:
        """The rows with predictions, in ascending order, and the predictions; a ValueError if logits are not finite."""
        exits = _join([torch.full_like(rows, k) for k, rows in zip(self._exits, self._rows, strict=True)])
        rows, logits = _join(self._rows), _join(self._logits)
        self._logits.clear()
        if len(self._rows) > 1:
            rows, order = rows.sort()
            logits, exits = logits[order], exits[order]
        predicted = logits.argmax(1)
        labels = self._classes[predicted if isinstance(self._classes, torch.Tensor) else predicted.cpu().numpy()]
        if self._temperatures is not None:
            logits = logits / self._temperatures[exits, None]
        probabilities = torch.softmax(logits, 1)
        check_answers(probabilities, exits, rows)
        return rows, ExitOutput(labels, probabilities, exits)


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
