"""Samples that wait before a stage until there are enough of them."""

from __future__ import annotations

import numpy as np
import torch

from skexit.backbone._rows import empty_rows, write_rows
from skexit.runtime._batch import Batch


class SampleQueue:
    """Samples of one shape that wait for a stage, in the order in which they arrived.

    The queue copies samples into its own memory, because to allocate new memory for each batch would take longer.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._n_samples = 0
        self._memory: Batch | None = None
        self._times = np.empty(0)

    def __len__(self) -> int:
        return self._n_samples

    @property
    def waiting_since(self) -> float:
        """Time at which the first sample arrived."""
        return float(self._times[0])

    def put(self, batch: Batch, rows: torch.Tensor | slice, time: float) -> None:
        """Copy some rows of a batch that arrived at `time`."""
        end = len(self) + (len(batch) if isinstance(rows, slice) else len(rows))
        memory = self._reserve(batch, end)
        for target, source in zip(memory.parts(), batch.parts(), strict=True):
            write_rows(target[len(self) : end], source, rows)
        self._times[len(self) : end] = time
        self._n_samples = end

    def first(self, n_samples: int) -> Batch:
        """The first `n_samples`, or all if there are fewer. They share the memory of the queue."""
        assert self._memory is not None
        return self._memory.slice(slice(min(n_samples, len(self))))

    def remove(self, n_samples: int) -> None:
        """Remove the first samples."""
        self._keep(slice(n_samples, len(self)))

    def drop(self, rows: range) -> None:
        """Remove the samples of a range of rows of the output."""
        own = self.first(len(self)).rows
        self._keep(torch.nonzero((own < rows.start) | (own >= rows.stop)).flatten())

    def _keep(self, kept: torch.Tensor | slice) -> None:
        """Move some of the samples to the front, and remove the others."""
        assert self._memory is not None
        times = self._times[: len(self)][kept if isinstance(kept, slice) else kept.cpu().numpy()]
        # The source and the target of a range may overlap.
        overlaps = isinstance(kept, slice) and len(times) > kept.start
        for tensor in self._memory.parts():
            rest = tensor[: len(self)][kept]
            tensor[: len(times)] = rest.clone() if overlaps else rest
        self._times[: len(times)] = times
        self._n_samples = len(times)

    def _reserve(self, batch: Batch, n_samples: int) -> Batch:
        """Memory for `n_samples` like those of a batch."""
        if self._memory is None or n_samples > len(self._memory):
            # At most 2 * batch_size: fewer than batch_size samples wait, and at most batch_size arrive at once.
            size = max(n_samples, min(2 * n_samples, 2 * self._batch_size))
            larger = batch.map(lambda tensor: empty_rows(tensor, size))
            if self._memory is not None:
                for target, source in zip(larger.parts(), self._memory.parts(), strict=True):
                    target[: len(self)] = source[: len(self)]
            self._memory, self._times = larger, np.resize(self._times, size)
        return self._memory
