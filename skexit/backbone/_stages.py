"""A network divided at its exits into stages that run one after the other."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from skexit.backbone._autocast import apply_settings
from skexit.backbone._inputs import Inputs
from skexit.backbone._modules import Head, find_modules, resolve_heads
from skexit.backbone._outputs import two_logits
from skexit.backbone._own_logits import own_logits_or_none
from skexit.backbone._recording import Recording, record
from skexit.backbone._refusals import nearest_places
from skexit.backbone._rows import axis_of_rows, rows_first, rows_second


@dataclass(frozen=True)
class Stage:
    """The part of a network that leads from one exit to the next.

    `network` takes the tensors of the exit before, or the first input, and the other inputs. It returns the tensor of
    the exit's module, and the tensors that later stages read. `logits` takes these and the other inputs, and returns
    the network's own logits for this exit. Both are GraphModules, or compiled ones.
    """

    network: nn.Module
    logits: nn.Module | None


class RecordedNetwork:
    """A network in evaluation mode that can be divided at all or some of its exits, which are in forward order.

    The stages call the modules of the network itself, which keep their parameters and their hooks.
    """

    def __init__(self, model: nn.Module, exits: Sequence[str], example_input: Inputs, head: Head) -> None:
        find_modules(model, exits, "exits")
        self._model, self._exits, self._example_input = model, exits, example_input
        heads, opened = resolve_heads(model, head, exits), set[str]()
        #: Places of exits' logits in the network's output; None if no head is the output.
        self.own_logits = own_logits_or_none(model, heads, exits, example_input)
        while True:
            self._recording = record(model, exits, heads, self.own_logits, example_input, opened)
            self._carried = _CarriedTensors(self._recording)
            # The output of such a module may depend on shapes alone; its operations show whether it does.
            closed = (self._carried.modules_without_rows() | self._recording.given_objects) - opened
            if not closed:
                break
            opened |= closed

    def divide(self, ends: Iterable[int]) -> dict[int, Stage]:
        """The stages that end at some of the exits, by exit; the part between two of these is one stage.

        The exits are in increasing order. Raises a ValueError if the network cannot be divided there.
        """
        stages, roots = {}, self._recording.inputs[:1]
        for k in ends:
            logits, carried = self._recording.logits[k], self._carried.past(k)
            self._check_carried(k, carried)
            network = self._part(roots).compute(carried)
            head = None if logits is None else self._part(carried).compute_logits(logits)
            stages[k], roots = Stage(network, head), carried
        return stages

    def _part(self, roots: list[fx.Node]) -> _Part:
        return _Part(self._model, self._recording, roots, self._carried.axis_of_rows)

    def _check_carried(self, k: int, carried: list[fx.Node]) -> None:
        for node in carried:
            if self._carried.axis_of_rows(node) is None:
                raise ValueError(
                    f"the network cannot be divided at exit {self._exits[k]!r}: later modules need {_describe(node)}, "
                    "which does not have one row per sample, so samples cannot stop there one by one. Name another "
                    "exit."
                    f"{nearest_places(self._model, self._example_input, self._exits[k])}"
                )


class _CarriedTensors:
    """Tensors that are carried past each exit of a recording: values of samples, made before it and read after it."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._place = {node: place for place, node in enumerate(recording.graph.nodes)}
        self._n_rows = recording.inputs[0].meta["val"].shape[0]
        self._of_samples: set[fx.Node] = set()
        for node in recording.graph.nodes:
            depends = node is recording.inputs[0] or not self._of_samples.isdisjoint(node.all_input_nodes)
            if depends and not _is_size(node):
                self._of_samples.add(node)

    def past(self, k: int) -> list[fx.Node]:
        """The pooled tensor of exit `k`, and all values that later exits, and logits of this or later exits, need."""
        first, end = self._recording.exits[k][0], max(self._place[node] for node in self._recording.exits[k])
        waiting = [node for outputs in self._recording.exits[k + 1 :] for node in outputs]
        waiting += [node for node in self._recording.logits[k:] if node is not None]
        carried, seen = {first}, set[fx.Node]()
        while waiting:
            node = waiting.pop()
            if node in seen or _is_size(node):
                continue
            seen.add(node)
            if node in self._of_samples and self._place[node] <= end:
                carried.add(node)
            else:
                waiting.extend(node.all_input_nodes)
        return [first, *sorted(carried - {first}, key=self._place.__getitem__)]

    def axis_of_rows(self, node: fx.Node) -> int | None:
        """The axis of the samples in a value; None if it has no such axis."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return None
        return axis_of_rows(value.shape, lambda size: _is_same_size(size, self._n_rows))

    def modules_without_rows(self) -> set[str]:
        """Names of modules, recorded as one call each, with a tensor that is carried but has no rows of samples."""
        nodes = {node for k in range(len(self._recording.exits)) for node in self.past(k)}
        nodes = {node for node in nodes if self.axis_of_rows(node) is None}
        return {str(call.target) for call in map(_calling, nodes) if call is not None}


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)


def _is_same_size(size: Any, other: Any) -> bool:
    """Whether two sizes that were left open are the same."""
    return isinstance(size, torch.SymInt) and isinstance(other, torch.SymInt) and size.node.expr == other.node.expr


def _calling(node: fx.Node) -> fx.Node | None:
    """The call of a module whose output contains a value; None if it is in no module's output."""
    while node.target in (operator.getitem, getattr) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node if node.op == "call_module" else None


