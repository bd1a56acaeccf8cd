"""Places for exits in a network: the ends of module calls, and the other tensors that later modules need there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from skexit.backbone._inputs import Inputs
from skexit.backbone._other_forms import naming_other_form
from skexit.backbone._outputs import logits_in
from skexit.backbone._own_logits import logits_among
from skexit.backbone._tracing import Trace, Values, trace


@dataclass(frozen=True)
class ExitPlace:
    """The end of a module's call in a forward pass, as a place for an exit."""

    name: str
    end: int
    """Number of operations before it."""
    shape: tuple[int, ...]
    """Shape of the module's output, without the rows."""
    cost: float
    """Cumulative cost as a fraction of the network's FLOPs."""
    n_carried: int
    """Number of tensors, besides the module's output, that later modules need."""
    can_divide: bool
    """Whether all of these have one row per sample, so that a live network can be divided here."""


def trace_modules(model: nn.Module, example_input: Inputs) -> list[ExitPlace]:
    """Places for exits in a network in evaluation mode, in forward order.

    They are the calls of modules that return a tensor of floats with one row per sample, before the network's own
    output. Modules without parameters that are called several times are left out.
    """
    with naming_other_form(model, example_input):
        return places_in(trace(model, example_input, warns=True))


def places_in(traced: Trace) -> list[ExitPlace]:
    """Calls that can be exits."""
    logits = logits_in(traced.output)
    of_exits = logits_among(traced)
    joined = {number for _, (number, part) in of_exits if part is not None}
    whole = {value for n, value in enumerate(traced.outputs) if value is not None and n not in joined}
    answers = whole | {value for value, _ in of_exits}
    needed = _Needed(traced.values, answers)
    n_outputs = logits.shape[-1] if isinstance(logits, torch.Tensor) and logits.ndim else None
    places = []
    for call in traced.calls:
        first, axis_of_rows = call.values[0], traced.values.axis_of_rows
        is_output = first in answers or (call.flops == traced.flops and n_outputs in call.shape)
        is_known = "#" not in call.name or call.has_weights  # not each call of a shared ReLU or dropout
        if is_known and not is_output and call.is_floating and (axis := axis_of_rows[first]) is not None:
            n_carried = needed.counts[call.end] - needed.is_needed_after(call.end, first)
            can_divide = needed.counts[call.end] == needed.counts_with_rows[call.end]
            shape = call.shape[:axis] + call.shape[axis + 1 :]
            cost = call.flops / max(traced.flops, 1)
            places.append(ExitPlace(call.name, call.end, shape, cost, n_carried, can_divide))
    return places


class _Needed:
    """For each value of a forward pass, the last operation that needs it, for answers that are not computed yet.

    Answers are values in the network's output, such as logits. An answer before the last can be computed as soon as all
    values that it shares with the last are there, wherever the network computes it.
    """

    def __init__(self, values: Values, answers: set[int]) -> None:
        self._values = values
        self._until = [-1] * len(values.made)
        before = {answer: values.operations_before(answer) for answer in sorted(answers)}
        last = max(before, key=lambda answer: len(before[answer]), default=None)
        # Operations without a tensor as result have effects, such as decisions.
        effects = set(range(values.n_operations)) - set(values.made)
        way = effects | (before[last] if last is not None else set())
        self._read(way, values.n_operations)
        for operations in before.values():
            self._read(operations - way, max(operations & way, default=-1))
        if last is not None:
            self._until[last] = values.n_operations
        self.counts = self._count(range(len(self._until)))
        """How many values are needed after each number of operations."""
        self.counts_with_rows = self._count([v for v, axis in enumerate(values.axis_of_rows) if axis is not None])
        """How many of them have one row per sample."""

    def is_needed_after(self, end: int, value: int) -> bool:
        """Whether a value is made by the first `end` operations, and read by later ones."""
        return self._values.made[value] < end <= self._until[value]

    def _read(self, operations: set[int], latest: int) -> None:
        """Mark the values that operations read as needed until the operation, or until `latest` if that is earlier."""
        for operation in operations:
            for value in self._values.parents[operation]:
                self._until[value] = max(self._until[value], min(operation, latest))

    def _count(self, some: Iterable[int]) -> list[int]:
        changes = [0] * (self._values.n_operations + 2)
        for value in some:
            made, until = self._values.made[value], self._until[value]
            if until > made:
                changes[made + 1] += 1
                changes[until + 1] -= 1
        return list(accumulate(changes))
