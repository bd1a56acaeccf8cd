"""A network cut at its exits into stages that run one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from skexit.backbone._inputs import Inputs
from skexit.backbone._modules import Head, find_modules, resolve_heads
from skexit.backbone._outputs import two_logits
from skexit.backbone._recording import Recording, record


@dataclass(frozen=True)
class Stage:
    """The part of a network that leads from one exit to the next.

    `network` takes what the exit before gave, or the first input, and the other inputs. It gives the tensors that the
    exit's module gives and later stages read. `logits` takes these and the other inputs, and gives the logits that the
    network itself has for this exit. Both are GraphModules, or compiled ones.
    """

    network: nn.Module
    logits: nn.Module | None


class RecordedNetwork:
    """A network in evaluation mode that can be cut at all of its exits, which are in forward order, or at some.

    The stages call the modules of the network itself, which keep their parameters and their hooks.
    """

    def __init__(self, model: nn.Module, exits: Sequence[str], example_input: Inputs, head: Head) -> None:
        find_modules(model, exits, "exits")
        self._model, self._exits = model, exits
        self._recording = record(model, exits, resolve_heads(model, head, exits), example_input)

    def cut(self, ends: Iterable[int]) -> dict[int, Stage]:
        """The stages that end at some of the exits, by exit; what lies between two of them is one stage.

        The exits are in rising order. A ValueError says if the network is not cut by them.
        """
        stages, roots, before = {}, self._recording.inputs[:1], "the first input"
        for k in ends:
            name, logits = f"exit {self._exits[k]!r}", self._recording.logits[k]
            carried = _carried(self._recording, k)
            network = _Part(self._model, self._recording, roots, before).compute(carried, name)
            roots, before = carried, name
            head = _Part(self._model, self._recording, roots, before)
            stages[k] = Stage(
                network, None if logits is None else head.compute_logits(logits, f"the logits of {self._exits[k]!r}")
            )
        return stages


def _carried(recording: Recording, k: int) -> list[fx.Node]:
    """Tensors of an exit that are pooled, or read after it."""
    first, *others = recording.exits[k]
    return [first] + [node for node in others if node.users]


class _Part:
    """A graph of what leads from some values of a recording to others."""

    def __init__(self, model: nn.Module, recording: Recording, roots: list[fx.Node], before: str) -> None:
        self._model = model
        self._recording = recording
        self._before = before
        self._graph = fx.Graph()
        self._copies: dict[fx.Node, fx.Node] = {}
        for node in [*roots, *recording.inputs[1:]]:
            if node not in self._copies:
                copy = self._graph.placeholder(node.name)
                copy.meta["val"] = node.meta["val"]
                self._copies[node] = copy
        self._roots = list(self._copies)

    def compute(self, targets: list[fx.Node] | fx.Node, after: str) -> fx.GraphModule:
        self._after = after
        nodes = targets if isinstance(targets, list) else [targets]
        for node in self._needed(nodes):
            self._copies[node] = self._copy(node)
        self._graph.output(fx.node.map_arg(targets, lambda node: self._copies[node]))
        return fx.GraphModule(_with_constants(self._model, self._recording.constants), self._graph)

    def compute_logits(self, target: fx.Node, after: str) -> fx.GraphModule:
        """A graph of the logits, two where there is one."""
        logits = self.compute(target, after)
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
                raise self._not_cut()
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
        """A dimension of something at hand that is as large as the node says, if it is a size."""
        value = node.meta.get("val")
        if not isinstance(value, torch.SymInt):
            return None
        for root in self._roots:
            for dimension, size in enumerate(root.meta["val"].shape):
                if isinstance(size, torch.SymInt) and size.node.expr == value.node.expr:
                    return self._copies[root], dimension
        return None

    def _not_cut(self) -> ValueError:
        return ValueError(
            f"the network is not cut by its exits: something before {self._before} goes around it to {self._after}, as "
            "a skip connection does. Name exits that everything passes through."
        )


def _with_constants(model: nn.Module, constants: dict[str, torch.Tensor]) -> Any:
    """The network's modules and parameters, and constants, by name."""
    if not constants:
        return model
    root = nn.Module()
    root.__dict__.update({name: value for name, value in model.__dict__.items() if name != "_buffers"})
    root._buffers = {**model._buffers, **constants}
    return root
