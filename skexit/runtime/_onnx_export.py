"""Write a live network as ONNX, one file per stage, with the policy as JSON."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.export import Dim

from skexit.backbone._inputs import Inputs, named_tensors, tensors_of
from skexit.backbone._probe import random_inputs
from skexit.runtime._compiled import plain_network
from skexit.runtime._early_exit import EarlyExitModel
from skexit.runtime._onnx_loop import DESCRIPTION_FILE, FEATURES, LOGITS, OnnxStage
from skexit.runtime._policy_json import policy_to_json
from skexit.runtime._runner import StageRunner
from skexit.utils._optional import optional_import

#: Files of ONNX hold less than 2 GiB; the weights of larger stages are in a file beside.
_LARGEST_FILE = 2**31 - 2**24
#: Largest difference between torch and onnxruntime, relative to the largest value.
_TOLERANCE = 1e-3


def export_onnx(live: EarlyExitModel, folder: str | Path) -> Path:
    """Write a live network for onnxruntime.

    Each stage becomes a file, which takes what the exit before gave and the inputs beside the first. It gives what the
    next stage takes, and the logits and pooled features that the policy looks at. The policy, and the heads before it,
    are in ``policy.json``. Afterwards every stage is run once by onnxruntime on random inputs, and compared with torch.

    Parameters
    ----------
    live : EarlyExitModel
        Prepared: it was made with ``example_input``, or has had an input.
    folder : str or Path
        Made if it is not there. Files of the same names are overwritten.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ImportError
        If onnx, onnxscript or onnxruntime are not installed.
    ValueError
        If the policy cannot be written as JSON, the network computes in
        a type that NumPy does not have, as bfloat16, or onnxruntime gives other values than torch.
    RuntimeError
        If the network is not prepared.

    See Also
    --------
    OnnxEarlyExit : Runs what was written, without torch.

    Notes
    -----
    As in :class:`EarlyExitModel`, inputs may have any number of rows; sequences of integers any length.
    Rounding differs between torch and onnxruntime, so that a sample whose score is within rounding of
    a threshold may leave elsewhere.

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
    ...     session = OnnxEarlyExit(export_onnx(live, f"{folder}/onnx"))
    >>> bool((session.predict(x.numpy()).exits == live(x).exits.numpy()).all())
    True
    """
    _check_installed()
    network = live._cut_before()
    runner = network.all_exits
    if runner.decisions.of_features:
        raise ValueError(
            f"{runner.decisions.of_features[0]!r} cannot be written as ONNX. Fit the pipeline without it: ExitHeads "
            "standardise features themselves, and pool= takes a function that reduces them."
        )
    stages = [_ExitStage(runner, k) for k in range(runner.decisions.n_exits)]
    files = [f"stage{k}.onnx" for k in range(len(stages))]
    text = policy_to_json(
        {
            "steps": runner.decisions.steps,
            "inputs": _describe_inputs(network.example, stages[0]),
            "by_name": isinstance(network.example, dict),
            "stages": files,
        }
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Written last, so that what a failed export has left is not taken for a whole one.
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)
    first, *side = tensors_of(random_inputs(network.example))
    tensors = [first]
    with torch.no_grad():
        for stage, name, file in zip(stages, live.exits, files, strict=False):
            inputs = [*tensors, *side]
            outputs = stage.compute(*inputs)
            stage.write(folder / file, inputs, list(outputs))
            _compare(OnnxStage(folder / file), inputs, outputs, name)
            tensors = [tensor for output, tensor in outputs.items() if output not in (LOGITS, FEATURES)]
    (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
    return folder


def _check_installed() -> None:
    with optional_import("an export to ONNX needs", "onnx-export"):
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)


class _ExitStage(nn.Module):
    """A stage, with what the policy looks at after it."""

    def __init__(self, runner: StageRunner, k: int) -> None:
        super().__init__()
        stage, decisions = runner.stages[k], runner.decisions
        has_logits = decisions.is_observed[k] and decisions.layout.has_logits(k)
        self.network: fx.GraphModule = plain_network(stage.network)
        self.head = plain_network(stage.logits) if has_logits else None
        self._pool, self._mask = runner._pools.get(k), runner.mask
        self._goes_on = k < decisions.n_exits - 1
        self._n_side = len(_placeholders(plain_network(runner.stages[0].network))) - 1
        self.eval()

    def compute(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the stage gives, by name."""
        # Copies: stages and heads may work in place on what they are given.
        tensors = tuple(tensor.clone() for tensor in tensors)
        side = tensors[len(tensors) - self._n_side :]
        carried = self.network(*tensors)
        outputs = {f"tensor{i}": tensor for i, tensor in enumerate(carried)} if self._goes_on else {}
        if self._pool is not None:
            outputs[FEATURES] = self._pool(carried[0], None if self._mask is None else side[self._mask]).clone()
        if self.head is not None:
            outputs[LOGITS] = self.head(*carried, *side)
        return outputs

    def forward(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        return list(self.compute(*tensors).values())

    def write(self, path: Path, inputs: Sequence[torch.Tensor], outputs: Sequence[str]) -> None:
        """Write a file that takes such inputs, and gives outputs of these names."""
        shapes = [{i: Dim.DYNAMIC for i, size in enumerate(shape) if size is None} for shape in self.shapes()]
        weights = chain(self.parameters(), self.buffers())
        torch.onnx.export(
            self,
            tuple(inputs),
            path,
            dynamo=True,
            dynamic_shapes={"tensors": tuple(shapes)},
            input_names=[f"input{i}" for i in range(len(inputs))],
            output_names=list(outputs),
            external_data=sum(weight.nbytes for weight in weights) > _LARGEST_FILE,
            verbose=False,
        )

    def shapes(self) -> list[list[int | None]]:
        """Shapes of the inputs, None where any size will do."""
        shapes = [node.meta["val"].shape for node in _placeholders(self.network)]
        return [[None if isinstance(size, torch.SymInt) else size for size in shape] for shape in shapes]


def _placeholders(network: fx.GraphModule) -> list[fx.Node]:
    return [node for node in network.graph.nodes if node.op == "placeholder"]


def _describe_inputs(example: Inputs, first_stage: _ExitStage) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": _to_numpy(tensor, name).dtype.name, "shape": shape}
        for (name, tensor), shape in zip(named_tensors(example).items(), first_stage.shapes(), strict=True)
    ]


def _compare(session: OnnxStage, inputs: Sequence[torch.Tensor], outputs: dict[str, torch.Tensor], name: str) -> None:
    """Raise a ValueError unless onnxruntime gives for one row what torch gives for it among others."""
    values = session.run([_to_numpy(tensor[:1], "an input") for tensor in inputs])
    for output, tensor in outputs.items():
        expected = _to_numpy(tensor[:1], f"exit {name!r}")
        atol = _TOLERANCE * float(np.abs(expected).max(initial=0))
        if not np.allclose(values[output], expected, rtol=_TOLERANCE, atol=atol, equal_nan=True):
            raise ValueError(
                f"run by onnxruntime, the stage that ends at {name!r} gives other values than in torch. It cannot be "
                "exported; torch.onnx does not know one of its operations as it is."
            )


def _to_numpy(tensor: torch.Tensor, what: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = tensor.numpy(force=True)
    except TypeError as error:
        raise ValueError(f"{what} is of {tensor.dtype}, which NumPy does not have; use float32 or float16.") from error
    return array
