"""Finds the logits of each exit in a network's output, and their costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skexit.backbone._inputs import Inputs
from skexit.backbone._modules import NETWORK_OUTPUT, with_first_name
from skexit.backbone._outputs import logits_in, tensors_in, two_logits
from skexit.backbone._tracing import ModuleCall, Trace, Values, trace

#: Index of a tensor in the network's output and, if it has logits of several exits, the axis and the index along it.
Place = tuple[int, tuple[int, int] | None]


#: Largest share of the FLOPs between two exits that the logits of the first exit may need.
_MAX_TWICE = 0.25
#: Largest number of times that the network's last classifier may need the FLOPs of another classifier of its exit.
_MAX_TIMES = 4


@dataclass(frozen=True)
class OwnLogits:
    """Logits of exits in a network's output.

    `places` has the place of the logits of each exit, None if the output has none for it. `flops` are the cumulative
    FLOPs of the exits with these logits, for one sample.
    """

    places: list[Place | None]
    flops: NDArray[np.float64]
    reaches_end: bool
    """Whether the last exit has the network's last logits."""

    def read(self, output: Any) -> list[torch.Tensor | None]:
        """The logits of each exit in an output."""
        tensors = tensors_in(output)
        return [None if place is None else _at(tensors, place) for place in self.places]


def _at(tensors: Sequence[torch.Tensor], place: Place) -> Any:
    number, part = place
    return two_logits(tensors[number] if part is None else tensors[number].select(*part))


def own_logits_or_none(
    model: nn.Module, heads: Sequence[str | None], exits: Sequence[str], example_input: Inputs
) -> OwnLogits | None:
    """The result of `find_own_logits`; None if no head is the network's output, or the network cannot be run."""
    if NETWORK_OUTPUT not in heads:
        return None
    try:
        own = find_own_logits(model, exits, example_input)
    except Exception:
        # The error is raised again when the network runs.
        return None
    return own if own.places[-1] is not None else None


def find_own_logits(model: nn.Module, exits: Sequence[str], example_input: Inputs) -> OwnLogits:
    """Find the logits of exits, which are in forward order, in the output of a network.

    Logits belong to the last exit from which they are computed. If they need much of the computation between it and a
    later exit, they belong to the later one, so that nothing is computed twice. The network's last logits belong to the
    last exit from which they are computed, unless that exit has other logits, which need far fewer FLOPs: then more of
    the network follows.
    """
    traced = trace(model, example_input)
    first_names = [with_first_name(model, name) for name in exits]
    calls = [next((call for call in traced.calls if call.name == name), None) for name in first_names]
    claims = sorted(_claims(traced, calls), key=lambda claim: claim.rank)
    chosen = {claim.exit: claim for claim in claims}
    places = [chosen[k].place if k in chosen else None for k in range(len(exits))]
    needed = [chosen[k].operations if k in chosen else set[int]() for k in range(len(exits))]
    last = chosen.get(len(exits) - 1)
    return OwnLogits(places, _cumulative_flops(traced, calls, needed), last is None or last.is_of_end)


@dataclass(frozen=True)
class _Claim:
    """Logits that may belong to an exit; of several claims, the one with the highest rank counts."""

    exit: int
    place: Place
    operations: set[int]
    """All operations from which they are computed."""
    is_of_end: bool
    rank: tuple[int, int]


def _claims(traced: Trace, calls: Sequence[ModuleCall | None]) -> Iterator[_Claim]:
    values, candidates = traced.values, logits_among(traced)
    made_by = [values.operations_before(value) for value, _ in candidates]
    end = _last_logits(values, made_by)
    for number, (value, place) in enumerate(candidates):
        operations = made_by[number]
        follows = [
            k
            for k, call in enumerate(calls)
            if call is not None and any(v == value or values.made[v] in operations for v in call.values)
        ]
        if not follows:
            continue
        exit = follows[-1]
        if number == end:
            yield _Claim(exit, place, operations, True, (1, 0))
            continue
        last = _exit_for(traced, calls, exit, operations & made_by[end])
        if last is not None:
            is_beside = values.made[value] not in made_by[end] and _follow_closely(
                values, calls[exit], operations, made_by[end]
            )
            is_own = last == exit and len(operations) < len(made_by[end]) and not is_beside
            rank = (2, -len(operations)) if is_own else (0, len(operations))
            yield _Claim(last, place, operations, False, rank)


def _last_logits(values: Values, made_by: Sequence[set[int]]) -> int:
    """The logits that need most operations, and of these most FLOPs; of equal ones, the last of an ascending list."""
    is_ascending = bool(made_by) and len(made_by[0]) < len(made_by[-1])

    def rank(number: int) -> tuple[int, float, int]:
        flops = sum(values.flops[operation] for operation in made_by[number])
        return len(made_by[number]), flops, number if is_ascending else -number

    return max(range(len(made_by)), key=rank, default=0)


def _follow_closely(values: Values, exit: ModuleCall | None, operations: set[int], end: set[int]) -> bool:
    """Whether the network's last logits need few FLOPs after an exit, as other logits of this exit do."""
    first = 0 if exit is None else exit.end
    own, last = (sum(values.flops[one] for one in needed if one >= first) for needed in (operations, end))
    return 0 < last <= _MAX_TIMES * own


