"""Small fully connected networks. torch trains them; they are stored and applied without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skexit.utils._array_api import array_namespace, as_like, at_least
from skexit.utils._checks import is_integer
from skexit.utils._module_names import set_module

if TYPE_CHECKING:
    import torch


@set_module("skexit.persistence")
@dataclass(frozen=True)
class DenseNetwork:
    """A fully connected network with rectified linear units between its layers.

    `weights` and `biases` have one array per layer, of shape (n_inputs, n_outputs) and (n_outputs,). If
    `negative_slope` is above 0, the units are leaky.
    """

    weights: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]
    negative_slope: float = 0.0

    def __call__(self, inputs: Any) -> Any:
        """Outputs of the last layer, as an array of the inputs' namespace, dtype and device."""
        return self.last_layer(self.last_hidden(inputs))

    def last_hidden(self, inputs: Any) -> Any:
        """Inputs of the last layer: the units of the last hidden layer, or `inputs` if there are no hidden layers."""
        hidden = inputs
        for layer in range(len(self.weights) - 1):
            hidden = self._rectified(self._layer(layer, hidden))
        return hidden

    def _rectified(self, outputs: Any) -> Any:
        if self.negative_slope:
            return array_namespace(outputs).maximum(outputs, self.negative_slope * outputs)
        return at_least(outputs, 0.0)

    def last_layer(self, hidden: Any) -> Any:
        """Outputs of the network, from the units of its last hidden layer."""
        return self._layer(-1, hidden)

    def _layer(self, layer: int, inputs: Any) -> Any:
        return inputs @ as_like(self.weights[layer], inputs) + as_like(self.biases[layer], inputs)

    @property
    def n_multiply_adds(self) -> int:
        """Number of multiply-adds for one sample."""
        return sum(weight.size for weight in self.weights)

    def divided_by(self, temperature: float) -> DenseNetwork:
        """A network whose outputs are the outputs of this network divided by `temperature`."""
        weights, biases = (*self.weights[:-1], self.weights[-1] / temperature), self.biases
        return replace(self, weights=weights, biases=(*biases[:-1], biases[-1] / temperature))

    def after_scaling(self, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> DenseNetwork:
        """A network that gives for raw inputs what this network gives for ``(inputs - mean) / scale``."""
        first = self.weights[0] / scale[:, None]
        bias = self.biases[0] - mean @ first
        return replace(self, weights=(first, *self.weights[1:]), biases=(bias, *self.biases[1:]))


@set_module("skexit.persistence")
@dataclass(frozen=True)
class Moments:
    """Weighted mean and variance of columns, computed in one pass over batches of rows.

    `total` is the total weight of the rows so far. `mean`, of shape (n_columns,), is their weighted mean, and
    `squares`, of the same shape, is the weighted sum of squared deviations from this mean.
    """

    total: float = 0.0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, values: NDArray[Any], weight: NDArray[np.float64]) -> Moments:
        """Moments of the rows so far and the rows of `values` together."""
        # The update of Chan, Golub and LeVeque does not lose digits, even if the mean is large.
        mass = weight.sum()
        batch_mean = weight @ values / mass
        mean, squares = (self.mean, self.squares) if len(self.mean) else (0 * batch_mean, 0 * batch_mean)
        deviation = batch_mean - mean
        total = self.total + mass
        squares = squares + weight @ (values - batch_mean) ** 2 + deviation**2 * self.total * mass / total
        return Moments(total, mean + deviation * mass / total, squares)

    def scaling(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each column. The deviation of a constant column is set to 1."""
        scale = np.sqrt(self.squares / self.total)
        constant = scale <= 10 * np.finfo(np.float64).eps * np.maximum(np.abs(self.mean), 1)
        return self.mean, np.where(constant, 1.0, scale)


def weighted_scaling(
    batches: Iterator[tuple[NDArray[Any], NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean and standard deviation of columns, in one pass over batches of rows and their weights.

    The deviation of a constant column is set to 1.
    """
    moments = Moments()
    for values, weight in batches:
        moments = moments.add(values, weight)
    return moments.scaling()


def check_hidden_layer_sizes(sizes: Sequence[int], name: str) -> tuple[int, ...]:
    """The widths of hidden layers as integers; a ValueError with the parameter's `name` if one is not positive."""
    if not all(is_integer(width) and width >= 1 for width in sizes):
        raise ValueError(
            f"{name}={sizes!r} must hold one positive integer for each hidden layer; () makes the networks linear."
        )
    return tuple(int(width) for width in sizes)


def torch_generator(random_state: np.random.RandomState) -> torch.Generator:
    """A new torch generator: torch's global generator has no influence and is not changed."""
    import torch

    return torch.Generator().manual_seed(int(random_state.randint(2**31 - 1)))


def build(sizes: Sequence[int], generator: torch.Generator, negative_slope: float = 0.0) -> torch.nn.Sequential:
    """A torch network of the given widths, with random weights and biases of 0."""
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    for n_inputs, n_outputs in pairwise(sizes):
        # Without skip_init, the default initialisation draws from torch's global generator.
        layer = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs, dtype=torch.float32)
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.LeakyReLU(negative_slope)]
    return nn.Sequential(*layers[:-1])


def hidden_units(
    network: torch.nn.Sequential, inputs: torch.Tensor, dropout: float, generator: torch.Generator
) -> torch.Tensor:
    """Units of the last hidden layer of a network from `build`, with dropout in each hidden layer.

    `dropout` is the share of units that are set to 0. Without hidden layers, the inputs are returned.
    """
    for linear, rectifier in zip(network[:-1:2], network[1::2], strict=True):
        inputs = drop_units(rectifier(linear(inputs)), dropout, generator)
    return inputs


def drop_units(hidden: torch.Tensor, dropout: float, generator: torch.Generator) -> torch.Tensor:
    """Dropout that draws from `generator`, not from torch's global generator."""
    return hidden * kept_units([hidden.shape], dropout, generator)[0] if dropout else hidden


def kept_units(shapes: Sequence[Sequence[int]], dropout: float, generator: torch.Generator) -> list[torch.Tensor]:
    """Factors of hidden units in dropout, as tensors of the given shapes: 0 or ``1 / (1 - dropout)``."""
    import torch

    if not dropout:
        return [torch.ones(*shape, dtype=torch.float32) for shape in shapes]
    sizes = [math.prod(shape) for shape in shapes]
    # Each draw of 64 bits gives four numbers of 16 bits, because the draws take most of the time of dropout.
    draws = torch.empty(-(-sum(sizes) // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    kept = (draws.view(torch.int16)[: sum(sizes)] >= round(dropout * 2**16) - 2**15).float() / (1 - dropout)
    return [part.view(*shape) for part, shape in zip(kept.split(sizes), shapes, strict=True)]


def to_dense(model: torch.nn.Sequential) -> DenseNetwork:
    """The trained torch network as NumPy arrays."""
    from torch import nn

    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    slopes = [layer.negative_slope for layer in model if isinstance(layer, nn.LeakyReLU)]
    return DenseNetwork(
        tuple(layer.weight.detach().numpy().T.astype(np.float64) for layer in linear),
        tuple(layer.bias.detach().numpy().astype(np.float64) for layer in linear),
        slopes[0] if slopes else 0.0,
    )
