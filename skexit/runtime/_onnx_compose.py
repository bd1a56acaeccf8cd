"""Join the parts of a live network to one ONNX model, in which later stages run only if a sample reaches them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from skexit.runtime._onnx_parts import OUTPUT
from skexit.runtime._onnx_policy import TEMPERATURES
from skexit.runtime._onnx_session import THRESHOLDS
from skexit.runtime._onnx_simplify import nodes_before, simplify

#: Values by their names in a part. After the first exit at which samples may leave, the values of the running samples
#: include their rows, of shape (n_rows, 1).
Values = dict[str, ir.Value]

ROWS, LOGITS, STAYS = "rows", "logits", "stays"


def compose(
    parts: ir.Model,
    exits: Sequence[int],
    input_names: Sequence[str],
    thresholds: Any,
    thresholds_as_input: bool,
    temperatures: Any,
    classes: Any,
) -> ir.Model:
    """A model with the network's inputs, and the outputs ``labels``, ``probabilities`` and ``exits``.

    For each exit k, the model `parts` has a part ``stage{k}`` and a part ``exit{k}``. Their nodes are moved to the new
    model. `classes` are integers.
    """
    simplify(parts.graph, f"{OUTPUT}exit")
    first = _of_part(parts.graph.inputs, f"stage{exits[0]}")
    inputs = [
        ir.Value(name=name, type=value.type, shape=value.shape)
        for name, value in zip(input_names, first.values(), strict=True)
    ]
    graph = ir.Graph(inputs, [], nodes=[], name="early_exit", opset_imports=parts.opset_imports)
    constants = _Constants(graph)
    _name_rows(inputs)
    running: Values = dict(zip(first, inputs, strict=True))
    main = _Scope(graph, "start")
    default = constants.array(THRESHOLDS, np.asarray(thresholds, dtype=np.float64))
    if thresholds_as_input:
        graph.inputs.append(default)
    by_exit = main.split(default, len(thresholds), axis=0)
    answers = _Composer(parts.graph, exits, constants, by_exit).run(graph, 0, running)
    _finish(graph, answers, constants, temperatures, classes)
    model = ir.Model(graph, ir_version=parts.ir_version)
    RemoveUnusedNodesPass()(model)
    _remove_unused_weights(graph)
    return model


class _Composer:
    """Adds the stages to the graph, one after another."""

    def __init__(
        self, parts: ir.Graph, exits: Sequence[int], constants: _Constants, thresholds: Sequence[ir.Value]
    ) -> None:
        self._parts, self._exits, self._constants, self._thresholds = parts, exits, constants, thresholds

    def run(self, graph: ir.Graph, i: int, running: Values, answers: ir.Value | None = None) -> ir.Value:
        """Add the stages from the `i`-th exit on, and return the predictions of all samples.

        Predictions are a matrix with one row per sample: the logits of the last exit that the sample reached, and the
        number of this exit.
        """
        k = self._exits[i]
        outputs = _move(self._parts, f"stage{k}", graph, running)
        read = {**running, **outputs, "threshold": self._thresholds[k]}
        decided = _move(self._parts, f"exit{k}", graph, read)
        is_last = i == len(self._exits) - 1
        if is_last or STAYS in decided:
            answers = self._answer(_Scope(graph, f"answer{k}"), k, decided[LOGITS], running.get(ROWS), answers)
        if is_last and answers is not None:
            return answers
        going_on = {name: value for name, value in running.items() if name == ROWS or name.startswith("side")}
        going_on |= {name: value for name, value in (outputs | decided).items() if name.startswith(("tensor", "note/"))}
        if STAYS not in decided or answers is None:
            return self.run(graph, i + 1, going_on, answers)
        return self._run_if_any_stays(graph, i, going_on, decided[STAYS], answers)

    def _answer(
        self, scope: _Scope, k: int, logits: ir.Value, rows: ir.Value | None, answers: ir.Value | None
    ) -> ir.Value:
        # One matrix for logits and exits needs fewer nodes than two.
        one_column = self._constants.array("one_column", np.array([0, 0, 0, 1]))
        number = self._constants.array(f"exit{k}", np.array(k, dtype=np.float64))
        answer = scope("Pad", logits, one_column, number)
        return answer if answers is None or rows is None else scope("ScatterND", answers, rows, answer)

    def _run_if_any_stays(
        self, graph: ir.Graph, i: int, going_on: Values, stays: ir.Value, answers: ir.Value
    ) -> ir.Value:
        k = self._exits[i]
        scope = _Scope(graph, f"leave{k}")
        if ROWS in going_on:
            rows = scope("Compress", going_on[ROWS], stays, axis=0)
        else:
            rows = scope("Transpose", scope("NonZero", stays))
        any_stays = scope("Cast", scope("Size", rows), to=ir.DataType.BOOL)

        then_branch = ir.Graph([], [], nodes=[], name=f"after_exit{k}")
        inner = _Scope(then_branch, f"stay{k}")
        staying = {name: inner("Compress", value, stays, axis=0) for name, value in going_on.items() if name != ROWS}
        then_branch.outputs.append(self.run(then_branch, i + 1, {**staying, ROWS: rows}, answers))

        else_branch = ir.Graph([], [], nodes=[], name=f"all_leave_exit{k}")
        else_branch.outputs.append(_Scope(else_branch, f"all{k}")("Identity", answers))
        return scope("If", any_stays, then_branch=then_branch, else_branch=else_branch)


def _finish(graph: ir.Graph, answers: ir.Value, constants: _Constants, temperatures: Any, classes: Any) -> None:
    """Add labels, probabilities and exits as outputs of the graph."""
    scope, n_classes = _Scope(graph, "end"), len(np.asarray(classes))
    widths = constants.array("widths", np.array([n_classes, 1]))
    logits, numbers = scope.split(answers, 2, widths, axis=1)
    column = scope("Squeeze", numbers, constants.array("axis", np.array([1])))
    exits = scope("Cast", column, to=ir.DataType.INT64)
    predicted = scope("ArgMax", logits, axis=1, keepdims=0)
    labels = scope("Gather", constants.array("classes", np.asarray(classes, dtype=np.int64)), predicted, axis=0)
    by_exit = constants.array(TEMPERATURES, np.asarray(temperatures, dtype=np.float64)[:, None])
    scaled = scope("Div", logits, scope("Gather", by_exit, exits, axis=0))
    probabilities = scope("Cast", scope("Softmax", scaled, axis=1), to=ir.DataType.FLOAT)
    for name, output, kind, sizes in (
        ("labels", labels, ir.DataType.INT64, []),
        ("probabilities", probabilities, ir.DataType.FLOAT, [n_classes]),
        ("exits", exits, ir.DataType.INT64, []),
    ):
        output.name, output.type, output.shape = name, ir.TensorType(kind), ir.Shape(["rows", *sizes])
        graph.outputs.append(output)


def _move(source: ir.Graph, part: str, target: ir.Graph, given: Values) -> Values:
    """Move the nodes and weights of a part to the end of a graph, connect the given inputs, and return the outputs."""
    ends = _of_part(source.outputs, f"{OUTPUT}{part}")
    nodes = nodes_before(source, list(ends.values()))
    for value in ends.values():
        source.outputs.remove(value)
    values: dict[ir.Value, ir.Value] = {
        value: given[name] for name, value in _of_part(source.inputs, part).items() if name in given
    }
    for node in nodes:
        node.name = f"{part}/{node.name}"
        node.metadata_props.clear()
        for i, operand in enumerate(node.inputs):
            if operand is None:
                continue
            if operand not in values and operand.is_initializer():
                values[operand] = _copy_weight(operand, part)
                target.initializers.add(values[operand])
            if operand in values:
                node.replace_input_with(i, values[operand])
        for output in node.outputs:
            output.name = f"{part}/{output.name}"
            _name_sizes(output, part)
    source.remove(nodes)
    target.extend(nodes)
    return {name: _source(values.get(value, value)) for name, value in ends.items()}


def _remove_unused_weights(graph: ir.Graph) -> None:
    """Remove the weights that no node uses from the branches. onnxruntime warns of them."""
    for branch in graph.subgraphs():
        for name in [name for name, value in branch.initializers.items() if not value.uses()]:
            del branch.initializers[name]


def _of_part(values: Sequence[ir.Value], part: str) -> Values:
    """Inputs or outputs of a part, by their names without the part's name."""
    named = {value.name or "": value for value in values}
    return {name.removeprefix(f"{part}/"): value for name, value in named.items() if name.startswith(f"{part}/")}


