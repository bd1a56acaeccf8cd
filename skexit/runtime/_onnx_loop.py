"""Run a network that was written as ONNX, and stop where its policy says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline

from skexit.policies._steps import check_answers
from skexit.runtime._decisions import Decisions
from skexit.runtime._output import ExitOutput
from skexit.runtime._policy_json import policy_from_json
from skexit.uncertainty import softmax
from skexit.utils._optional import optional_import

#: The file of the policy, of the inputs, and of the names of the other files.
DESCRIPTION_FILE = "policy.json"
#: Names of what a stage gives to the policy; the next one takes the others.
LOGITS, FEATURES = "logits", "features"
_PROVIDERS = ("CPUExecutionProvider",)
_KEYS = {"steps", "inputs", "by_name", "stages"}


class OnnxEarlyExit:
    """A network that stops at the exit that a policy chooses for each sample, run by onnxruntime.

    It needs no torch. After each exit the samples that leave are taken out of the batch, and the
    others go on; when none is left, the stages that follow are not called.

    Parameters
    ----------
    folder : str or Path
        What :func:`export_onnx` wrote.
    providers : sequence of str, default=("CPUExecutionProvider",)
        What runs the stages, as ``onnxruntime.InferenceSession`` takes it.

    Attributes
    ----------
    policy : ExitPolicy
        The policy without the steps before it.
    classes : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.

    Raises
    ------
    ImportError
        If onnxruntime is not installed.
    FileNotFoundError
        If the folder has no ``policy.json``, or not all stages.
    ValueError
        If ``policy.json`` was not written by an export, or is damaged.

    See Also
    --------
    export_onnx : Writes the folder; an example is there.
    """

    def __init__(self, folder: str | Path, *, providers: Sequence[str] = _PROVIDERS) -> None:
        folder = Path(folder)
        description = _read_description(folder)
        self._decisions = Decisions(make_pipeline(*description["steps"]))
        self.policy = self._decisions.policy
        self.classes: NDArray[Any] = self.policy.classes_
        self._inputs, self._by_name = description["inputs"], description["by_name"]
        self._stages = [OnnxStage(folder / file, providers) for file in description["stages"]]

    def predict(self, inputs: Any) -> ExitOutput:
        """Answer, stopping each sample where the policy says.

        Parameters
        ----------
        inputs : ndarray, tuple of ndarray or dict of ndarray
            As the network takes them, with one row per sample.

        Returns
        -------
        ExitOutput
            ``labels, probabilities, exits`` as NumPy arrays, in the order of the inputs.

        Raises
        ------
        ValueError
            If inputs have another shape or type than the network takes, or the logits of an answer are not finite.
        """
        first, *side = self._check_inputs(inputs)
        reader = _StageReader(self._stages, self._decisions, [first], side)
        predicted, exits = np.empty((2, len(first)), dtype=np.int64)
        probabilities = np.empty((len(first), len(self.classes)))
        for k, rows, logits in self._decisions.departures_from(reader):
            exits[rows], predicted[rows] = k, np.argmax(logits, axis=1)
            probabilities[rows] = softmax(logits / self.policy.temperatures_[k])
        check_answers(probabilities, exits, range(len(first)))
        return ExitOutput(self.classes[predicted], cast(Any, probabilities), cast(Any, exits))

    def _check_inputs(self, inputs: Any) -> list[NDArray[Any]]:
        names = [expected["name"] for expected in self._inputs]
        if self._by_name:
            given = list(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            if not isinstance(inputs, Mapping) or set(inputs) != set(names):
                raise ValueError(f"the network takes a dict with the inputs {names}, but got {given}.")
            arrays = [np.asarray(inputs[name]) for name in names]
        else:
            arrays = [np.asarray(array) for array in (inputs if isinstance(inputs, tuple | list) else [inputs])]
            if len(arrays) != len(names):
                raise ValueError(f"the network takes {len(names)} inputs, but got {len(arrays)}.")
        for expected, array in zip(self._inputs, arrays, strict=True):
            _check_input(array, **expected)
        lengths = [len(array) for array in arrays]
        if len(set(lengths)) > 1 or lengths[0] == 0:
            raise ValueError(f"the inputs have {lengths} rows; pass the same number of each, at least one.")
        return arrays


class _StageReader:
    """Runs stage after stage for the samples that are still running, from the first input and the others."""

    def __init__(
        self, stages: Sequence[OnnxStage], decisions: Decisions, tensors: list[NDArray[Any]], side: list[NDArray[Any]]
    ) -> None:
        self.rows, self._decisions = np.arange(len(tensors[0])), decisions
        self._stages, self._tensors, self._side = iter(enumerate(stages)), tensors, side

    def read(self, k: int) -> tuple[Any, Any]:
        """Logits and features of exit `k`, after the stages up to it."""
        for number, stage in self._stages:
            outputs = stage.run([*self._tensors, *self._side])
            logits, features = (_in_double(outputs.pop(name, None)) for name in (LOGITS, FEATURES))
            self._tensors = list(outputs.values())
            if number == k:
                break
        return logits, self._decisions.transform_features(k, features)

    def keep(self, stays: NDArray[np.bool_]) -> None:
        """Go on with the samples that stay."""
        self.rows = self.rows[stays]
        self._tensors, self._side = ([tensor[stays] for tensor in part] for part in (self._tensors, self._side))


class OnnxStage:
    """One stage, run by onnxruntime; an ImportError says if that is not installed."""

    def __init__(self, path: Path, providers: Sequence[str] = _PROVIDERS) -> None:
        with optional_import("networks in ONNX need", "onnx"):
            import onnxruntime
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; export the network again with skexit.runtime.export_onnx.")
        self._session = onnxruntime.InferenceSession(path, providers=list(providers))
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the stage on what the exit before gave, and the inputs beside the first.

        Gives, by name, logits and features, where the policy looks at them, and what the next stage takes.
        """
        values = self._session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True)))
        return dict(zip(self._outputs, values, strict=True))


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} has no {DESCRIPTION_FILE}; give a folder that skexit.runtime.export_onnx wrote."
        )
    try:
        description = policy_from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(description, dict) or not description.keys() >= _KEYS:
        raise ValueError(f"{path} was not written by skexit.runtime.export_onnx.")
    return description


def _in_double(array: NDArray[Any] | None) -> NDArray[np.float64] | None:
    return None if array is None else array.astype(np.float64)


def _check_input(array: NDArray[Any], name: str, dtype: str, shape: Sequence[int | None]) -> None:
    if array.dtype != dtype:
        raise ValueError(
            f"{name} has the type {array.dtype}, but the network was exported for {dtype}. Convert it by astype."
        )
    if array.ndim != len(shape) or any(
        size not in (None, given) for size, given in zip(shape, array.shape, strict=True)
    ):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} has the shape {array.shape}, but the network was exported for ({expected}). Export it "
            "again for such inputs."
        )
