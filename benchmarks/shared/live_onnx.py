"""Networks, stages and empty decisions as onnxruntime runs them, for benchmarks of the live network."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn

from skexit.backbone._inputs import map_tensors, tensors_of
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx
from skexit.runtime._onnx_compose import compose
from skexit.runtime._onnx_export import _input_names, _Parts
from skexit.runtime._onnx_parts import OUTPUT
from skexit.runtime._onnx_simplify import drop_copies

#: Answers inputs of torch.
Network = Callable[[Any], Any]


class OnnxRuntime:
    """Writes networks to a folder, and runs them with a number of threads."""

    def __init__(self, folder: Path, n_threads: int) -> None:
        self._folder = folder
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = n_threads
        self.options.inter_op_num_threads = 1
        self.options.log_severity_level = 3  # the floor does not use all weights

    def live(self, live: EarlyExitModel) -> Network:
        path = export_onnx(live, self._new_path())
        exported = OnnxEarlyExit(path, session_options=self.options)
        return lambda inputs: exported.predict(map_tensors(lambda tensor: tensor.numpy(), inputs))

    def plain(self, network: nn.Module, example: Any) -> Network:
        named, path = isinstance(example, dict), self._new_path()
        dynamic = {name: {0: "rows"} for name in example} if named else ({0: "rows"},)
        program = torch.onnx.export(
            network, () if named else (example,), kwargs=dict(example) if named else None, dynamo=True, verbose=False,
            dynamic_shapes=dynamic,
        )  # fmt: skip
        # As in a live network.
        drop_copies(program.model.graph)
        RemoveUnusedNodesPass()(program.model)
        program.save(path)
        session = self._session(path)
        names = [value.name for value in session.get_inputs()]

        def run(inputs: Any) -> Any:
            arrays = [inputs[name] for name in names] if named else [inputs]
            return session.run(None, dict(zip(names, [array.numpy() for array in arrays], strict=True)))

        return run

    def stages(self, live: EarlyExitModel) -> PlainStages:
        return PlainStages(live, self._session)

    def empty_decisions(self, live: EarlyExitModel) -> EmptyOnnxDecisions:
        path = self._new_path()
        ir.save(_with_known_exits(live), path)
        return EmptyOnnxDecisions(self._session(path))

    def _new_path(self) -> Path:
        return self._folder / f"{len(list(self._folder.iterdir()))}.onnx"

    def _session(self, model: Path | bytes) -> Any:
        return onnxruntime.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])


class PlainStages:
    """The stages of a live network, each in a session of its own."""

    def __init__(self, live: EarlyExitModel, session: Callable[[bytes], Any]) -> None:
        extractor = onnx.utils.Extractor(ir.to_proto(_record_stages(live)))
        graph = extractor.model.graph
        inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
        self._sessions = {}
        *_, last = live._cut_before().used_exits.stages
        for k in live._cut_before().used_exits.stages:
            ends = [name for name in outputs if name.startswith(f"{OUTPUT}stage{k}/")]
            carried = [name for name in ends if "/tensor" in name]
            own = [name for name in inputs if name.startswith(f"stage{k}/")]
            model = extractor.extract_model(own, ends if k == last else carried)
            self._sessions[k] = session(model.SerializeToString()), carried

    def ideal_ms(self, inputs: Any, exits: torch.Tensor, clock: Callable[[], float] = time.perf_counter) -> float:
        """Sum over the stages of the plain stage's time for as many samples as reach it."""
        first, *side = [tensor.numpy() for tensor in tensors_of(inputs)]
        total, values = 0.0, {"tensor0": first} | {f"side{i}": array for i, array in enumerate(side)}
        for k, (session, carried) in self._sessions.items():
            n_rows = int((exits >= k).sum())
            if n_rows == 0:
                break
            values = {name: array[:n_rows] for name, array in values.items()}
            given = {value.name: values[value.name.partition("/")[2]] for value in session.get_inputs()}
            begin = clock()
            outputs = session.run(carried or None, given)
            total += 1000 * (clock() - begin)
            values |= {name.rpartition("/")[2]: array for name, array in zip(carried, outputs, strict=False)}
        return total


class EmptyOnnxDecisions:
    """Runs a model of which the last input has the exits of the rows."""

    def __init__(self, session: Any) -> None:
        self._session, self._exits = session, np.empty(0)
        self._names = [value.name for value in session.get_inputs()]

    def set_exits(self, exits: torch.Tensor) -> None:
        """Exits of the rows of the next call."""
        self._exits = exits.numpy().astype(np.int64)

    def __call__(self, inputs: Any) -> Any:
        arrays = [tensor.numpy() for tensor in tensors_of(inputs)]
        return self._session.run(None, dict(zip(self._names, [*arrays, self._exits], strict=True)))


def _record_stages(live: EarlyExitModel) -> ir.Model:
    return _Parts(live)._stages.record(live.exits)


def _with_known_exits(live: EarlyExitModel) -> ir.Model:
    """The model of a live network that pools and scores nothing: rows leave at exits that are its last input."""
    network, stages = live._cut_before(), _record_stages(live)
    exits = list(network.used_exits.stages)
    own = (
        "logits" if f"{OUTPUT}stage{exits[-1]}/logits" in {value.name for value in stages.graph.outputs} else "features"
    )
    stages.graph.inputs.append(_rows_of_integers(f"stage{exits[0]}/side_exits"))
    return compose(
        stages,
        _empty_decisions(exits, own, len(live.classes), stages.graph.opset_imports),
        exits,
        [*_input_names(network.example), "known_exits"],
        live._decisions._thresholds,
        False,
        live.policy.temperatures_,
        np.arange(len(live.classes)),
    )


def _empty_decisions(exits: list[int], own: str, n_classes: int, opsets: dict[str, int]) -> ir.Model:
    """Rows leave where the input says, with logits of 0; at the last exit with what the network gives."""
    graph = ir.Graph([], [], nodes=[], name="empty", opset_imports=opsets)
    for k in exits:
        known = _rows_of_integers(f"exit{k}/side_exits")
        number = _initializer(f"number{k}", np.array(k))
        if k == exits[-1]:
            # Of what the last stage gives, so that no stage can be left out.
            values = ir.Value(
                name=f"exit{k}/{own}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None, None])
            )
            columns = _initializer(f"columns{k}", np.arange(n_classes))
            some = ir.node("Gather", [values, columns], {"axis": 1})
            some.outputs[0].name = f"exit{k}/some"
            graph.append(some)
            logits = ir.node("Cast", some.outputs, {"to": ir.DataType.DOUBLE})
            graph.inputs.append(values)
        else:
            columns = _initializer(f"logits{k}", np.zeros((exits[-1] + 1, n_classes)))
            logits = ir.node("Gather", [columns, known], {"axis": 0})
        for name, node in {"stays": ir.node("Greater", [known, number]), "logits": logits}.items():
            node.outputs[0].name = f"{OUTPUT}exit{k}/{name}"
            graph.append(node)
            graph.outputs.append(node.outputs[0])
        for value in (number, columns):
            graph.initializers.add(value)
        graph.inputs.append(known)
    return ir.Model(graph, ir_version=10)


def _rows_of_integers(name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([None]))


def _initializer(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
