"""Record the stages of a live network and the decisions after them as ONNX graphs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from skexit.backbone._counting import attributes_as_found
from skexit.backbone._exporting import hidden_weights
from skexit.runtime._compiled import PlainStage, placeholders
from skexit.runtime._decision_graph import DecisionGraph, Notes
from skexit.runtime._onnx_functions import TRANSLATIONS
from skexit.runtime._onnx_simplify import drop_copies
from skexit.runtime._runner import StageRunner

#: Values by their names in a part: ``tensor0``, ``side0``, ``features``, ``logits``, ``stays``, ``note/0.votes``.
Tensors = dict[str, torch.Tensor]
#: Shapes by the names of inputs. None stands for any size.
Shapes = dict[str, list[int | None]]
#: Prefix of the names of recorded outputs, because an input may have the same name.
OUTPUT = "output/"


class RecordingError(RuntimeError):
    """torch cannot record a part."""


class StagePart(nn.Module):
    """The network from one exit to the next, and the logits and features there. Inputs and outputs are dicts."""

    def __init__(self, runner: StageRunner, k: int) -> None:
        super().__init__()
        self._stage = PlainStage(runner, k)
        self._goes_on = k < runner.decisions.n_exits - 1
        self.eval()

    def forward(self, inputs: Tensors) -> Tensors:
        # Copies, because stages and heads may change their inputs in place.
        carried, logits, features = self._stage(*(tensor.clone() for tensor in inputs.values()))
        read = {"features": features, "logits": logits}
        outputs = {name: tensor for name, tensor in read.items() if tensor is not None}
        if self._goes_on:
            outputs |= _numbered("tensor", carried)
        return outputs

    def names(self) -> list[str]:
        """Names of the inputs, in the order of the stage's network."""
        n_side = self._stage.n_side
        n_tensors = self._stage.n_inputs - n_side
        return [*(f"tensor{i}" for i in range(n_tensors)), *(f"side{i}" for i in range(n_side))]

    def shapes(self) -> Shapes:
        """Shapes of the inputs. None stands for any size."""
        shapes = [node.meta["val"].shape for node in placeholders(self._stage.network)]
        open_sizes = [[None if isinstance(size, torch.SymInt) else size for size in shape] for shape in shapes]
        return dict(zip(self.names(), open_sizes, strict=True))


class DecisionPart(nn.Module):
    """A DecisionGraph whose inputs and outputs are dicts of tensors."""

    def __init__(self, decision: DecisionGraph) -> None:
        super().__init__()
        self.decision = decision

    def forward(self, inputs: Tensors) -> Tensors:
        read = {name: tensor for name, tensor in inputs.items() if name in ("features", "logits")}
        notes = {name.removeprefix("note/"): tensor for name, tensor in inputs.items() if name.startswith("note/")}
        decided = self.decision(read, notes, inputs.get("threshold"))
        outputs = {name: tensor for name, tensor in decided.items() if isinstance(tensor, torch.Tensor)}
        # Copies, because torch does not record an output that is the same tensor as an input or another output.
        return {name: tensor.clone() for name, tensor in (outputs | _as_notes(decided.get("notes", {}))).items()}

    def shapes(self, inputs: Tensors) -> Shapes:
        """Shapes of the given inputs, with any number of rows."""
        return {name: [1 if name == "threshold" else None, *tensor.shape[1:]] for name, tensor in inputs.items()}


class PartsSideBySide(nn.Module):
    """Independent parts that are recorded together, which takes hardly longer than to record one part.

    `inputs`, `outputs` and `shapes` are those of each part, by the names of the parts.
    """

    def __init__(
        self,
        parts: dict[str, nn.Module],
        inputs: dict[str, Tensors],
        outputs: dict[str, Tensors],
        shapes: dict[str, Shapes],
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self._inputs, self._outputs, self._shapes = inputs, outputs, shapes

    def forward(self, inputs: dict[str, Tensors]) -> dict[str, Tensors]:
        # A network that keeps tensors in attributes gets back its own: torch would warn of those of the recording.
        with attributes_as_found(self):
            return {name: part(inputs[name]) for name, part in self.parts.items()}

    def record(self) -> torch.export.ExportedProgram:
        """All parts as one graph of torch; a RecordingError if torch cannot record a part."""
        dynamic = {
            part: {
                name: {i: Dim.DYNAMIC for i, size in enumerate(shape) if size is None} for name, shape in own.items()
            }
            for part, own in self._shapes.items()
        }
        with torch.no_grad(), hidden_weights(self):
            try:
                return torch.export.export(self, (self._inputs,), dynamic_shapes=(dynamic,))
            except Exception as error:  # torch may raise any exception
                raise RecordingError from error

    def to_onnx(self) -> torch.onnx.ONNXProgram:
        """All parts as one ONNX model; a RecordingError if torch cannot record a part.

        Inputs are named ``part/name``, and outputs ``output/part/name``.
        """
        recorded = self.record()
        with _without_torchvision(), _naming_operation(recorded):
            program = torch.onnx.export(
                recorded,
                dynamo=True,
                input_names=list(flat(self._inputs)),
                output_names=[f"{OUTPUT}{name}" for name in flat(self._outputs)],
                custom_translation_table=TRANSLATIONS,
                verbose=False,
            )
        assert program is not None
        drop_copies(program.model.graph)
        return program


def flat(tensors: dict[str, Tensors]) -> Tensors:
    """The tensors of all parts, named ``part/name``."""
    return {f"{part}/{name}": tensor for part, own in tensors.items() for name, tensor in own.items()}


def _numbered(name: str, tensors: Any) -> Tensors:
    return {f"{name}{i}": tensor for i, tensor in enumerate(tensors)}


def _as_notes(notes: Notes) -> Tensors:
    return {f"note/{name}": tensor for name, tensor in notes.items()}


@contextmanager
def _naming_operation(recorded: torch.export.ExportedProgram) -> Iterator[None]:
    """Turn an error of torch.onnx into a ValueError that names the operation that it cannot translate."""
    try:
        yield
    except Exception as error:  # torch.onnx and its passes may raise any exception
        found = re.search(r"OpOverload\(op='([^']+)'", str(error))
        operation = "one of its operations" if found is None else f"the operation {found[1]!r}"
        module = "" if found is None else _module_of(recorded, found[1])
        where = f" in the module {module!r}" if module else ""
        parent, _, parametrized = module.partition(".parametrizations.")
        own = f"network.{parent}, {parametrized.partition('.')[0]!r}"
        cure = f" torch.nn.utils.parametrize.remove_parametrizations({own}) leaves it out." if parametrized else ""
        raise ValueError(
            f"the network cannot be written as ONNX, because torch.onnx has no translation for {operation}{where}."
            f"{cure or ' Use another operation, or run the live network in torch.'}"
        ) from error


def _module_of(recorded: torch.export.ExportedProgram, operation: str) -> str:
    """The name in the network of the innermost module that calls an operation; empty if it is not known."""
    for node in recorded.run_decompositions().graph.nodes:  # torch.onnx translates these operations
        if str(node.target).startswith(operation):
            names = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
            return names[-1].rpartition("_stage.network.")[2] if names else ""
    return ""


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Suppress the warning of torch.onnx that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(_is_not_of_torchvision)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_of_torchvision)


def _is_not_of_torchvision(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("torchvision is not installed")
