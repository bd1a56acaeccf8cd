"""Merge two recordings of a network, for different numbers of rows, into one for any number."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext


def merge(recording: Any, other: Any) -> None:
    """Leave the number of rows open in a recording, by comparison with another. Raises a ValueError if that fails."""
    constants, others = recording.constants, other.constants
    if list(constants) != list(others) or not all(map(torch.equal, constants.values(), others.values())):
        raise _DIFFERENT
    n_rows, more = (len(side.inputs[0].meta["val"]) for side in (recording, other))
    Merging(recording.graph, other.graph, n_rows, more).merge()


class Merging:
    """Changes a graph for a number of rows to one for any number, by comparison with one for another number.

    A size that differs between the two is a multiple of the number of rows, plus a constant. Raises a ValueError if
    the graphs differ in anything else: then the operations of the network depend on the number of rows.
    """

    def __init__(self, graph: fx.Graph, other: fx.Graph, n_rows: int, other_n_rows: int) -> None:
        self._graph, self._n_rows, self._other_n_rows = graph, n_rows, other_n_rows
        self._mode = FakeTensorMode(shape_env=ShapeEnv())
        context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
        self._rows: Any = self._mode.from_tensor(torch.empty(n_rows, device="meta"), symbolic_context=context).shape[0]
        self._sizes: dict[tuple[int, int], fx.Node] = {}
        self._of_other = dict(zip(other.nodes, graph.nodes, strict=False))
        if len(other.nodes) != len(graph.nodes):
            raise _DIFFERENT

    def merge(self) -> None:
        """Change the graph in place."""
        first = next(iter(self._graph.nodes))
        after_inputs = next(node for node in self._graph.nodes if node.op != "placeholder")
        for other, node in list(self._of_other.items()):
            if (other.op, other.target) != (node.op, node.target):
                raise _DIFFERENT
            with self._graph.inserting_before(after_inputs):
                args, kwargs = (self._argument(*pair, first) for pair in _pairs(node, other))
            node.args, node.kwargs = cast(Any, args), cast(Any, kwargs)
            if "val" in node.meta:
                node.meta["val"] = self._value(node.meta["val"], other.meta["val"])

    def _argument(self, here: Any, there: Any, first: fx.Node) -> Any:
        if isinstance(here, list | tuple) and isinstance(there, list | tuple) and len(here) == len(there):
            return type(here)([self._argument(*pair, first) for pair in zip(here, there, strict=True)])
        if isinstance(here, dict) and isinstance(there, dict) and list(here) == list(there):
            return {name: self._argument(here[name], there[name], first) for name in here}
        if isinstance(here, slice) and isinstance(there, slice):
            ends = [(getattr(here, end), getattr(there, end)) for end in ("start", "stop", "step")]
            return slice(*(self._argument(*pair, first) for pair in ends))
        if isinstance(there, fx.Node):
            there = self._of_other[there]
        if type(here) is int and type(there) is int and here != there:
            return self._size_node(*self._factors(here, there), first)
        if here is not there and (type(here) is not type(there) or here != there):
            raise _DIFFERENT
        return here

    def _factors(self, here: int, there: int) -> tuple[int, int]:
        """The factor and the summand that give both sizes from their numbers of rows."""
        factor, rest = divmod(there - here, self._other_n_rows - self._n_rows)
        if rest:
            raise _DIFFERENT
        return factor, here - factor * self._n_rows

    def _size_node(self, factor: int, summand: int, first: fx.Node) -> fx.Node:
        if (factor, summand) not in self._sizes:
            if (factor, summand) == (1, 0):
                node = self._graph.call_function(torch.ops.aten.sym_size.int, (first, 0))
            elif summand == 0:
                node = self._graph.call_function(operator.mul, (self._size_node(1, 0, first), factor))
            else:
                node = self._graph.call_function(operator.add, (self._size_node(factor, 0, first), summand))
            node.meta["val"] = factor * self._rows + summand
            self._sizes[factor, summand] = node
        return self._sizes[factor, summand]

    def _value(self, here: Any, there: Any) -> Any:
        if isinstance(here, list | tuple):
            return [self._value(*pair) for pair in zip(here, there, strict=True)]
        if not isinstance(here, torch.Tensor):
            return here
        if here.ndim != there.ndim:
            raise _DIFFERENT
        sizes = [self._size(*pair) for pair in zip(here.shape, there.shape, strict=True)]
        with self._mode:
            return torch.empty(sizes, dtype=here.dtype, device="meta")

    def _size(self, here: int, there: int) -> Any:
        if here == there:
            return here
        factor, summand = self._factors(here, there)
        return factor * self._rows + summand


def _pairs(node: fx.Node, other: fx.Node) -> Iterable[tuple[Any, Any]]:
    return (node.args, other.args), (dict(node.kwargs), dict(other.kwargs))


_DIFFERENT = ValueError("its operations depend on the number of rows, as in a loop over rows")
