"""Times of the exits of a live network in milliseconds, by batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitLayout


@dataclass(frozen=True, eq=False)
class ExitLatency:
    """Times of the stages and exits of a live network in milliseconds, by batch size.

    A stage is the part of the network from the exit before to an exit.

    Parameters
    ----------
    batch_sizes : ndarray of shape (n_batch_sizes,) of int
        The batch sizes, in ascending order.
    stage_ms : ndarray of shape (n_batch_sizes, n_exits)
        Time of a batch in the stage before each exit.
    exit_ms : ndarray of shape (n_batch_sizes, n_exits)
        Time of a batch at each exit: pooling, heads and policy.
    compaction_ms : ndarray of shape (n_batch_sizes, n_exits)
        Time to copy a batch of this size after each exit, as is done with the samples that stay.
    spread_ms : ndarray of shape (n_batch_sizes, n_exits)
        Interquartile range of the repeated measurements of each stage; in onnxruntime, of the runs up to each exit.
    network_ms : ndarray of shape (n_batch_sizes,)
        Time of a batch in the network without exits.
    """

    batch_sizes: NDArray[np.int64]
    stage_ms: NDArray[np.float64]
    exit_ms: NDArray[np.float64]
    compaction_ms: NDArray[np.float64]
    spread_ms: NDArray[np.float64]
    network_ms: NDArray[np.float64]

    def costs(self, batch_size: int) -> NDArray[np.float64]:
        """Milliseconds per sample up to each exit, in batches of one size.

        Parameters
        ----------
        batch_size : int
            Number of samples in a batch. Times are interpolated between measured batch sizes. Beyond the largest one,
            they are proportional to the number of samples.

        Returns
        -------
        ndarray of shape (n_exits,)
            Cumulative times of stages, heads and policy.
        """
        per_batch = [self._at(times, batch_size) for times in (self.stage_ms, self.exit_ms)]
        return np.cumsum(sum(per_batch)) / batch_size

    def layout(self, layout: ExitLayout, batch_size: int) -> ExitLayout:
        """A layout with costs in milliseconds. Policies that are fitted with it meet a budget of mean latency.

        Parameters
        ----------
        layout : ExitLayout
            A layout with the same exits.
        batch_size : int
            Number of samples in a batch, as in :meth:`costs`.

        Returns
        -------
        ExitLayout
            The layout with costs in ms per sample. Budgets are fractions of the time of the network without exits.
            ``head_costs`` has the times of pooling, heads and policy.
        """
        return layout.replace(
            costs=self.costs(batch_size),
            cost_unit="ms",
            network_cost=float(self._at(self.network_ms, batch_size)) / batch_size,
            head_costs=np.cumsum(self._at(self.exit_ms, batch_size)) / batch_size,
        )

    def compaction_pays(self, k: int, until: int, n_samples: int, n_staying: int) -> bool:
        """Whether it is faster to copy the samples that stay than to keep all samples in the batch up to a later exit.

        Parameters
        ----------
        k : int
            The exit at which samples leave, counted from 0.
        until : int
            The next exit at which samples can be removed from the batch.
        n_samples : int
            Number of samples in the batch.
        n_staying : int
            Number of samples that stay.

        Returns
        -------
        bool
            True if the copy is faster.
        """
        stages = self.stage_ms[:, k + 1 : until + 1].sum(axis=1)
        gain = self._at(stages, n_samples) - self._at(stages, n_staying)
        return bool(gain > self._at(self.compaction_ms[:, k], n_staying))

    def _at(self, times: NDArray[np.float64], n_samples: float) -> Any:
        sizes = self.batch_sizes
        if n_samples >= sizes[-1]:
            return times[-1] * (n_samples / sizes[-1])
        after = max(int(np.searchsorted(sizes, n_samples)), 1)
        if len(sizes) == 1:
            return times[0]
        share = (n_samples - sizes[after - 1]) / (sizes[after] - sizes[after - 1])
        return np.maximum(times[after - 1] + share * (times[after] - times[after - 1]), 0)
