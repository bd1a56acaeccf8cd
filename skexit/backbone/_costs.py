"""The cost of each exit of a network, in operations or milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skexit.backbone._counting import forward_on_own_device, left_as_found, run_counting_flops
from skexit.backbone._inputs import Inputs, in_form, tensors_of
from skexit.backbone._modules import (
    NETWORK_OUTPUT,
    Head,
    check_called_once,
    device_of,
    hook_calls,
    names_of_exits,
    own_heads,
    resolve_heads,
    unwrapped,
)
from skexit.backbone._other_forms import naming_other_form
from skexit.backbone._own_logits import OwnLogits, own_logits_or_none
from skexit.utils._checks import check_positive

COST_UNITS = ("FLOPs", "MACs", "ms")

_N_WARM_UP_RUNS = 3


@dataclass(frozen=True, eq=False)
class ExitCosts:
    """Cost of a prediction at each exit.

    Parameters
    ----------
    costs : ndarray of shape (n_exits,)
        Cumulative cost of one sample.
    unit : {"FLOPs", "MACs", "ms"}
        Unit of the costs.
    network : float
        Cost of one sample in the network without exits.
    spread : ndarray of shape (n_exits,) or None
        Interquartile range of the repeated runs for ``"ms"``, None for other units, which are exact.
    """

    costs: NDArray[np.float64]
    unit: str
    network: float
    spread: NDArray[np.float64] | None = None


def exit_costs(
    model: nn.Module,
    exits: Sequence[str],
    example_input: Inputs,
    unit: str = "FLOPs",
    *,
    head: Head = "output",
    n_repeats: int = 20,
) -> ExitCosts:
    """Measure the cost of a prediction at each exit of a network.

    The network runs in evaluation mode and is not changed. The cost of exit k is that of the network up to the end of
    the exit's module, plus that of the heads of the exits up to k, wherever the network computes these heads.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    exits : sequence of str or of modules
        Names of the modules after which the network can stop, or these modules, in forward order.
    example_input : tensor, tuple of tensors or dict of tensors
        One batch of inputs; a tuple is passed by position, a dict by keyword. Costs are divided by
        the number of its rows.
    unit : {"FLOPs", "MACs", "ms"}, default="FLOPs"
        FLOPs count a multiply-add as two operations, MACs as one. Both count the multiply-adds of
        convolutions, matrix products (linear layers, recurrent cells, experts with the tokens routed to them) and
        attention. Milliseconds are the median of repeated runs on the device of the network, at the batch size of
        `example_input`.
    head : "output", None, list of n_exits str or None, or dict of str to str, default="output"
        Where logits come from. ``"output"``: the network's own output has the logits of the last exit,
        whose cost is that of the whole network. None: no exit has logits. A list has the name of the
        module that is the head of each exit; a dict has it by the names of exits.
    n_repeats : int, default=20
        Number of timed runs for ``"ms"``.

    Returns
    -------
    costs : ExitCosts
        The cumulative costs, their unit, the cost of the whole network and, for ``"ms"``, the spread.

    Raises
    ------
    ValueError
        If a module is unknown or not called exactly once, the exits are not in forward order, or
        two of them cost the same.

    Warns
    -----
    UncountedWorkWarning
        If the network calls operators whose FLOPs are not known, such as your own, a Fourier transform or an inverse.
        ``torch.utils.flop_counter.register_flop_formula`` registers the FLOPs of an operator.

    Notes
    -----
    Operations are counted on the meta device: only integers, such as masks and positions, are computed, and no weight
    is copied. Hooks of your own run there, too. A network that cannot run on the meta device, because its control flow
    depends on other values, runs on its own device instead.

    Examples
    --------
    >>> import torch
    >>> from skexit.backbone import exit_costs
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> exit_costs(model, ["0", "2"], torch.zeros(1, 8), unit="MACs").costs
    array([128., 192.])
    """
    if unit not in COST_UNITS:
        raise ValueError(f"unit={unit!r} must be one of {list(COST_UNITS)}.")
    check_positive("n_repeats", n_repeats)
    model = unwrapped(model)
    exits = names_of_exits(model, exits)
    example_input = in_form(example_input, "example_input")
    counts = unit != "ms" and head == NETWORK_OUTPUT
    own = own_logits_or_none(model, resolve_heads(model, head, exits), exits, example_input) if counts else None
    with naming_other_form(model, example_input):
        return measure_costs(model, exits, example_input, unit, head, own, n_repeats)


def measure_costs(
    model: nn.Module,
    exits: Sequence[str],
    example_input: Inputs,
    unit: str,
    head: Head,
    own: OwnLogits | None,
    n_repeats: int = 20,
) -> ExitCosts:
    """The result of `exit_costs`, if the logits of exits in the network's output are known already."""
    n_rows = len(tensors_of(example_input)[0])
    run = _Run(model, list(exits), resolve_heads(model, head, exits))
    with left_as_found(model), torch.no_grad():
        model.eval()
        if unit == "ms":
            runs = _timed_runs(run, example_input, n_repeats) / n_rows
            costs, spread = np.median(runs, axis=0), np.subtract(*np.percentile(runs[:, :-1], [75, 25], axis=0))
        else:
            flops_per_operation = {"FLOPs": 1, "MACs": 2}[unit]
            flops = run_counting_flops(model, example_input, run, warns=True)
            if own is not None and head == NETWORK_OUTPUT and (any(own.places[:-1]) or not own.reaches_end):
                n_own = len(exits) - own.reaches_end  # its last logits cost as much as the network
                flops[:n_own] = n_rows * own.flops[:n_own]
            costs, spread = flops / (flops_per_operation * n_rows), None
    _check_increasing(costs[:-1], list(exits), unit)
    return ExitCosts(costs[:-1], unit, float(costs[-1]), spread)


