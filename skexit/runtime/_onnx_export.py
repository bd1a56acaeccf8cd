"""Write a live network as one ONNX model, which includes the decisions at the exits."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from skexit import _version
from skexit._nn._plain_torch import plain_torch
from skexit.backbone._inputs import Inputs, named_tensors, tensors_of
from skexit.backbone._probe import random_inputs
from skexit.runtime._decision_graph import DecisionGraph
from skexit.runtime._decisions import Decisions
from skexit.runtime._early_exit import EarlyExitModel
from skexit.runtime._onnx_compose import compose
from skexit.runtime._onnx_parts import (
    OUTPUT,
    DecisionPart,
    PartsSideBySide,
    RecordingError,
    Shapes,
    StagePart,
    Tensors,
    flat,
)
from skexit.runtime._onnx_policy import EXITS_IN_USE, LAYOUT, PROBE, probe
from skexit.runtime._onnx_rows import with_open_rows
from skexit.runtime._onnx_session import METADATA, make_session
from skexit.utils._files import refuse_folder
from skexit.utils._optional import optional_import
from skexit.utils._threads import one_recording

#: An ONNX file must be smaller than 2 GiB. The weights of larger networks are written to a second file.
_LARGEST_FILE = 2**31 - 2**24
#: Protocol buffers are read to a depth of 100, and each nested stage takes three levels.
_MOST_NESTED = 30
#: Largest difference between torch and onnxruntime: relative to the largest value, and absolute.
_TOLERANCE, _NOTHING = 1e-3, 1e-12


@one_recording()
@plain_torch()
def export_onnx(live: EarlyExitModel, path: str | Path, *, thresholds_as_input: bool = False) -> Path:
    """Write a live network as one ONNX file, which includes the heads and the decisions of the policy.

    The file has the inputs of the network, with any number of rows, and the outputs ``labels``, ``probabilities`` and
    ``exits``. A stage runs only for the samples that reach it, and not at all if there are none. onnxruntime runs the
    file without skexit. As a check, each stage and decision is run by onnxruntime on random inputs and compared with
    torch before the file is written.

    Parameters
    ----------
    live : EarlyExitModel
        A prepared live network: it was made with ``example_input``, or has been called.
    path : str or Path
        The file to write, such as ``"network.onnx"``. Its folder is created if it does not exist. If the weights have
        about 2 GiB or more, they are written to a second file, such as ``"network.onnx.data"``.
    thresholds_as_input : bool, default=False
        Whether the file has an optional input ``thresholds``, of shape (n_exits,) and in double precision. By default
        it has the thresholds of the policy. ``OnnxEarlyExit.thresholds`` sets it, for example from a
        :class:`~skexit.monitoring.BudgetController`. onnxruntime then prints a warning that the thresholds are not
        constant.

    Returns
    -------
    Path
        The path of the file.

    Raises
    ------
    ImportError
        If onnx, onnxscript or onnxruntime is not installed.
    TypeError
        If `live` is not a live network.
    ValueError
        If torch cannot record the network or a decision; if a decision uses an estimator of scikit-learn, except
        linear transformers in an ExitTransformer; if samples stop at more than 31 exits; if the network has a type that
        NumPy does not have, such as bfloat16; or if onnxruntime computes other values than torch.
    RuntimeError
        If the network is not prepared.
    IsADirectoryError
        If `path` is a folder.

    See Also
    --------
    OnnxEarlyExit : Runs the file in Python, without torch.
    set_policy : Sets another budget in the file.

    Notes
    -----
    As in :class:`EarlyExitModel`, inputs may have any number of rows, and sequences of integers any length, if torch
    can record the network for any length. Rounding differs between torch and onnxruntime. A sample whose score differs
    from a threshold by rounding only may therefore leave at another exit.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from torch import nn
    >>> from skexit import ThresholdPolicy
    >>> from skexit.extraction import ExitExtractor
    >>> from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> x, y = torch.randn(200, 8), torch.arange(200) % 3
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = ExitExtractor(model, ["1", "3"]).extract([(x, y)], f"{folder}/cache")
    ...     policy = ThresholdPolicy(budget=0.8).fit(cache.X, cache.y)
    ...     live = EarlyExitModel(model, ["1", "3"], policy, example_input=x)
    ...     session = OnnxEarlyExit(export_onnx(live, f"{folder}/network.onnx"))
    >>> bool((session.predict(x.numpy()).exits == live(x).exits.numpy()).all())
    True
    """
    _check_installed()
    if not hasattr(live, "_cut_before"):
        raise TypeError(
            f"live has the type {type(live).__name__}; pass a live network, and then the path: "
            'export_onnx(EarlyExitModel(...), "network.onnx").'
        )
    network, path = live._cut_before(), Path(path)
    refuse_folder(path, "path")
    decisions = live._decisions
    n_nested = sum(decisions.is_used) - 1
    if n_nested > _MOST_NESTED:
        raise ValueError(
            f"the policy stops samples at {n_nested} exits before the last, but ONNX files can have at most "
            f"{_MOST_NESTED} nested stages. Extract the outputs of fewer exits, and fit the policy on them."
        )
    for name, tensor in named_tensors(network.example).items():
        _to_numpy(tensor, name)  # raises an error if NumPy does not have its type
    parts = _Parts(live)
    classes = live.policy.classes_
    model = compose(
        parts.to_onnx(),
        list(network.used_exits.stages),
        _input_names(network.example),
        decisions.thresholds,
        thresholds_as_input,
        live.policy.temperatures_,
        classes if classes.dtype.kind in "biu" else np.arange(len(classes)),
    )
    model.metadata_props.update(_describe(live, parts.input_shapes))
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(weight.nbytes for weight in (*live.model.parameters(), *live.model.buffers()))
    ir.save(model, path, external_data=f"{path.name}.data" if size > _LARGEST_FILE else None)
    return path


def _check_installed() -> None:
    with optional_import("an export to ONNX needs", "onnx-export"):
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)


class _Parts:
    """Stages and decisions of a live network, with their outputs for random inputs."""

    def __init__(self, live: EarlyExitModel) -> None:
        network = live._cut_before()
        self._decisions, self._names = live._decisions, live.exits
        self._stages, self._exits = _PartsByName(), _PartsByName()
        first, *side = tensors_of(random_inputs(network.example))
        tensors: Tensors = {"tensor0": first}
        notes: Tensors = {}
        with torch.no_grad():
            for k in network.used_exits.stages:
                stage = StagePart(network.used_exits, k)
                inputs = tensors | {f"side{i}": tensor for i, tensor in enumerate(side)}
                outputs = self._stages.add(f"stage{k}", stage, inputs, stage.shapes())
                tensors = {name: tensor for name, tensor in outputs.items() if name.startswith("tensor")}
                scaling = _scaling(self._decisions, k, outputs["features"].shape[1]) if "features" in outputs else None
                decision = DecisionPart(DecisionGraph(self._decisions, k, scaling))
                given = {name: tensor for name, tensor in outputs.items() if name not in tensors} | notes
                if decision.decision.decides:
                    given["threshold"] = torch.full((1,), float(self._decisions._thresholds[k]), dtype=torch.float64)
                decided = self._exits.add(f"exit{k}", decision, given, decision.shapes(given))
                notes = {name: tensor for name, tensor in decided.items() if name.startswith("note/")}

    @property
    def input_shapes(self) -> list[list[int | None]]:
        """Shapes of the network's inputs. None stands for any size."""
        return list(next(iter(self._stages.shapes.values())).values())

    def to_onnx(self) -> ir.Model:
        """One model of all stages and decisions. Its outputs are compared with torch."""
        try:
            program = self._side_by_side().to_onnx()
        except RecordingError:
            self._open_rows()
            program = self._with_open_rows()
        _compare(program, flat(self._parts().inputs), flat(self._parts().outputs), self._names)
        return program.model

    def _parts(self) -> _PartsByName:
        return self._stages | self._exits

    def _side_by_side(self) -> PartsSideBySide:
        # One export takes half the time of two, because torch first makes a table of all operations that it translates.
        return self._parts().side_by_side()

    def _with_open_rows(self) -> torch.onnx.ONNXProgram:
        try:
            return self._side_by_side().to_onnx()
        except RecordingError as error:
            raise ValueError(
                f"the decision of {self._decisions.steps} at an exit cannot be written as ONNX, because torch cannot "
                "record it. Use estimators of skexit in place of those of scikit-learn. Own estimators must compute "
                "with functions of the array API."
            ) from error

    def _open_rows(self) -> None:
        """Replace the stages that torch cannot record for any number of rows.

        Raises a ValueError if one of them cannot be recorded at all.
        """
        for name in list(self._stages.parts):
            try:
                self._stages.only(name).side_by_side().record()
            except RecordingError as error:
                try:
                    self._stages.parts[name] = with_open_rows(self._stages.parts[name], self._stages.inputs[name])
                    self._stages.only(name).side_by_side().record()
                except Exception as reason:  # torch may raise any exception
                    raise ValueError(
                        f"the network up to exit {self._names[int(name.removeprefix('stage'))]!r} cannot be written as "
                        f"ONNX, because torch cannot record it for any number of rows: {_first_line(reason)} Run the "
                        "live network in torch."
                    ) from error


