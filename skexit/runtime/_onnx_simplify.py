"""Remove nodes from an ONNX graph.

The computation at an exit is so small that each node takes a noticeable part of its time. Between two layers, a node
without effect prevents onnxruntime from fusing the layers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

#: Element-wise operations with broadcasting.
_ELEMENTWISE = {"Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "Mul", "Sub", "Where"}
#: End of a slice that includes everything.
_NO_END = 2**63 - 1
#: Operations whose output is a column if each input is a column or a scalar.
_OF_NUMBERS = {"Abs", "Add", "Div", "Exp", "Log", "Max", "Mul", "Neg", "Reciprocal", "Sqrt", "Sub"}


def drop_copies(graph: ir.Graph) -> None:
    """Bypass nodes whose output equals their input. The nodes stay in the graph, unused."""
    for node in graph:
        value = node.inputs[0] if node.inputs else None
        if value is not None and _gives_its_input(node, value) and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(value)


def _gives_its_input(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type == "Cast":
        return value.dtype is not None and value.dtype == node.attributes.get_int("to")
    if node.op_type == "Pad":
        return not any(_integers(node.inputs[1]) or [1])
    if node.op_type == "Slice":
        return _is_whole(node, value)
    if node.op_type == "Transpose" and "perm" in node.attributes:
        axes = list(node.attributes["perm"].as_ints())
        return axes == sorted(axes)
    return node.op_type == "Identity"


def _is_whole(node: ir.Node, value: ir.Value) -> bool:
    """Whether a Slice returns its whole input."""
    known = {i: _integers(given) for i, given in enumerate(node.inputs) if i > 0 and given is not None}
    starts, ends, axes, steps = (known.get(i) for i in range(1, 5))
    if starts is None or ends is None or None in known.values():
        return False
    axes = list(range(len(ends))) if axes is None else axes
    sizes = [None if value.shape is None else value.shape[axis] for axis in axes]
    last = [size if isinstance(size, int) else _NO_END for size in sizes]
    reaches_end = all(end >= size for end, size in zip(ends, last, strict=True))
    return reaches_end and not any(starts) and all(step == 1 for step in steps or [])


def simplify(graph: ir.Graph, prefix: str) -> None:
    """Replace operations by simpler ones: on scalars, on columns, and Gemm. Unused nodes stay in the graph.

    Only the nodes change that outputs of the graph depend on whose names start with `prefix`.
    """
    for replace in (_drop_expansions, _compute_columns, _use_gemm):
        outputs = [value for value in graph.outputs if (value.name or "").startswith(prefix)]
        replace(graph, nodes_before(graph, outputs))


def nodes_before(graph: ir.Graph, values: list[ir.Value]) -> list[ir.Node]:
    """The nodes that `values` depend on, in the order of the graph."""
    needed: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in needed:
            needed.add(node)
            waiting.extend(value for value in node.inputs if value is not None)
    return [node for node in graph if node in needed]


def _drop_expansions(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Bypass an Expand of a scalar to the shape of the value that it is combined with."""
    for node in nodes:
        if node.op_type != "Expand" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        scalar, shape = node.inputs[0], node.inputs[1].producer()
        if not _is_scalar(scalar) or shape is None or shape.op_type != "Shape":
            continue
        for user, i in node.outputs[0].uses():
            if user.op_type in _ELEMENTWISE and shape.inputs[0] in user.inputs:
                user.replace_input_with(i, scalar)


