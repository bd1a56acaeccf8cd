"""What a network that stops early answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class ExitOutput(NamedTuple):
    """Answers of a live network, in the order of its inputs.

    Parameters
    ----------
    labels : tensor of shape (n_samples,), or ndarray where classes are names
        Class of each sample.
    probabilities : tensor of shape (n_samples, n_classes)
        Of each class, by the exit that answered.
    exits : tensor of shape (n_samples,) of int64
        The exit at which each sample left, counted from 0.

    Notes
    -----
    All are NumPy arrays where onnxruntime runs the network.
    """

    labels: torch.Tensor | NDArray[Any]
    probabilities: torch.Tensor
    exits: torch.Tensor
