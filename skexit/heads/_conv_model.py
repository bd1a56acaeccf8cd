"""A convolutional head as a torch module, for training."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from skexit._nn._conv import KERNEL_SIZE, ConvNetwork, output_sides
from skexit._nn._dense import DenseNetwork, drop_units
from skexit.data._layout_checks import FeatureMap
from skexit.heads._conv_scaling import HeadScaling


class ConvModel(nn.Module):
    """Convolutions of a map, each followed by batch normalisation, and a linear layer.

    The linear layer takes the outputs of the last convolution and the features of the exit outside the map. `place` is
    the position and shape of the map, and `width` is the number of features of the exit. `dropout` is the share of the
    linear layer's inputs that are left out.
    """

    def __init__(
        self,
        place: FeatureMap,
        width: int,
        n_classes: int,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._place, self._strides, self._dropout, self._generator = place, tuple(strides), dropout, generator
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        n_read, sides = place[1], place[2:]
        for n_kernels, stride in zip(channels, strides, strict=True):
            # Without skip_init, the default initialisation draws from torch's global generator.
            sizes = {"padding": KERNEL_SIZE // 2, "bias": False, "dtype": torch.float32}
            convolution = nn.utils.skip_init(nn.Conv2d, n_read, n_kernels, KERNEL_SIZE, stride, **sizes)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", generator=generator)
            self.convolutions.append(convolution)
            self.norms.append(nn.BatchNorm2d(n_kernels, dtype=torch.float32))
            n_read, sides = n_kernels, output_sides(sides, stride)
        n_seen = n_read * prod(sides) + width - prod(place[1:])
        self.linear = nn.utils.skip_init(nn.Linear, n_seen, n_classes, dtype=torch.float32)
        nn.init.kaiming_uniform_(self.linear.weight, a=5**0.5, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits for standardised features."""
        first, *shape = self._place
        before, columns, after = features.tensor_split((first, first + prod(shape)), dim=1)
        maps = columns.reshape(-1, *shape)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            maps = _normalized(convolution(maps), cast(nn.BatchNorm2d, norm)).relu()
        seen = torch.cat([maps.flatten(1), before, after], dim=1)
        return cast(torch.Tensor, self.linear(drop_units(seen, self._dropout, self._generator)))

    def to_network(self, scaling: HeadScaling) -> ConvNetwork:
        """The head in NumPy, for features that are not standardised."""
        means, deviations = scaling.channels
        kernels, biases = zip(*map(_folded, self.convolutions, self.norms), strict=True)
        kernels[0][:] /= deviations[:, None, None]
        dense = DenseNetwork((_numbers(self.linear.weight).T,), (_numbers(self.linear.bias),))
        mean, scale = scaling.others
        n_of_map = len(dense.weights[0]) - len(mean)
        return ConvNetwork(
            self._place,
            means.astype(np.float32),
            tuple(kernel.astype(np.float32) for kernel in kernels),
            tuple(bias.astype(np.float32) for bias in biases),
            self._strides,
            dense.after_scaling(np.append(np.zeros(n_of_map), mean), np.append(np.ones(n_of_map), scale)),
        )


def _normalized(maps: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    """Batch normalisation; a channel with a single number in the batch is standardised by the running statistics."""
    is_single = maps.shape[0] * maps.shape[2] * maps.shape[3] == 1
    mean, variance = norm.running_mean, norm.running_var
    return functional.batch_norm(
        maps, mean, variance, norm.weight, norm.bias, training=not is_single, momentum=0.1, eps=norm.eps
    )


def _folded(convolution: Any, norm: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Kernels and biases of one convolution that equals the convolution followed by its normalisation."""
    factor = _numbers(norm.weight) / np.sqrt(_numbers(norm.running_var) + norm.eps)
    kernel = _numbers(convolution.weight) * factor[:, None, None, None]
    return kernel, _numbers(norm.bias) - factor * _numbers(norm.running_mean)


def _numbers(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().numpy().astype(np.float64)
