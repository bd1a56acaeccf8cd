"""Samples that wait before a stage until it is worth running."""

from __future__ import annotations

from collections import deque

import torch

from skexit.runtime.batch import Batch


class SampleQueue:
    """Samples of one shape that wait for a stage, in the order in which they came."""

    def __init__(self) -> None:
        self._entries: deque[tuple[Batch, float]] = deque()
        self._n_samples = 0

    def __len__(self) -> int:
        return self._n_samples

    @property
    def waiting_since(self) -> float:
        """When the first of the samples came."""
        return self._entries[0][1]

    def put(self, batch: Batch, time: float) -> None:
        """Add samples that came at a time."""
        self._entries.append((batch, time))
        self._n_samples += len(batch)

    def take(self, n_samples: int) -> list[Batch]:
        """Take the first samples out, as many as there are or `n_samples`; they are not copied."""
        taken = []
        n_missing = min(n_samples, len(self))
        self._n_samples -= n_missing
        while n_missing:
            batch, time = self._entries.popleft()
            if len(batch) > n_missing:
                batch, rest = batch.split(n_missing)
                # What is to stay for long must not keep the memory of those who go.
                self._entries.appendleft((rest if len(rest) >= n_samples else rest.compact(), time))
            taken.append(batch)
            n_missing -= len(batch)
        return taken

    def drop(self, rows: range) -> None:
        """Remove the samples of some rows of the output."""
        entries, self._entries, self._n_samples = self._entries, deque(), 0
        for batch, time in entries:
            kept = torch.nonzero((batch.rows < rows.start) | (batch.rows >= rows.stop)).flatten()
            if len(kept) == len(batch):
                self.put(batch, time)
            elif len(kept):
                self.put(batch.select(kept), time)
