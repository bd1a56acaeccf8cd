"""What each exit of a live network takes, in milliseconds, by batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitLayout


@dataclass(frozen=True, eq=False)
class ExitLatency:
    """Milliseconds to and at each exit, by batch size.

    Parameters
    ----------
    batch_sizes : ndarray of shape (n_batch_sizes,) of int
        Rising.
    stage_ms : ndarray of shape (n_batch_sizes, n_exits)
        Time of a batch from the exit before to this one.
    exit_ms : ndarray of shape (n_batch_sizes, n_exits)
        Time of a batch at the exit: pooling, heads and policy.
    compaction_ms : ndarray of shape (n_batch_sizes, n_exits)
        Time to copy as many samples as the batch has, when others leave.
    spread_ms : ndarray of shape (n_batch_sizes, n_exits)
        Interquartile range of the repeated runs of the stages.
    network_ms : ndarray of shape (n_batch_sizes,)
        Time of a batch in the network as it is, without exits.
    """

    batch_sizes: NDArray[np.int64]
    stage_ms: NDArray[np.float64]
    exit_ms: NDArray[np.float64]
    compaction_ms: NDArray[np.float64]
    spread_ms: NDArray[np.float64]
    network_ms: NDArray[np.float64]

    def costs(self, batch_size: int) -> NDArray[np.float64]:
        """Milliseconds that one sample takes to leave at each exit, in batches of this size.

        Parameters
        ----------
        batch_size : int
            Between two that were measured, times are interpolated; beyond the largest, they grow with the samples.

        Returns
        -------
        ndarray of shape (n_exits,)
            Cumulative, heads and policy included.
        """
        per_batch = [self._at(times, batch_size) for times in (self.stage_ms, self.exit_ms)]
        return np.cumsum(sum(per_batch)) / batch_size

    def layout(self, layout: ExitLayout, batch_size: int) -> ExitLayout:
        """A layout with these costs, in ms: policies fitted on it meet a budget of mean latency.

        Parameters
        ----------
        layout : ExitLayout
            Of the same exits.
        batch_size : int
            One that was measured.

        Returns
        -------
        ExitLayout
            With costs in ms, of the batch size that was asked for. Budgets are fractions of the time of the
            network without exits; what pooling, heads and policy take is in ``head_costs``.
        """
        return layout.replace(
            costs=self.costs(batch_size),
            cost_unit="ms",
            network_cost=float(self._at(self.network_ms, batch_size)) / batch_size,
            head_costs=np.cumsum(self._at(self.exit_ms, batch_size)) / batch_size,
        )

    def compaction_pays(self, k: int, until: int, n_samples: int, n_staying: int) -> bool:
        """Whether to take out those who leave at an exit is quicker than to take them along to a later one.

        Parameters
        ----------
        k : int
            The exit at which they leave, counted from 0.
        until : int
            The next at which samples may be taken out.
        n_samples : int
            In the batch.
        n_staying : int
            Samples that go on.

        Returns
        -------
        bool
            True where there is time to be saved.
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
