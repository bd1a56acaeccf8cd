"""Samples that wait before a stage until it is worth running."""

from __future__ import annotations

import numpy as np
import torch

from skexit.backbone._rows import empty_rows, write_rows
from skexit.runtime._batch import Batch


class SampleQueue:
    """Samples of one shape that wait for a stage, run in batches of one size, in the order in which they came.

    They are copied into memory that the queue keeps: to ask for fresh memory again and again takes longer than to copy.
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
        """When the first of the samples came."""
        return float(self._times[0])

    def put(self, batch: Batch, rows: torch.Tensor | slice, time: float) -> None:
        """Copy some rows of a batch, which came at a time."""
        end = len(self) + (len(batch) if isinstance(rows, slice) else len(rows))
        memory = self._reserve(batch, end)
        for target, source in zip(memory.parts(), batch.parts(), strict=True):
            write_rows(target[len(self) : end], source, rows)
        self._times[len(self) : end] = time
        self._n_samples = end

    def first(self, n_samples: int) -> Batch:
        """The first samples, as many as there are or `n_samples`; they stay in the memory of the queue."""
        assert self._memory is not None
        return self._memory.slice(slice(min(n_samples, len(self))))

    def remove(self, n_samples: int) -> None:
        """Remove the first samples."""
        self._keep(slice(n_samples, len(self)))

    def drop(self, rows: range) -> None:
        """Remove the samples of some rows of the output."""
        own = self.first(len(self)).rows
        self._keep(torch.nonzero((own < rows.start) | (own >= rows.stop)).flatten())

    def _keep(self, kept: torch.Tensor | slice) -> None:
        """Move some of the samples to the front, and forget the others."""
        assert self._memory is not None
        times = self._times[: len(self)][kept if isinstance(kept, slice) else kept.cpu().numpy()]
        # A range may reach into where it is moved to.
        overlaps = isinstance(kept, slice) and len(times) > kept.start
        for tensor in self._memory.parts():
            rest = tensor[: len(self)][kept]
            tensor[: len(times)] = rest.clone() if overlaps else rest
        self._times[: len(times)] = times
        self._n_samples = len(times)

    def _reserve(self, batch: Batch, n_samples: int) -> Batch:
        """Room for samples like those of a batch."""
        if self._memory is None or n_samples > len(self._memory):
            # Before samples come, fewer wait than a stage is run with, and no more come than it is run with.
            size = max(n_samples, min(2 * n_samples, 2 * self._batch_size))
            larger = batch.map(lambda tensor: empty_rows(tensor, size))
            if self._memory is not None:
                for target, source in zip(larger.parts(), self._memory.parts(), strict=True):
                    target[: len(self)] = source[: len(self)]
            self._memory, self._times = larger, np.resize(self._times, size)
        return self._memory