def _describe(node: fx.Node) -> str:
    """A value, in words."""
    call, value = _calling(node), node.meta.get("val")
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
    return f"a tensor{shape} from {node.target if call is None else call.target}"


class _Part:
    """A graph that computes values of a recording from other values, and from all inputs except the first.

    All its inputs and outputs have the samples along the first axis.
    """

    def __init__(
        self,
        model: nn.Module,
        recording: Recording,
        roots: list[fx.Node],
        axis_of_rows: Callable[[fx.Node], int | None],
    ) -> None:
        self._model = model
        self._recording = recording
        self._axis_of_rows = axis_of_rows
        self._graph = fx.Graph()
        self._copies: dict[fx.Node, fx.Node] = {}
        for node in [*roots, *recording.inputs[1:]]:
            copy, value = self._graph.placeholder(node.name), node.meta["val"]
            copy.meta["val"] = value
            if axis_of_rows(node) == 1:
                copy.meta["val"] = value.transpose(0, 1)
                copy = self._graph.call_function(rows_second, (copy,))
            self._copies.setdefault(node, copy)
        self._roots = list(self._copies)

    def compute(self, targets: list[fx.Node] | fx.Node) -> fx.GraphModule:
        for node in self._needed(targets if isinstance(targets, list) else [targets]):
            self._copies[node] = self._copy(node)
        self._graph.output(fx.node.map_arg(targets, self._with_rows_first))
        return apply_settings(fx.GraphModule(_with_constants(self._model, self._recording.constants), self._graph))

    def _with_rows_first(self, node: fx.Node) -> fx.Node:
        copy = self._copies[node]
        return self._graph.call_function(rows_first, (copy, 1)) if self._axis_of_rows(node) == 1 else copy

    def compute_logits(self, target: fx.Node) -> fx.GraphModule:
        """A graph of the logits; two if there is one."""
        logits = self.compute(target)
        value = target.meta["val"]
        if value.ndim == 1 or value.shape[1:] == (1,):
            (end,) = logits.graph.find_nodes(op="output")
            with logits.graph.inserting_before(end):
                end.args = (logits.graph.call_function(two_logits, end.args),)
            logits.recompile()
        return logits

    def _needed(self, targets: list[fx.Node]) -> list[fx.Node]:
        """Nodes that the targets depend on, in the order of the recording."""
        needed: set[fx.Node] = set()
        waiting = [node for node in targets if node not in self._copies]
        while waiting:
            node = waiting.pop()
            if node in needed:
                continue
            if node is self._recording.inputs[0]:
                raise ValueError(
                    "the network cannot be divided at its exits: later modules depend on a size of its first input "
                    "that no tensor after an exit has. Name other exits."
                )
            needed.add(node)
            if self._size_of_root(node) is None:
                waiting.extend(argument for argument in node.all_input_nodes if argument not in self._copies)
        return [node for node in self._recording.graph.nodes if node in needed]

    def _copy(self, node: fx.Node) -> fx.Node:
        size = self._size_of_root(node)
        if size is not None:
            return self._graph.call_function(torch.ops.aten.sym_size.int, size)
        return self._graph.node_copy(node, lambda argument: self._copies[argument])

    def _size_of_root(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """A root and its dimension with the size of the node; None if the node is not a size, or no root has it."""
        if not _is_size(node):
            return None
        for root in self._roots:
            for dimension, size in enumerate(root.meta["val"].shape):
                if _is_same_size(size, node.meta["val"]):
                    return self._copies[root], dimension
        return None


def _with_constants(model: nn.Module, constants: dict[str, torch.Tensor]) -> Any:
    """The network's modules and parameters, and constants, by name."""
    if not constants:
        return model
    root = nn.Module()
    root.__dict__.update({name: value for name, value in model.__dict__.items() if name != "_buffers"})
    root._buffers = {**model._buffers, **constants}
    return root
