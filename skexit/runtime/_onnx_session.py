"""Run a live network that was exported as an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.policies._steps import check_answers
from skexit.runtime._onnx_inputs import checked_arrays
from skexit.runtime._output import ExitOutput
from skexit.runtime._thresholds import check_thresholds
from skexit.utils._optional import optional_import

#: Prefix of the names of skexit's metadata in a file.
METADATA = "skexit."
#: Name of the weight with the thresholds, and of the optional input that replaces it.
THRESHOLDS = "thresholds"
#: Default execution providers of onnxruntime.
PROVIDERS = ("CPUExecutionProvider",)
_OUTPUTS = ("labels", "probabilities", "exits")


class OnnxEarlyExit:
    """A live network in an ONNX file, run by onnxruntime without torch.

    The file includes the decisions of the policy. This class checks inputs, and returns the class labels that the
    policy was fitted with.

    Parameters
    ----------
    path : str or Path
        The file from :func:`export_onnx`.
    session_options : onnxruntime.SessionOptions, default=None
        Options of the session, such as the number of threads.
    providers : sequence of str, default=("CPUExecutionProvider",)
        Execution providers, as in ``onnxruntime.InferenceSession``.

    Attributes
    ----------
    session : onnxruntime.InferenceSession
        The session that runs the file.
    classes : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    exits : list of str
        Names of the exits.
    thresholds : ndarray of shape (n_exits,) or None
        Thresholds to use in place of those in the file; None for those in the file. They can be set if the file was
        exported with ``thresholds_as_input=True``. Exits that the policy of the file does not use stay unused.

    Raises
    ------
    ImportError
        If onnxruntime is not installed.
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file was not written by :func:`export_onnx`.

    See Also
    --------
    export_onnx : Writes the file, and has an example.
    """

    def __init__(self, path: str | Path, *, session_options: Any = None, providers: Sequence[Any] = PROVIDERS) -> None:
        self.session = make_session(Path(path), session_options, providers)
        description = self.session.get_modelmeta().custom_metadata_map
        known = {name.removeprefix(METADATA): text for name, text in description.items() if name.startswith(METADATA)}
        if "inputs" not in known:
            raise ValueError(
                f"path={str(path)!r} was not written by export_onnx. Run it with onnxruntime.InferenceSession."
            )
        self._inputs, self._by_name = json.loads(known["inputs"]), json.loads(known["by_name"])
        self.classes: NDArray[Any] = np.asarray(json.loads(known["classes"]), dtype=json.loads(known["classes_dtype"]))
        self.exits: list[str] = json.loads(known["exits"])
        self._names = [value.name for value in self.session.get_inputs()]
        self._thresholds: NDArray[np.float64] | None = None

    @property
    def thresholds(self) -> NDArray[np.float64] | None:
        """Thresholds that were set; None if those of the file are in use."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, thresholds: ArrayLike | None) -> None:
        if THRESHOLDS not in [value.name for value in self.session.get_overridable_initializers()]:
            raise ValueError(
                "the thresholds of this file are fixed. To set them between calls, export the network with "
                "export_onnx(live, path, thresholds_as_input=True). To change them in the file, call set_policy."
            )
        self._thresholds = None if thresholds is None else check_thresholds(thresholds, len(self.exits))

    def predict(self, *inputs: Any, **named_inputs: Any) -> ExitOutput:
        """Predict the class of each sample, at the exit that the policy chooses.

        Parameters
        ----------
        *inputs : ndarray, several ndarray, a tuple of ndarray or a dict of ndarray
            Inputs of the network, with one row per sample.
        **named_inputs : ndarray
            Inputs of the network by name.

        Returns
        -------
        ExitOutput
            ``labels, probabilities, exits`` as NumPy arrays, in the order of the inputs.

        Raises
        ------
        ValueError
            If inputs have the wrong shape or type for the network, or the logits of a prediction are not finite.
        """
        if inputs and named_inputs:
            raise ValueError("pass the inputs of the network, either all by position or all by name.")
        given_inputs = named_inputs or (inputs[0] if len(inputs) == 1 else inputs)
        arrays = checked_arrays(given_inputs, self._inputs, by_name=self._by_name)
        given = dict(zip(self._names, arrays, strict=True))
        if self._thresholds is not None:
            given[THRESHOLDS] = self._thresholds
        labels, probabilities, exits = self.session.run(_OUTPUTS, given)
        check_answers(probabilities, exits, range(len(exits)))
        labels = labels.astype(self.classes.dtype) if self.classes.dtype.kind in "biu" else self.classes[labels]
        return ExitOutput(labels, cast(Any, probabilities), cast(Any, exits))


def make_session(path: Path, session_options: Any = None, providers: Sequence[Any] = PROVIDERS) -> Any:
    """Make a session of onnxruntime; an ImportError if it is not installed."""
    with optional_import("networks in ONNX need", "onnx"):
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}; write it with skexit.runtime.export_onnx.")
    try:
        return onnxruntime.InferenceSession(path, session_options, providers=list(providers))
    except InvalidProtobuf as error:
        raise ValueError(f"{str(path)!r} is not an ONNX file; write one with skexit.runtime.export_onnx.") from error