class _Run:
    """Run a network once and read a clock at its exits and heads.

    All readings come from one run, so that later exits never cost less than earlier ones.
    """

    def __init__(self, model: nn.Module, exits: list[str], heads: list[str | None]) -> None:
        self.model = model
        self._exits = exits
        self.heads = heads
        self._own_heads = own_heads(heads)

    def __call__(self, forward: Callable[[], Any], clock: Callable[[], float]) -> NDArray[np.float64]:
        """Cumulative cost of the exits, and then that of the whole network, in units of the clock."""
        exit_ends: list[tuple[str, float]] = []
        head_starts: list[tuple[str, float]] = []
        head_ends: list[tuple[str, float]] = []
        with ExitStack() as hooks:
            for name in self._exits:
                hooks.enter_context(self._hook(name, exit_ends, clock))
            for name in self._own_heads.values():
                hooks.enter_context(self._hook(name, head_starts, clock, before=True))
                hooks.enter_context(self._hook(name, head_ends, clock))
            start = clock()
            forward()
            end = clock()
        check_called_once([name for name, _ in exit_ends], self._exits, "exits")
        check_called_once([name for name, _ in head_ends], list(self._own_heads.values()), "head")
        check_forward_order([name for name, _ in exit_ends], self._exits)
        ends = [
            end if head == NETWORK_OUTPUT else reading for (_, reading), head in zip(exit_ends, self.heads, strict=True)
        ]
        reached = np.array(ends, dtype=np.float64)
        starts, durations = self._head_times(dict(head_starts), dict(head_ends))
        # The cost of heads that ran before an exit is subtracted: a head counts at its own exit,
        # wherever the network computes it.
        in_heads = np.clip(reached[:, None] - starts, 0, durations).sum(axis=1)
        return np.append(reached - start - in_heads + np.cumsum(durations), end - start)

    def _hook(
        self, name: str, readings: list[tuple[str, float]], clock: Callable[[], float], before: bool = False
    ) -> torch.utils.hooks.RemovableHandle:
        return hook_calls(self.model, name, lambda *_: readings.append((name, clock())), before=before)

    def _head_times(
        self, starts: dict[str, float], ends: dict[str, float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Start and duration of the head of each exit, zero for an exit without one."""
        times = np.zeros((2, len(self._exits)))
        for k, name in self._own_heads.items():
            times[:, k] = starts[name], ends[name] - starts[name]
        return times[0], times[1]


def _timed_runs(run: _Run, inputs: Inputs, n_repeats: int) -> NDArray[np.float64]:
    """Milliseconds for the whole batch in each run: cumulative for the exits, then for the whole network."""
    forward = forward_on_own_device(run.model, inputs)
    clock = millisecond_clock(device_of(run.model))
    for _ in range(_N_WARM_UP_RUNS):
        forward()
    return np.stack([run(forward, clock) for _ in range(n_repeats)])


def millisecond_clock(device: torch.device) -> Callable[[], float]:
    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1000 * time.perf_counter()

    return read


def check_forward_order(called: list[str], exits: list[str]) -> None:
    if called != exits:
        raise ValueError(f"exits={exits} are not in forward order; the network calls {called}. Pass this order.")


def _check_increasing(costs: NDArray[np.float64], exits: list[str], unit: str) -> None:
    if costs[0] <= 0:
        raise ValueError(f"exits: {exits[0]!r} is reached after 0 {unit}; start with a later module, or use 'ms'.")
    for k in np.flatnonzero(np.diff(costs) <= 0):
        raise ValueError(
            f"exits: {exits[k]!r} costs {costs[k]:g} {unit} and the next exit, {exits[k + 1]!r}, {costs[k + 1]:g}. "
            "Costs must increase from exit to exit: drop one of the two."
        )