def _first_line(error: Exception) -> str:
    """First line of an error, or of the torch error that caused it."""
    cause = error.__cause__ if isinstance(error, RecordingError) else error
    return str(cause).strip().partition("\n")[0].rstrip(".") + "."


def _scaling(decisions: Decisions, k: int, n_features: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Matrix and offset with the same effect on features as the ExitTransformers; None if there are none."""
    if not decisions.of_features:
        return None
    offset = decisions.transform_features(k, np.zeros((1, n_features)))
    matrix = decisions.transform_features(k, np.eye(n_features)) - offset
    rows = np.random.default_rng(0).normal(size=(30, n_features)) * np.logspace(-1, 3, 30)[:, None]
    rows = rows.astype(np.float16).astype(np.float64)  # a cache may have half precision
    if not np.allclose(decisions.transform_features(k, rows), rows @ matrix + offset):
        raise ValueError(
            f"{decisions.of_features} cannot be written as ONNX, because they are not linear. Fit the pipeline without "
            "them, and pass a function with the same effect as pool= in extraction and live network."
        )
    return torch.as_tensor(matrix), torch.as_tensor(offset)


@dataclass(frozen=True)
class _PartsByName:
    """Parts by name, with their inputs, outputs and input shapes."""

    parts: dict[str, nn.Module] = field(default_factory=dict)
    inputs: dict[str, Tensors] = field(default_factory=dict)
    outputs: dict[str, Tensors] = field(default_factory=dict)
    shapes: dict[str, Shapes] = field(default_factory=dict)

    def add(self, name: str, part: nn.Module, inputs: Tensors, shapes: Shapes) -> Tensors:
        # Copies, because torch would treat a tensor that two parts share as one input.
        inputs = {own_name: tensor.clone() for own_name, tensor in inputs.items()}
        self.parts[name], self.inputs[name], self.shapes[name] = part, inputs, shapes
        outputs: Tensors = part(inputs)
        self.outputs[name] = outputs
        return outputs

    def only(self, name: str) -> _PartsByName:
        """One of the parts."""
        return _PartsByName(
            {name: self.parts[name]}, {name: self.inputs[name]}, {name: self.outputs[name]}, {name: self.shapes[name]}
        )

    def __or__(self, others: _PartsByName) -> _PartsByName:
        return _PartsByName(
            self.parts | others.parts,
            self.inputs | others.inputs,
            self.outputs | others.outputs,
            self.shapes | others.shapes,
        )

    def side_by_side(self) -> PartsSideBySide:
        return PartsSideBySide(self.parts, self.inputs, self.outputs, self.shapes)


def _compare(program: torch.onnx.ONNXProgram, inputs: Tensors, outputs: Tensors, exits: Sequence[str]) -> None:
    """Raise a ValueError unless onnxruntime gives the same outputs for one row as torch for this row in a batch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parts.onnx"
        program.save(path, external_data=_size_of(program.model) > _LARGEST_FILE)
        given = {name: _to_numpy(tensor[:1], "an input") for name, tensor in inputs.items()}
        values = _run(path, given, [f"{OUTPUT}{name}" for name in outputs])
    for (name, tensor), value in zip(outputs.items(), values, strict=True):
        expected = _to_numpy(tensor[:1], name)
        # Relative to the largest value of all rows: a tiny value may be 0 in torch and a rounding error in onnxruntime.
        atol = max(_TOLERANCE * float(tensor.double().abs().max()), _NOTHING) if expected.dtype.kind != "b" else 0
        if not np.allclose(value, expected, rtol=_TOLERANCE, atol=atol, equal_nan=True):
            k = int("".join(filter(str.isdigit, name.partition("/")[0])))
            raise ValueError(
                f"onnxruntime computes other values than torch for the stage up to exit {exits[k]!r} or the decision "
                "there, because torch.onnx translates one of its operations differently. Use another operation, or run "
                "the live network in torch."
            )


def _run(path: Path, inputs: dict[str, NDArray[Any]], outputs: list[str]) -> list[Any]:
    """The outputs of a file in onnxruntime; a ValueError if it cannot run the file."""
    try:
        session = make_session(path)
        names = {value.name for value in session.get_inputs()}
        values: list[Any] = session.run(outputs, {name: array for name, array in inputs.items() if name in names})
    except Exception as error:  # those of onnxruntime have no common class
        is_double = any(array.dtype == np.float64 for name, array in inputs.items() if name.startswith("stage"))
        to_single = "Convert the network and its inputs to float32 by float(), or run" if is_double else "Run"
        raise ValueError(
            f"onnxruntime cannot run the network: {_first_line(error)} {to_single} the live network in torch."
        ) from error
    return values


def _size_of(model: ir.Model) -> int:
    weights = model.graph.initializers.values()
    return sum(weight.const_value.nbytes for weight in weights if weight.const_value is not None)


def _describe(live: EarlyExitModel, shapes: Sequence[Sequence[int | None]]) -> dict[str, str]:
    """The description of the network in the file's metadata: names and JSON texts."""
    example = live._cut_before().example
    layout = live.policy.layout_
    inputs = [
        {"name": name, "dtype": _to_numpy(tensor, name).dtype.name, "shape": shape}
        for (name, tensor), shape in zip(named_tensors(example).items(), shapes, strict=True)
    ]
    described = {
        "inputs": inputs,
        "by_name": isinstance(example, dict),
        "classes": live.policy.classes_.tolist(),
        "classes_dtype": live.policy.classes_.dtype.str,
        "exits": list(live.exits),
        "costs": np.asarray(layout.costs).tolist(),
        "cost_unit": layout.cost_unit,
        "version": _version.__version__,
        EXITS_IN_USE: np.flatnonzero(live._decisions.is_used).tolist(),
        PROBE: probe(live._decisions),
        LAYOUT: live._decisions.layout.to_dict(),
    }
    return {METADATA + name: json.dumps(value) for name, value in described.items()}


def _input_names(example: Inputs) -> list[str]:
    """Names of the file's inputs: the keys of a dict, otherwise ``x``, or ``x0``, ``x1`` and so on."""
    tensors = tensors_of(example)
    if isinstance(example, dict):
        return list(named_tensors(example))
    return ["x"] if len(tensors) == 1 else [f"x{i}" for i in range(len(tensors))]


def _to_numpy(tensor: torch.Tensor, what: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = tensor.numpy(force=True)
    except TypeError as error:
        raise ValueError(
            f"{what} has the type {tensor.dtype}, which NumPy does not have. Convert the network to float32 or "
            "float16, and leave out torch.autocast in its code."
        ) from error
    return array
