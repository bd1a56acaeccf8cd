"""Inputs and logits of one model of a cascade: a classifier of scikit-learn, or a torch module."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.exceptions import NotFittedError

from skexit.data._blocks import as_numpy, checked_logits, log_of_probabilities
from skexit.utils._sklearn import _num_samples, _safe_indexing

#: Largest and smallest number of timed runs of a model, and the seconds after which the smallest number is enough.
_MOST_RUNS, _LEAST_RUNS, _SECONDS = 10, 3, 5.0


class Model:
    """A fitted classifier or a torch module, its number in the cascade, and its name for messages.

    `classes` are those of the classifier, in the order of its logits; None for a torch module.
    """

    def __init__(self, estimator: Any, k: int, name: str | None = None) -> None:
        self.estimator, self.k = estimator, k
        self.name = f"models[{k}] ({type(estimator).__name__})" if name is None else name
        self.is_module = is_torch_module(estimator)
        self.classes = None if self.is_module else self._find_classes()

    def logits(self, inputs: Any) -> NDArray[Any]:
        """Logits of all rows, in the order of the model's classes; two columns if a binary model returns one."""
        logits = self._module_logits(inputs) if self.is_module else self._classifier_logits(inputs)
        width = "n_classes" if self.classes is None else len(self.classes)
        expected = (number_of_rows(inputs), logits.shape[-1] if self.classes is None else width)
        if logits.shape != expected:
            raise ValueError(
                f"{self.name} returns an array of shape {logits.shape} for {expected[0]} rows; it must be "
                f"({expected[0]}, {width}), one column per class. An SVC needs decision_function_shape='ovr'."
            )
        return logits

    def _classifier_logits(self, inputs: Any) -> NDArray[Any]:
        inputs = as_numpy(inputs) if is_tensor(inputs) else inputs
        if hasattr(self.estimator, "predict_proba"):
            return log_of_probabilities(as_numpy(self.estimator.predict_proba(inputs)), self.k)
        scores = as_numpy(self.estimator.decision_function(inputs))
        return checked_logits(scores[:, None] if scores.ndim == 1 else scores)

    def _module_logits(self, inputs: Any) -> NDArray[Any]:
        import torch

        from skexit.backbone._inputs import call
        from skexit.backbone._modules import evaluating
        from skexit.backbone._outputs import as_logits

        with evaluating(self.estimator), torch.no_grad():
            output = call(self.estimator, _map_parts(lambda part: _for_module(part, self.estimator), inputs))
        advice = ". Wrap it in a module that returns its logits alone."
        return checked_logits(as_numpy(as_logits(output, self.name, advice)))

    def _find_classes(self) -> NDArray[Any]:
        classes = getattr(self.estimator, "classes_", None)
        if classes is None:
            raise NotFittedError(
                f"{self.name} has no classes_: it is not fitted, or not a classifier. Fit it first; the models of a "
                "cascade are fitted classifiers of scikit-learn, and torch modules."
            )
        if isinstance(classes, list | tuple) and any(np.ndim(labels) for labels in classes):
            raise ValueError(f"{self.name} predicts several targets; a cascade needs models of one target.")
        if not hasattr(self.estimator, "predict_proba") and not hasattr(self.estimator, "decision_function"):
            raise ValueError(
                f"{self.name} has neither predict_proba nor decision_function, so its confidence is not known. Wrap it "
                "in CalibratedClassifierCV, or pass voting='soft' to a VotingClassifier."
            )
        return np.asarray(classes)


def is_torch_module(model: Any) -> bool:
    """Whether a model is a torch module, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def is_tensor(values: Any) -> bool:
    """Whether values are a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def indexable(inputs: Any) -> Any:
    """The inputs, with sparse matrices in a format whose rows can be selected."""
    return inputs.tocsr() if issparse(inputs) else inputs


def number_of_rows(inputs: Any) -> int:
    """Number of rows. Raises a ValueError if there are none, or several inputs have different numbers of rows."""
    lengths: set[int] = set()
    _map_parts(lambda part: lengths.add(_num_samples(part)), inputs)
    if len(lengths) > 1:
        raise ValueError(f"the inputs have different numbers of rows: {sorted(lengths)}. Pass the same rows of each.")
    if not lengths or 0 in lengths:
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required by ModelCascade.")
    return lengths.pop()


def take_rows(inputs: Any, rows: NDArray[np.intp]) -> Any:
    """Some rows of the inputs, in the type of the inputs."""
    return _map_parts(lambda part: part[rows] if is_tensor(part) else _safe_indexing(part, rows), inputs)


def _map_parts(function: Callable[[Any], Any], inputs: Any) -> Any:
    """Apply a function to the inputs, or to each of several: the values of a dict, or the tensors of a tuple."""
    if isinstance(inputs, Mapping):
        return {name: function(part) for name, part in inputs.items()}
    if isinstance(inputs, tuple) and all(is_tensor(part) for part in inputs):
        return tuple(function(part) for part in inputs)
    return function(inputs)


def _for_module(values: Any, module: Any) -> Any:
    """Numbers as a tensor on the module's device, floats in its precision; texts unchanged."""
    import torch

    from skexit.backbone._modules import device_of

    if isinstance(values, list) and is_tensor(values[0]):
        values = torch.stack(values)
    if not is_tensor(values):
        array = values.toarray() if issparse(values) else np.asarray(values)
        if array.dtype.kind not in "fiub":
            return values
        values = torch.tensor(array)
    if values.is_floating_point():
        floating = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
        values = values.to(next(floating, values.dtype))
    return values.to(device_of(module))


def milliseconds_per_row(answers: Sequence[Callable[[], Any]], n_rows: int) -> NDArray[np.float64]:
    """Median times of functions, which take turns so that other load on the machine affects all equally."""
    runs: list[list[float]] = []
    start = time.perf_counter()
    while len(runs) < _LEAST_RUNS or (len(runs) < _MOST_RUNS and time.perf_counter() - start < _SECONDS):
        runs.append([_seconds(answer) for answer in answers])
    return 1000 * np.median(runs, axis=0) / n_rows


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