def _compute_columns(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Compute values of shape (n_rows,) as columns, of shape (n_rows, 1), if an Unsqueeze follows, and bypass it."""
    columns: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        if node.op_type != "Unsqueeze" or node.outputs[0].is_graph_output():
            continue
        if _integers(node.inputs[1]) == [1] and _rank(node.inputs[0]) == 1:
            column = _column(graph, node.inputs[0], columns)  # type: ignore[arg-type]
            if column is not None:
                node.outputs[0].replace_all_uses_with(column)


def _column(graph: ir.Graph, value: ir.Value, columns: dict[ir.Value, ir.Value]) -> ir.Value | None:
    """The value as a column, from a new node; None if only an Unsqueeze can make it. `columns` are the earlier ones."""
    node = value.producer()
    if node is None or value in columns:
        return columns.get(value)
    make = next((make for kinds, make in _MAKERS if node.op_type in kinds), None)
    made = None if make is None else make(graph, node, columns)
    if made is None:
        return None
    inputs, attributes = made
    new = ir.node(node.op_type, inputs, {**node.attributes, **attributes}, name=f"{node.name}_column")
    column = new.outputs[0]
    column.name, column.type = f"{value.name}_column", value.type
    column.shape = None if value.shape is None else ir.Shape([*value.shape, 1])
    graph.insert_after(node, new)
    columns[value] = column
    return column


_Made = tuple[list[ir.Value | None], dict[str, ir.Attr]] | None


def _kept_dimension(graph: ir.Graph, node: ir.Node, columns: dict[ir.Value, ir.Value]) -> _Made:
    if _rank(node.inputs[0]) != 2 or len(node.inputs) < 2 or _integers(node.inputs[1]) not in ([1], [-1]):
        return None
    return list(node.inputs), {"keepdims": ir.AttrInt64("keepdims", 1)}


def _gathered(graph: ir.Graph, node: ir.Node, columns: dict[ir.Value, ir.Value]) -> _Made:
    values, index = node.inputs
    axis = node.attributes.get_int("axis", 0)
    if _rank(values) != 2 or axis != 1 or index is None or not _is_scalar(index):
        return None
    number = np.array(_integers(index), dtype=np.int64)
    name = f"{node.name}_index"
    own = ir.Value(
        name=name, const_value=ir.tensor(number, name=name), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1])
    )
    graph.initializers.add(own)
    return [values, own], {}


def _of_columns(graph: ir.Graph, node: ir.Node, columns: dict[ir.Value, ir.Value]) -> _Made:
    # A value that other nodes also use without Unsqueeze would be computed twice.
    if len(node.outputs[0].uses()) > 1:
        return None
    inputs: list[ir.Value | None] = []
    for value in node.inputs:
        column = value if value is not None and _is_scalar(value) else _column_of_rows(graph, value, columns)
        if column is None:
            return None
        inputs.append(column)
    return inputs, {}


def _column_of_rows(graph: ir.Graph, value: ir.Value | None, columns: dict[ir.Value, ir.Value]) -> ir.Value | None:
    return _column(graph, value, columns) if value is not None and _rank(value) == 1 else None


_MAKERS: list[tuple[set[str], Callable[[ir.Graph, ir.Node, dict[ir.Value, ir.Value]], _Made]]] = [
    ({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}, _kept_dimension),
    ({"Gather"}, _gathered),
    (_OF_NUMBERS, _of_columns),
]


def _use_gemm(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Replace a product with a weight matrix and the sum with a bias by one Gemm node."""
    for node in nodes:
        product, bias = (*node.inputs, None)[:2] if node.op_type == "Add" else (None, None)
        matmul = None if product is None else product.producer()
        if matmul is None or matmul.op_type != "MatMul" or bias is None or not bias.is_initializer():
            continue
        if len(matmul.outputs[0].uses()) > 1 or matmul.outputs[0].is_graph_output():
            continue  # it would be computed twice
        inputs, weights = matmul.inputs
        if _rank(inputs) != 2 or _rank(weights) != 2 or _rank(bias) != 1 or not weights.is_initializer():  # type: ignore[union-attr]
            continue
        gemm = ir.node("Gemm", [inputs, weights, bias], name=f"{node.name}_gemm")
        output, old = gemm.outputs[0], node.outputs[0]
        output.name, output.type, output.shape = old.name, old.type, old.shape
        graph.insert_after(node, gemm)
        old.replace_all_uses_with(output, replace_graph_outputs=True)
        old.name = f"{old.name}_before"


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _is_scalar(value: ir.Value) -> bool:
    return value.is_initializer() and value.shape == ()


def _integers(value: ir.Value | None) -> list[int] | None:
    """The values of a constant as integers; None if `value` is not constant."""
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in value.const_value.numpy().ravel()]
