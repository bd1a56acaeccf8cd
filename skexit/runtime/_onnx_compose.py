"""One model of ONNX from the parts of a live network: each stage after the first runs only if a sample stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from skexit.runtime._onnx_parts import OUTPUT
from skexit.runtime._onnx_policy import TEMPERATURES
from skexit.runtime._onnx_session import THRESHOLDS

#: Values by their names in a part, and what is known of the samples that are still running besides: their rows.
Values = dict[str, ir.Value]

#: Functions of numbers that broadcast.
_ELEMENTWISE = {"Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "Mul", "Sub", "Where"}

#: More rows than any call has.
_MOST_ROWS = 2**32

ROWS, LOGITS, LEAVES, FEATURES = "rows", "logits", "leaves", "features"


def compose(
    stages: ir.Model,
    decisions: ir.Model,
    exits: Sequence[int],
    input_names: Sequence[str],
    thresholds: Any,
    temperatures: Any,
    classes: Any,
) -> ir.Model:
    """A model that takes the network's inputs and gives ``labels``, ``probabilities`` and ``exits``.

    `stages` has a part ``stage3`` and `decisions` a part ``exit3`` for each of the exits; both are used up. `classes`
    are integers.
    """
    _drop_expansions(decisions.graph)
    first = _of_part(stages.graph.inputs, f"stage{exits[0]}")
    inputs = [
        ir.Value(name=name, type=value.type, shape=value.shape)
        for name, value in zip(input_names, first.values(), strict=True)
    ]
    graph = ir.Graph(inputs, [], nodes=[], name="early_exit", opset_imports=stages.opset_imports)
    constants = _Constants(graph)
    _name_rows(inputs)
    running: Values = dict(zip(first, inputs, strict=True))
    main = _Scope(graph, "start")
    running[ROWS] = main("Range", constants(0), main("Gather", main("Shape", inputs[0]), constants(0)), constants(1))
    default = constants.named(THRESHOLDS, np.asarray(thresholds, dtype=np.float64))
    graph.inputs.append(default)  # with its default value: a call may give others
    by_exit = main.split("Split", default, len(thresholds), axis=0)
    answers = _Composer(stages, decisions, exits, constants, by_exit).run(graph, 0, running)
    _finish(graph, answers, constants, temperatures, classes)
    model = ir.Model(graph, ir_version=stages.ir_version)
    RemoveUnusedNodesPass()(model)
    return model


class _Composer:
    """Puts stage after stage into the graph where it runs."""

    def __init__(
        self,
        stages: ir.Model,
        decisions: ir.Model,
        exits: Sequence[int],
        constants: _Constants,
        thresholds: Sequence[ir.Value],
    ) -> None:
        self._stages, self._decisions, self._exits = stages.graph, decisions.graph, exits
        self._constants, self._thresholds = constants, thresholds

    def run(self, graph: ir.Graph, i: int, running: Values) -> Values:
        """Answers of all samples that run and have come to the `i`-th of the exits: logits, and rows with exits."""
        k = self._exits[i]
        outputs = _move(self._stages, f"stage{k}", graph, running)
        read = {**running, **outputs, "threshold": self._thresholds[k]}
        decided = _move(self._decisions, f"exit{k}", graph, read)
        if i == len(self._exits) - 1:
            return self._answers(_Scope(graph, f"answer{k}"), k, running[ROWS], decided[LOGITS])
        going_on = {name: value for name, value in running.items() if name == ROWS or name.startswith("side")}
        going_on |= {name: value for name, value in (outputs | decided).items() if name.startswith(("tensor", "note/"))}
        if LEAVES not in decided:
            return self.run(graph, i + 1, going_on)
        return self._run_if_any_stays(graph, i, going_on, decided[LOGITS], decided[LEAVES])

    def _run_if_any_stays(
        self, graph: ir.Graph, i: int, going_on: Values, logits: ir.Value, leaves: ir.Value
    ) -> Values:
        k = self._exits[i]
        scope = _Scope(graph, f"leave{k}")
        stays = scope("Not", leaves)
        rows = scope("Compress", going_on[ROWS], stays, axis=0)
        any_stays = scope("Cast", scope("Size", rows), to=ir.DataType.BOOL)

        then_branch = ir.Graph([], [], nodes=[], name=f"after_exit{k}")
        inner = _Scope(then_branch, f"stay{k}")
        staying = {name: inner("Compress", value, stays, axis=0) for name, value in going_on.items() if name != ROWS}
        leaving = [inner("Compress", value, leaves, axis=0) for value in (going_on[ROWS], logits)]
        own = self._answers(inner, k, *leaving)
        later = self.run(then_branch, i + 1, {**staying, ROWS: rows})
        last = _Scope(then_branch, f"join{k}")
        then_branch.outputs.extend(last("Concat", own[name], later[name], axis=0) for name in own)

        else_branch = ir.Graph([], [], nodes=[], name=f"all_leave_exit{k}")
        alone = _Scope(else_branch, f"all{k}")
        everyone = self._answers(alone, k, going_on[ROWS], alone("Identity", logits))
        else_branch.outputs.extend(everyone.values())
        joined = scope.split("If", any_stays, len(own), then_branch=then_branch, else_branch=else_branch)
        return dict(zip(own, joined, strict=True))

    def _answers(self, scope: _Scope, k: int, rows: ir.Value, logits: ir.Value) -> Values:
        # One number for row and exit: each node counts.
        return {ROWS: scope("Add", rows, self._constants(k * _MOST_ROWS)), LOGITS: logits}


def _finish(graph: ir.Graph, answers: Values, constants: _Constants, temperatures: Any, classes: Any) -> None:
    """Answers in the order of the rows, as outputs of the graph."""
    scope = _Scope(graph, "end")
    rows = scope("Mod", answers[ROWS], constants(_MOST_ROWS))
    all_exits = scope("Div", answers[ROWS], constants(_MOST_ROWS))
    # Where the answer of each row stands.
    positions = scope("Range", constants(0), scope("Size", rows), constants(1))
    order = scope("ScatterElements", rows, rows, positions, axis=0)
    logits, exits = (scope("Gather", values, order, axis=0) for values in (answers[LOGITS], all_exits))
    predicted = scope("ArgMax", logits, axis=1, keepdims=0)
    labels = scope("Gather", constants.named("classes", np.asarray(classes, dtype=np.int64)), predicted, axis=0)
    by_exit = constants.named(TEMPERATURES, np.asarray(temperatures, dtype=np.float64)[:, None])
    scaled = scope("Div", logits, scope("Gather", by_exit, exits, axis=0))
    probabilities = scope("Cast", scope("Softmax", scaled, axis=1), to=ir.DataType.FLOAT)
    n_classes = len(np.asarray(classes))
    for name, value, kind, widths in (
        ("labels", labels, ir.DataType.INT64, []),
        ("probabilities", probabilities, ir.DataType.FLOAT, [n_classes]),
        ("exits", exits, ir.DataType.INT64, []),
    ):
        output = scope("Identity", value)
        output.name, output.type, output.shape = name, ir.TensorType(kind), ir.Shape(["rows", *widths])
        graph.outputs.append(output)


def _drop_expansions(graph: ir.Graph) -> None:
    """Pass scalars as they are where they are expanded to the shape of what they are combined with.

    At an exit there is little to compute, so that each node counts.
    """
    for node in graph:
        if node.op_type != "Expand" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        scalar, shape = node.inputs[0], node.inputs[1].producer()
        if not scalar.is_initializer() or scalar.shape != () or shape is None or shape.op_type != "Shape":
            continue
        for user, i in node.outputs[0].uses():
            if user.op_type in _ELEMENTWISE and shape.inputs[0] in user.inputs:
                user.replace_input_with(i, scalar)


def _move(source: ir.Graph, part: str, target: ir.Graph, given: Values) -> Values:
    """Move the nodes of a part to the end of a graph, for given inputs, with its weights; gives its outputs."""
    ends = _of_part(source.outputs, f"{OUTPUT}{part}")
    nodes = _nodes_before(source, list(ends.values()))
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


def _of_part(values: Sequence[ir.Value], part: str) -> Values:
    """Inputs or outputs that belong to a part, by their own names."""
    named = {value.name or "": value for value in values}
    return {name.removeprefix(f"{part}/"): value for name, value in named.items() if name.startswith(f"{part}/")}


def _nodes_before(graph: ir.Graph, values: list[ir.Value]) -> list[ir.Node]:
    """Nodes that some values depend on, in the order of the graph."""
    needed: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in needed:
            needed.add(node)
            waiting.extend(value for value in node.inputs if value is not None)
    return [node for node in graph if node in needed]


def _copy_weight(value: ir.Value, part: str) -> ir.Value:
    name = f"{part}/{(value.name or '').removeprefix(f'parts.{part}.')}"
    return ir.Value(name=name, const_value=value.const_value, type=value.type, shape=value.shape)


def _source(value: ir.Value) -> ir.Value:
    """The value that another is a copy of."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value, node = node.inputs[0], node.inputs[0].producer()
    return value