def _copy_weight(value: ir.Value, part: str) -> ir.Value:
    name = f"{part}/{(value.name or '').removeprefix(f'parts.{part}.')}"
    return ir.Value(name=name, const_value=value.const_value, type=value.type, shape=value.shape)


def _source(value: ir.Value) -> ir.Value:
    """The value that `value` is a copy of, or `value` itself."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value, node = node.inputs[0], node.inputs[0].producer()
    return value


def _name_sizes(value: ir.Value, prefix: str) -> None:
    """Prefix the names of dynamic sizes, because other parts use the same names for other sizes.

    Sizes without a name get none: onnxruntime takes sizes of one name for equal, and their values may share memory.
    """
    if value.shape is not None:
        value.shape = ir.Shape([_with_prefix(size, prefix) for size in value.shape])


def _with_prefix(size: int | ir.SymbolicDim, prefix: str) -> int | str | None:
    return size if isinstance(size, int) else None if size.value is None else f"{prefix}/{size}"


def _name_rows(inputs: Sequence[ir.Value]) -> None:
    for value in inputs:
        if value.shape is not None:
            sizes: list[Any] = ["rows", *value.shape[1:]]
            value.shape = ir.Shape(sizes)


class _Constants:
    """Constants of the main graph. Its branches can use them, too."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph

    def array(self, name: str, array: Any) -> ir.Value:
        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            shape = ir.Shape(np.shape(array))
            value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=shape)
            self._graph.initializers.add(value)
        return self._graph.initializers[name]


class _Scope:
    """Appends nodes to a graph, with names that start with a prefix."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph, self._prefix, self._n_nodes = graph, prefix, 0

    def __call__(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self._append(kind, inputs, 1, attributes)[0]

    def split(self, value: ir.Value, n_outputs: int, *sizes: ir.Value, axis: int) -> Sequence[ir.Value]:
        evenly = {} if sizes else {"num_outputs": n_outputs}
        return self._append("Split", [value, *sizes], n_outputs, {"axis": axis, **evenly})

    def _append(
        self, kind: str, inputs: Sequence[ir.Value], n_outputs: int, attributes: dict[str, Any]
    ) -> Sequence[ir.Value]:
        name = f"{self._prefix}/{kind}{self._n_nodes}"
        self._n_nodes += 1
        node = ir.node(kind, inputs, attributes, num_outputs=n_outputs, name=name)
        for i, output in enumerate(node.outputs):
            output.name = f"{name}/{i}" if n_outputs > 1 else name
        self._graph.append(node)
        return node.outputs
