"""The networks and arrays of a fitted policy, on the device of the live network."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, cast

import torch
from sklearn.base import BaseEstimator

from skexit._nn._conv import ConvNetwork
from skexit._nn._dense import DenseNetwork
from skexit.runtime._rows import double_on


class TensorNetwork(DenseNetwork):
    """A DenseNetwork with tensors as weights and biases."""

    def __call__(self, inputs: Any) -> Any:
        if len(self.weights) > 1:
            inputs = self.last_hidden(inputs)
        return self._layer(-1, inputs)

    def _layer(self, layer: int, inputs: Any) -> Any:
        weights, biases = cast(Any, self.weights), cast(Any, self.biases)
        return torch.addmm(biases[layer], inputs, weights[layer])


def with_tensors(value: Any, device: torch.device) -> Any:
    """A copy of an estimator, or of a part of one, whose networks and arrays are tensors on a device.

    Values of other types than estimators, networks, lists, tuples and dicts are returned unchanged.
    """
    if isinstance(value, DenseNetwork):
        weights, biases = (
            tuple(as_double(array, device) for array in arrays) for arrays in (value.weights, value.biases)
        )
        return TensorNetwork(cast(Any, weights), cast(Any, biases), value.negative_slope)
    if isinstance(value, ConvNetwork):
        kernels, conv_biases = (
            tuple(torch.as_tensor(array, device=device) for array in arrays) for arrays in (value.kernels, value.biases)
        )
        means = torch.as_tensor(value.means, device=device)
        dense = with_tensors(value.dense, device)
        return dataclasses.replace(
            value, means=cast(Any, means), kernels=cast(Any, kernels), biases=cast(Any, conv_biases), dense=dense
        )
    # Otherwise, each exit would copy these arrays to the device and wait.
    names = getattr(type(value), "arrays_on_device", ())
    if names or isinstance(value, BaseEstimator):
        copied = copy.copy(value)
        copied.__dict__.update({name: with_tensors(part, device) for name, part in vars(value).items()})
        copied.__dict__.update({name: as_double(getattr(value, name), device) for name in names})
        return copied
    if isinstance(value, dict):
        return {name: with_tensors(part, device) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(with_tensors(part, device) for part in value)
    return value


def as_double(array: Any, device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device, in the precision of policies."""
    return torch.as_tensor(array, dtype=double_on(device), device=device)
