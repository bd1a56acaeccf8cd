"""What each exit of a live network costs in milliseconds, by batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skexit.backbone._costs import millisecond_clock
from skexit.backbone._modules import Head, Inputs, map_tensors, tensors_of
from skexit.backbone._pooling import Pool
from skexit.data import ExitLayout
from skexit.runtime._early_exit import EarlyExitModel
from skexit.runtime._runner import StageRunner

_N_WARM_UP_RUNS = 2


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
    """

    batch_sizes: NDArray[np.int64]
    stage_ms: NDArray[np.float64]
    exit_ms: NDArray[np.float64]
    compaction_ms: NDArray[np.float64]
    spread_ms: NDArray[np.float64]

    def costs(self, batch_size: int) -> NDArray[np.float64]:
        """Milliseconds that one sample takes to leave at each exit, in batches of this size.

        Parameters
        ----------
        batch_size : int
            Between two that were measured, times are interpolated; beyond the largest, they grow
            with the samples.

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
            With costs in ms, of the batch size that was asked for.
        """
        return layout.replace(costs=self.costs(batch_size), cost_unit="ms")

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

    def _at(self, times: NDArray[np.float64], n_samples: int) -> Any:
        sizes = self.batch_sizes
        if n_samples >= sizes[-1]:
            return times[-1] * (n_samples / sizes[-1])
        after = max(int(np.searchsorted(sizes, n_samples)), 1)
        if len(sizes) == 1:
            return times[0]
        share = (n_samples - sizes[after - 1]) / (sizes[after] - sizes[after - 1])
        return np.maximum(times[after - 1] + share * (times[after] - times[after - 1]), 0)


def measure_latency(
    model: nn.Module | EarlyExitModel,
    exits: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1, 8, 64),
    *,
    example_input: Inputs,
    policy: Any = None,
    heads: Any = None,
    pool: Pool = "auto",
    head: Head = "output",
    n_repeats: int = 10,
) -> ExitLatency:
    """Measure what each exit of a network takes here, heads and policy included.

    Parameters
    ----------
    model : torch.nn.Module or EarlyExitModel
        A live network has its own `exits`, `policy`, `heads`, `pool` and `head`.
    exits : sequence of str, default=None
        Names of the modules after which the network can stop; by default :func:`~skexit.backbone._exit_points`.
    batch_sizes : sequence of int, default=(1, 8, 64)
        Numbers of inputs to measure with.
    example_input : tensor, tuple of tensors or dict of tensors
        One input or more, repeated to make batches.
    policy : fitted exit policy or Pipeline, default=None
        Needed unless `model` is a live network.
    heads, pool, head : optional
        As in :class:`EarlyExitModel`.
    n_repeats : int, default=10
        Runs of each batch size, of which the median counts.

    Returns
    -------
    ExitLatency
        Milliseconds by exit and batch size.

    Raises
    ------
    ValueError
        If there is no policy, a batch size is not positive, or the network is not cut by its exits.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skexit import StaticExit, stack_exits
    >>> from skexit.runtime import measure_latency
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> X = stack_exits(features=[torch.randn(60, 16).numpy(), torch.randn(60, 16).numpy()])
    >>> policy = StaticExit(-1).fit(X, [0, 1, 2] * 20)
    >>> latency = measure_latency(model, ["1", "3"], (1, 4), example_input=torch.randn(1, 8), policy=policy)
    >>> latency.layout(X.layout, batch_size=4).cost_unit
    'ms'
    """
    if isinstance(model, EarlyExitModel):
        live = model.prepare(example_input)
    elif policy is None:
        raise ValueError("policy is needed to measure what exits cost; pass a fitted one, or an EarlyExitModel.")
    else:
        live = EarlyExitModel(model, exits, policy, heads, pool=pool, head=head, example_input=example_input)
    sizes = np.unique(np.asarray(batch_sizes, dtype=np.int64))
    if len(sizes) == 0 or sizes[0] < 1:
        raise ValueError(f"batch_sizes={list(batch_sizes)} must be positive numbers.")
    if n_repeats < 1:
        raise ValueError(f"n_repeats={n_repeats} must be at least 1.")
    runner = live._runner_for_all_exits()
    with torch.inference_mode():
        measured = [_measure(runner, _repeat_rows(example_input, int(size)), n_repeats) for size in sizes]
    stage, at_exit, compaction, spread = (np.array(times) for times in zip(*measured, strict=True))
    return ExitLatency(sizes, stage, at_exit, compaction, spread)


def _measure(runner: StageRunner, inputs: Inputs, n_repeats: int) -> tuple[NDArray[np.float64], ...]:
    """Milliseconds of stages, exits and compaction, and the spread of the stages; each of shape (n_exits,)."""
    runs = np.array([_time_stages(runner, inputs) for _ in range(_N_WARM_UP_RUNS + n_repeats)])[_N_WARM_UP_RUNS:]
    spread = np.subtract(*np.percentile(runs[:, 0], [75, 25], axis=0))
    return (*np.median(runs, axis=0), spread)


def _time_stages(runner: StageRunner, inputs: Inputs) -> list[list[float]]:
    first, *side = tensors_of(inputs)
    clock = millisecond_clock(first.device)
    rows = torch.arange(len(first), device=first.device)
    batch = runner.start(first, side, rows)
    times: list[list[float]] = [[], [], []]
    for k in range(runner.decisions.n_exits):
        readings = [clock()]
        batch = runner.compute(k, batch)
        readings.append(clock())
        runner.decide(k, batch)
        readings.append(clock())
        batch.select(rows)
        readings.append(clock())
        for part, duration in zip(times, np.diff(readings), strict=True):
            part.append(duration)
    return times


def _repeat_rows(inputs: Inputs, n_rows: int) -> Inputs:
    return map_tensors(lambda tensor: tensor[torch.arange(n_rows, device=tensor.device) % len(tensor)], inputs)
