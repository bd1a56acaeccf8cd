"""Operations that read only the shape, type and device of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
#: These operations, and those that make the same result from a shape.
FILLED = {
    _aten.new_zeros: _aten.zeros.default,
    _aten.new_ones: _aten.ones.default,
    _aten.new_full: _aten.full.default,
    _aten.new_empty: _aten.empty.memory_format,
    _aten.zeros_like: _aten.zeros.default,
    _aten.ones_like: _aten.ones.default,
    _aten.full_like: _aten.full.default,
    _aten.empty_like: _aten.empty.memory_format,
}


def filled(graph: fx.Graph, node: fx.Node, copied: Callable[[Any], Any]) -> fx.Node:
    """Add one of these operations to another graph, as one on a shape; `copied` returns the copy of a node there."""
    value, tensor = node.meta["val"], copied(node.args[0])
    is_like = node.target.overloadpacket.__name__.endswith("_like")  # type: ignore[union-attr]
    sizes = [_size(graph, tensor, axis, size) for axis, size in enumerate(value.shape)] if is_like else node.args[1]
    rest = node.args[1 if is_like else 2 :]
    args = fx.node.map_arg((sizes, *rest), copied) if not is_like else (sizes, *fx.node.map_arg(rest, copied))
    target = FILLED[node.target.overloadpacket]  # type: ignore[union-attr]
    made = graph.call_function(target, args, {"dtype": value.dtype, "device": value.device})
    made.meta = dict(node.meta)
    return made


def _size(graph: fx.Graph, tensor: fx.Node, axis: int, size: Any) -> Any:
    """The size of an axis: a number, or a node that reads it."""
    if isinstance(size, int):
        return size
    node = graph.call_function(_aten.sym_size.int, (tensor, axis))
    node.meta["val"] = size
    return node