def _exit_for(traced: Trace, calls: Sequence[ModuleCall | None], exit: int, shared: set[int]) -> int | None:
    """This exit, or the first later one that ends after all operations shared with the network; None if none does."""
    ends = {k: call.end for k, call in enumerate(calls) if call is not None and k >= exit}
    later = next((k for k, end in ends.items() if end > max(shared, default=-1)), None)
    flops = traced.values.flops
    between = sum(flops[ends[exit] : None if later is None else ends[later]])
    twice = sum(flops[operation] for operation in shared if operation >= ends[exit])
    return exit if twice <= _MAX_TWICE * between else later


def logits_among(traced: Trace) -> list[tuple[int, Place]]:
    """Values in the output that may be logits of an exit, and their places."""
    tensors = [tensor if tensor.is_floating_point() else tensor.new_empty(()) for tensor in tensors_in(traced.output)]
    named = logits_in(traced.output)
    joined = {n: parts for n, tensor in enumerate(tensors) if (parts := _joined(traced, n, tensor))}
    matrices = [n for n, tensor in enumerate(tensors) if tensor.ndim in (1, 2) and n not in joined]
    tables = matrices if _has_name(traced.output) else _logits_of_matrices(traced, matrices, tensors)
    stacked = [part for parts in joined.values() for part in parts]
    if isinstance(named, torch.Tensor) and any(named is tensors[n] for n in set(matrices) - set(tables)):
        named = tensors[tables[0]]
    if len(tables) == 1 == len(matrices) and named is not tensors[tables[0]] and not stacked:
        return []  # such as the pooled output of a network without a classifier
    widths = Counter(tensors[n].shape[1:] for n in tables)
    width = named.shape[1:] if isinstance(named, torch.Tensor) else max(widths, key=widths.__getitem__, default=None)
    if not tables or any(named is tensors[n] for n in joined):
        return stacked
    found: list[tuple[int, Place]] = [
        (value, (n, None)) for n in tables if tensors[n].shape[1:] == width and (value := traced.outputs[n]) is not None
    ]
    return found + [(value, place) for value, place in stacked if _at(tensors, place).shape[1:] == _two_wide(width)]


def _has_name(output: Any) -> bool:
    return (isinstance(output, Mapping) and "logits" in output) or hasattr(output, "logits")


def _logits_of_matrices(traced: Trace, matrices: list[int], tensors: Sequence[torch.Tensor]) -> list[int]:
    """The matrices that may be logits: not features of other matrices, and not probabilities of them."""
    values = traced.values
    value_of = {n: value for n in matrices if (value := traced.outputs[n]) is not None}
    before = {n: values.operations_before(value) for n, value in value_of.items()}
    dropped = set[int]()
    for earlier, value in value_of.items():
        for later in [n for n in value_of if n != earlier and values.made[value] in before[n]]:
            if tensors[earlier].shape[1:] != tensors[later].shape[1:]:
                dropped.add(earlier)
            elif not any(values.flops[operation] for operation in before[later] - before[earlier]):
                dropped.add(later)
    return [n for n in matrices if n not in dropped] or matrices


def _two_wide(width: Any) -> Any:
    return (2,) if width in ((), (1,)) else width


def _joined(traced: Trace, number: int, tensor: torch.Tensor) -> list[tuple[int, Place]]:
    """The logits that were joined to one tensor: of shape (n_samples, n_exits, n_classes), or with axes exchanged.

    Binary networks have one logit for each exit, and may join them to (n_samples, n_exits).
    """
    values, value, n_axes = traced.values, traced.outputs[number], tensor.ndim
    if n_axes not in (2, 3):
        return []
    is_whole = True
    while value is not None and (operation := values.made[value]) >= 0:
        parents = values.parents[operation]
        if operation in values.joins:
            for axis in [values.joins[operation] % n_axes] if is_whole else [1, 0]:
                if tensor.shape[axis] == len(parents) and tensor.shape[0 if axis else 1] == traced.n_rows:
                    parts: list[tuple[int, Place]] = [(parent, (number, (axis, k))) for k, parent in enumerate(parents)]
                    return parts if n_axes == 3 or _are_of_exits(values, parents) else []
            return []
        is_rearranged = len(parents) == 1 and values.n_elements[value] == values.n_elements[parents[0]]
        value, is_whole = (parents[0] if is_rearranged and not values.flops[operation] else None), False
    return []


def _are_of_exits(values: Values, logits: Sequence[int]) -> bool:
    """Whether single logits are of exits, not of classes: logits of later exits depend on more operations."""
    return len({len(values.operations_before(value)) for value in logits}) > 1


def _cumulative_flops(traced: Trace, calls: Sequence[ModuleCall | None], needed: list[set[int]]) -> NDArray[np.float64]:
    """FLOPs for one sample of all operations up to each exit, and of the logits of the exits up to it."""
    costs, own = [], set[int]()
    for call, operations in zip(calls, needed, strict=True):
        own |= operations
        end = 0 if call is None else call.end
        costs.append(sum(traced.values.flops[number] for number in own | set(range(end))))
    return np.array(costs) / traced.n_rows
