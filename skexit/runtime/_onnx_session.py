"""Run a network that was written as ONNX, and that stops by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.policies._steps import check_answers
from skexit.runtime._output import ExitOutput
from skexit.runtime._thresholds import check_thresholds
from skexit.utils._optional import optional_import

#: What the names of skexit's metadata in a file begin with.
METADATA = "skexit."
#: Name of the input of a file that has thresholds as its default.
THRESHOLDS = "thresholds"
#: What runs networks by default.
PROVIDERS = ("CPUExecutionProvider",)
_OUTPUTS = ("labels", "probabilities", "exits")


class OnnxEarlyExit:
    """A network that stops at the exit that a policy chooses for each sample, run by onnxruntime.

    It needs no torch. The file stops by itself; this class checks inputs, and gives class labels as they were fitted.

    Parameters
    ----------
    path : str or Path
        What :func:`export_onnx` wrote.
    session_options : onnxruntime.SessionOptions, default=None
        Numbers of threads, and the like.
    providers : sequence of str, default=("CPUExecutionProvider",)
        What runs the network, as ``onnxruntime.InferenceSession`` takes it.

    Attributes
    ----------
    session : onnxruntime.InferenceSession
        Of the file.
    classes : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    exits : list of str
        Names of the exits.
    thresholds : ndarray of shape (n_exits,) or None
        Thresholds to use instead of those in the file, where they are set. They can be in a file that was exported with
        ``thresholds_as_input=True``. An exit that the policy of the file does not use stays unused.

    Raises
    ------
    ImportError
        If onnxruntime is not installed.
    FileNotFoundError
        If there is no such file.
    ValueError
        If an export did not write the file.

    See Also
    --------
    export_onnx : Writes the file; an example is there.
    """

    def __init__(self, path: str | Path, *, session_options: Any = None, providers: Sequence[Any] = PROVIDERS) -> None:
        self.session = make_session(Path(path), session_options, providers)
        description = self.session.get_modelmeta().custom_metadata_map
        known = {name.removeprefix(METADATA): text for name, text in description.items() if name.startswith(METADATA)}
        if "inputs" not in known:
            raise ValueError(f"{path} was not written by skexit.runtime.export_onnx. Run it by onnxruntime itself.")
        self._inputs, self._by_name = json.loads(known["inputs"]), json.loads(known["by_name"])
        self.classes: NDArray[Any] = np.asarray(json.loads(known["classes"]), dtype=json.loads(known["classes_dtype"]))
        self.exits: list[str] = json.loads(known["exits"])
        self._names = [value.name for value in self.session.get_inputs()]
        self._thresholds: NDArray[np.float64] | None = None

    @property
    def thresholds(self) -> NDArray[np.float64] | None:
        """Thresholds that were set; None where those of the file are in use."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, thresholds: ArrayLike | None) -> None:
        if THRESHOLDS not in [value.name for value in self.session.get_overridable_initializers()]:
            raise ValueError(
                "the thresholds of this file are fixed. Export the network with "
                "export_onnx(live, path, thresholds_as_input=True) to set them between calls; set_policy changes them "
                "in the file."
            )
        self._thresholds = None if thresholds is None else check_thresholds(thresholds, len(self.exits))

    def predict(self, *inputs: Any, **named_inputs: Any) -> ExitOutput:
        """Answer, stopping each sample where the policy says.

        Parameters
        ----------
        *inputs : ndarray, several ndarray, a tuple of ndarray or a dict of ndarray
            What the network takes, with one row per sample.
        **named_inputs : ndarray
            As the network takes them.

        Returns
        -------
        ExitOutput
            ``labels, probabilities, exits`` as NumPy arrays, in the order of the inputs.

        Raises
        ------
        ValueError
            If inputs have another shape or type than the network takes, or the logits of an answer are not finite.
        """
        if inputs and named_inputs:
            raise ValueError("pass the inputs of the network, either all by position or all by name.")
        arrays = self._check_inputs(named_inputs or (inputs[0] if len(inputs) == 1 else inputs))
        given = dict(zip(self._names, arrays, strict=True))
        if self._thresholds is not None:
            given[THRESHOLDS] = self._thresholds
        labels, probabilities, exits = self.session.run(_OUTPUTS, given)
        check_answers(probabilities, exits, range(len(exits)))
        labels = labels.astype(self.classes.dtype) if self.classes.dtype.kind in "biu" else self.classes[labels]
        return ExitOutput(labels, cast(Any, probabilities), cast(Any, exits))

    def _check_inputs(self, inputs: Any) -> list[NDArray[Any]]:
        names = [expected["name"] for expected in self._inputs]
        if self._by_name:
            given = list(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            if not isinstance(inputs, Mapping) or set(inputs) != set(names):
                raise ValueError(f"the network takes the inputs {names} by name, but got {given}.")
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


def make_session(path: Path, session_options: Any = None, providers: Sequence[Any] = PROVIDERS) -> Any:
    """A session of onnxruntime; an ImportError says if that is not installed."""
    with optional_import("networks in ONNX need", "onnx"):
        import onnxruntime
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; export the network again with skexit.runtime.export_onnx.")
    return onnxruntime.InferenceSession(path, session_options, providers=list(providers))


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
