"""Samples that are still running, and the answers of those that left."""

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
    """Samples that go on to the next stage.

    `tensors` are what the exit before gave, and `side` the inputs beside the first, as attention masks. `rows` say
    where the samples belong in the output, and `notes` what the policy knows of them. `gone` says which samples were
    answered and are taken along only, None for none.
    """

    tensors: list[torch.Tensor]
    side: list[torch.Tensor]
    rows: torch.Tensor
    notes: Memories
    gone: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, kept: torch.Tensor) -> Batch:
        """Some of the samples, of which none is gone; the tensors are copied."""
        return Batch(
            select_rows(self.tensors, kept), select_rows(self.side, kept), self.rows[kept], self.notes.keep(kept)
        )

    def without_gone(self) -> Batch:
        """The samples that are not gone."""
        return self if self.gone is None else self.select(torch.nonzero(~self.gone).flatten())

    def slice(self, rows: slice) -> Batch:
        """A range of the samples, of which none is gone; nothing is copied."""
        return self.map(lambda tensor: tensor[rows])

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with a function's value in place of each tensor."""
        tensors, side = ([function(tensor) for tensor in tensors] for tensors in (self.tensors, self.side))
        return Batch(tensors, side, function(self.rows), self.notes.map(function))

    def parts(self) -> list[torch.Tensor]:
        """All tensors, in an order that batches before the same stage have in common."""
        noted = [tensor for memory in self.notes for tensor in memory.values()]
        return [*self.tensors, *self.side, self.rows, *noted]


class Answers:
    """Collects the answers of the samples that left.

    The classes are an ndarray where they are names. An exit's logits are divided by its temperature; None means 1.
    """

    def __init__(self, classes: torch.Tensor | NDArray[Any], temperatures: torch.Tensor | None) -> None:
        self._classes, self._temperatures = classes, temperatures
        self._rows: list[torch.Tensor] = []
        self._logits: list[torch.Tensor] = []
        self._exits: list[int] = []

    def add(self, k: int, rows: torch.Tensor, logits: torch.Tensor) -> None:
        """Record the answers of the samples that leave at exit `k`."""
        self._rows.append(rows)
        self._logits.append(logits)
        self._exits.append(k)

    def output(self) -> tuple[torch.Tensor, ExitOutput]:
        """Rows that were answered, in order, and their answers; a ValueError says if logits are not finite."""
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
