"""The output of a live network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class ExitOutput(NamedTuple):
    """Predictions of a live network, in the order of its inputs.

    Parameters
    ----------
    labels : tensor of shape (n_samples,), or ndarray if classes are names
        Predicted class of each sample. If the classes are numbers, a tensor on the device of the network, which does
        not wait for the device. torch has no tensors of strings: names are an ndarray, for which the call waits. For an
        ndarray in both cases, take ``policy.classes_[probabilities.argmax(1).cpu()]``.
    probabilities : tensor of shape (n_samples, n_classes)
        Class probabilities, from the exit at which the sample left.
    exits : tensor of shape (n_samples,) of int64
        Exit at which each sample left, counted from 0.

    Notes
    -----
    If onnxruntime runs the network, all are NumPy arrays.
    """

    labels: torch.Tensor | NDArray[Any]
    probabilities: torch.Tensor
    exits: torch.Tensor