def _name_sizes(value: ir.Value, prefix: str) -> None:
    """Make the names of sizes that are open a part's own: another part has them for other sizes."""
    if value.shape is not None:
        value.shape = ir.Shape([size if isinstance(size, int) else f"{prefix}/{size}" for size in value.shape])


def _name_rows(inputs: Sequence[ir.Value]) -> None:
    for value in inputs:
        if value.shape is not None:
            sizes: list[Any] = ["rows", *value.shape[1:]]
            value.shape = ir.Shape(sizes)


class _Constants:
    """Constants of the main graph, which branches see, too."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._integers: dict[int, ir.Value] = {}

    def __call__(self, integer: int) -> ir.Value:
        if integer not in self._integers:
            self._integers[integer] = self.named(f"constant{integer}", np.array(integer, dtype=np.int64))
        return self._integers[integer]

    def named(self, name: str, array: Any) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        shape = ir.Shape(np.shape(array))
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=shape)
        self._graph.initializers.add(value)
        return value


class _Scope:
    """Appends nodes to a graph, under names of its own."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph, self._prefix, self._n_nodes = graph, prefix, 0

    def __call__(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self._append(kind, inputs, 1, attributes)[0]

    def split(self, kind: str, value: ir.Value, n_outputs: int, **attributes: Any) -> Sequence[ir.Value]:
        if kind == "Split":
            attributes["num_outputs"] = n_outputs
        return self._append(kind, [value], n_outputs, attributes)

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
