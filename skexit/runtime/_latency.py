"""Measure the times of the exits of a live network, by batch size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skexit.backbone._channels import Channels
from skexit.backbone._costs import millisecond_clock
from skexit.backbone._counting import Clock
from skexit.backbone._inputs import Inputs, call, in_form, map_tensors
from skexit.backbone._modules import Head, device_of
from skexit.backbone._pooling import Pool
from skexit.backbone._rows import with_rows
from skexit.runtime._early_exit import EarlyExitModel
from skexit.runtime._exit_latency import ExitLatency
from skexit.runtime._prepared import first_batch, runner_to_last_exit
from skexit.runtime._runner import StageRunner
from skexit.utils._checks import check_positive, is_integer

_N_WARM_UP_RUNS = 2


def measure_latency(
    model: nn.Module | EarlyExitModel,
    exits: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1, 8, 64),
    *,
    example_input: Inputs,
    policy: Any = None,
    heads: Any = None,
    pool: Pool = "auto",
    channels: Channels = "auto",
    head: Head = "output",
    n_repeats: int = 10,
    clock: str = "wall",
) -> ExitLatency:
    """Measure the time up to each exit of a network on this machine, including heads and policy.

    Parameters
    ----------
    model : torch.nn.Module or EarlyExitModel
        The network. With an :class:`EarlyExitModel`, leave out `exits`, `policy`, `heads`, `pool`, `channels` and
        `head`: it has its own.
    exits : sequence of str, default=None
        Names of the modules after which the network can stop; by default found by
        :func:`~skexit.backbone.exit_points`.
    batch_sizes : sequence of int, default=(1, 8, 64)
        Batch sizes to measure.
    example_input : tensor, tuple of tensors or dict of tensors
        One or more inputs, on the device of the network. They are repeated to make batches.
    policy : fitted exit policy or Pipeline, default=None
        Required unless `model` is an :class:`EarlyExitModel`.
    heads, pool, channels, head : optional
        As in :class:`EarlyExitModel`.
    n_repeats : int, default=10
        Number of timed runs per batch size. The result has their medians.
    clock : {"wall", "processor"}, default="wall"
        ``"processor"``: the processor time of the calling thread, which other programs lengthen less. For networks on a
        CPU, with one thread: ``torch.set_num_threads(1)``.

    Returns
    -------
    ExitLatency
        Milliseconds by exit and batch size.

    Raises
    ------
    ValueError
        If there is no policy, a batch size or `n_repeats` is not positive, the network cannot be divided at its exits,
        or `clock` is unknown, or is ``"processor"`` for a network on another device than a CPU.

    See Also
    --------
    measure_onnx_latency : The same measurement in onnxruntime.

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
    example_input = in_form(example_input, "example_input")
    plain = model.model if isinstance(model, EarlyExitModel) else model.eval()
    if isinstance(model, EarlyExitModel):
        network = model.prepare(example_input)
    elif policy is None:
        raise ValueError("policy is None; pass a fitted policy, or an EarlyExitModel, which has one.")
    else:
        network = EarlyExitModel(model, exits, policy, heads, pool=pool, channels=channels, head=head).prepare(
            example_input
        )
    sizes, read = check_sizes_and_repeats(batch_sizes, n_repeats), clock_on(device_of(plain), clock)
    runner = runner_to_last_exit(network)
    with torch.inference_mode():
        measured = [
            _measure(runner, plain, map_tensors(partial(with_rows, n_rows=int(size)), example_input), n_repeats, read)
            for size in sizes
        ]
    stage, at_exit, compaction, spread, whole = (np.array(times) for times in zip(*measured, strict=True))
    return ExitLatency(sizes, stage, at_exit, compaction, spread, whole)


def check_sizes_and_repeats(batch_sizes: Sequence[int], n_repeats: int) -> NDArray[np.int64]:
    """The batch sizes in ascending order; a ValueError if one of them, or `n_repeats`, is not positive."""
    if len(batch_sizes) == 0 or not all(is_integer(size) and size >= 1 for size in batch_sizes):
        raise ValueError(f"batch_sizes={list(batch_sizes)} must be one or more positive integers.")
    check_positive("n_repeats", n_repeats)
    return np.unique(np.asarray(batch_sizes, dtype=np.int64))


def clock_on(device: torch.device, clock: str) -> Clock:
    """The clock of that name, which returns milliseconds; a ValueError if there is none for the device."""
    if clock == "wall":
        return millisecond_clock(device)
    if clock != "processor":
        raise ValueError(f"clock={clock!r} must be 'wall' or 'processor'.")
    if device.type != "cpu":
        raise ValueError(f"clock='processor' is for networks on a CPU, but this one is on {device}. Pass clock='wall'.")
    return lambda: 1000 * time.thread_time()


def _measure(
    runner: StageRunner, plain: nn.Module, inputs: Inputs, n_repeats: int, clock: Clock
) -> tuple[NDArray[np.float64], ...]:
    """Milliseconds of stages, exits and compaction, the spread of the stages, and the time of the plain network.

    All but the last have the shape (n_exits,). The two networks run in turn, so that other load slows both equally.
    """
    n_runs = _N_WARM_UP_RUNS + n_repeats
    times = [(_time_stages(runner, inputs, clock), _time_plain(plain, inputs, clock)) for _ in range(n_runs)]
    runs, whole = (np.array(part) for part in zip(*times[_N_WARM_UP_RUNS:], strict=True))
    spread = np.subtract(*np.percentile(runs[:, 0], [75, 25], axis=0))
    return (*np.median(runs, axis=0), spread, np.median(whole))


def _time_plain(plain: nn.Module, inputs: Inputs, clock: Clock) -> float:
    # Copies, because layers that work in place would change the inputs of the next run.
    own = map_tensors(lambda tensor: tensor.clone(), inputs)
    start = clock()
    call(plain, own)
    return clock() - start


def _time_stages(runner: StageRunner, inputs: Inputs, clock: Clock) -> list[list[float]]:
    batch = first_batch(runner, inputs)
    rows = batch.rows
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
