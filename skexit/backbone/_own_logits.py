"""Which logits in a network's output belong to which exit, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skexit.backbone._inputs import Inputs
from skexit.backbone._modules import NETWORK_OUTPUT, with_first_name
from skexit.backbone._outputs import logits_in, tensors_in, two_logits
from skexit.backbone._tracing import Trace, trace

#: A tensor in the network's output, by its place, and the axis and number along it where it holds logits of several
#: exits.
Place = tuple[int, tuple[int, int] | None]


@dataclass(frozen=True)
class OwnLogits:
    """Logits of exits in a network's output.

    `places` has for each exit where its logits are, None where the output has none for it. `flops` are the cumulative
    FLOPs of the exits with these logits, for one sample.
    """

    places: list[Place | None]
    flops: NDArray[np.float64]

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
    """What `find_own_logits` gives; None where no head is the network's output, or it cannot be run to find it."""
    if NETWORK_OUTPUT not in heads:
        return None
    try:
        own = find_own_logits(model, exits, example_input)
    except Exception:
        # Whatever is wrong shows again where the network runs.
        return None
    return own if own.places[-1] is not None else None


def find_own_logits(model: nn.Module, exits: Sequence[str], example_input: Inputs) -> OwnLogits:
    """Find the logits of exits, which are in forward order, in the output of a network.

    Logits belong to the last exit that they follow from, of whose modules each is called once; those of the network's
    end to the last exit.
    """
    traced = trace(model, example_input)
    first_names = [with_first_name(model, name) for name in exits]
    calls = [next((call for call in traced.calls if call.name == name), None) for name in first_names]
    candidates = _candidates(traced)
    made_by = [traced.values.operations_before(value) for value, _ in candidates]
    n_operations = [len(operations) for operations in made_by]
    places: list[Place | None] = [None] * len(exits)
    needed: list[set[int]] = [set() for _ in exits]
    for number in np.argsort(n_operations, kind="stable"):
        value, place = candidates[number]
        follows = [
            k
            for k, call in enumerate(calls)
            if call is not None and any(v == value or traced.values.made[v] in made_by[number] for v in call.values)
        ]
        if follows and places[follows[-1]] is None:
            places[follows[-1]], needed[follows[-1]] = place, made_by[number]
    return OwnLogits(places, _cumulative_flops(traced, calls, needed))


def _candidates(traced: Trace) -> list[tuple[int, Place]]:
    """Values in the output that may be logits of an exit, and where they are."""
    tensors = tensors_in(traced.output)
    named = logits_in(traced.output)
    tables = [n for n, tensor in enumerate(tensors) if tensor.ndim in (1, 2) and tensor.is_floating_point()]
    stacked = [one for n, tensor in enumerate(tensors) if tensor.ndim == 3 for one in _stacked(traced, n, tensor)]
    if len(tables) == 1 and named is not tensors[tables[0]] and not stacked:
        return []  # such as the pooled output of a network without a classifier
    widths = Counter(tensors[n].shape[1:] for n in tables)
    width = named.shape[1:] if isinstance(named, torch.Tensor) else max(widths, key=widths.__getitem__, default=None)
    if not tables or (isinstance(named, torch.Tensor) and named.ndim == 3):
        return stacked
    found: list[tuple[int, Place]] = [
        (value, (n, None)) for n in tables if tensors[n].shape[1:] == width and (value := traced.outputs[n]) is not None
    ]
    return found + [(value, place) for value, place in stacked if _at(tensors, place).shape[1:] == _two_wide(width)]


def _two_wide(width: Any) -> Any:
    return (2,) if width in ((), (1,)) else width


def _stacked(traced: Trace, number: int, tensor: torch.Tensor) -> list[tuple[int, Place]]:
    """The logits that were joined to one tensor: of shape (n_samples, n_exits, n_classes), or with axes exchanged."""
    values, value = traced.values, traced.outputs[number]
    is_whole = True
    while value is not None:
        operation, parents = values.made[value], values.parents[values.made[value]] if values.made[value] >= 0 else []
        if operation in values.joins:
            axes = [values.joins[operation] % 3] if is_whole else [1, 0]
            for axis in axes:
                if tensor.shape[axis] == len(parents) and tensor.shape[0 if axis else 1] == traced.n_rows:
                    return [(parent, (number, (axis, k))) for k, parent in enumerate(parents)]
            return []
        value, is_whole = (parents[0] if len(parents) == 1 else None), False
    return []


def _cumulative_flops(traced: Trace, calls: Sequence[Any], needed: list[set[int]]) -> NDArray[np.float64]:
    """FLOPs of one sample of what runs up to each exit, and of the logits of the exits up to it."""
    costs, own = [], set[int]()
    for call, operations in zip(calls, needed, strict=True):
        own |= operations
        end = 0 if call is None else call.end
        costs.append(sum(traced.values.flops[number] for number in own | set(range(end))))
    return np.array(costs) / traced.n_rows
