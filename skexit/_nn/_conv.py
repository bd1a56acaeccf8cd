"""Small convolutional networks, stored as NumPy arrays and applied with torch or without it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from skexit._nn._dense import DenseNetwork
from skexit.utils._array_api import array_namespace, as_like, at_least
from skexit.utils._module_names import set_module

#: Height and width of a kernel.
KERNEL_SIZE = 3
#: Without torch, convolutions copy the windows of the maps: at most about this many numbers at a time.
_WINDOW_NUMBERS = 2**22


@set_module("skexit.persistence")
@dataclass(frozen=True)
class ConvNetwork:
    """Convolutions of a map that is part of each input row, followed by a dense network.

    Each convolution has 3 x 3 kernels and zero padding, is followed by rectified linear units, and is computed in
    single precision. The mean of each channel is subtracted from the map first. The dense network reads the flattened
    output of the last convolution, and then the inputs before and after the map.

    Parameters
    ----------
    place : tuple of (int, int, int, int)
        Column of the map's first number in the inputs, and the map's channels, height and width.
    means : ndarray of shape (n_channels,)
        Means that are subtracted from the channels of the map.
    kernels : tuple of ndarray of shape (n_outputs, n_inputs, 3, 3)
        One array per convolution.
    biases : tuple of ndarray of shape (n_outputs,)
        One array per convolution.
    strides : tuple of int
        One stride per convolution.
    dense : DenseNetwork
        The network after the convolutions.
    """

    place: tuple[int, int, int, int]
    means: NDArray[np.float32]
    kernels: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    strides: tuple[int, ...]
    dense: DenseNetwork

    def __call__(self, inputs: Any) -> Any:
        """Outputs of the dense network, as an array of the inputs' namespace, dtype and device."""
        first, *shape = self.place
        end = first + prod(shape)
        xp = array_namespace(inputs)
        columns = xp.astype(inputs[:, first:end], xp.float32)
        maps = xp.reshape(columns, (-1, *shape)) - as_like(self.means[:, None, None], columns)
        for kernel, bias, stride in zip(self.kernels, self.biases, self.strides, strict=True):
            maps = at_least(convolve(maps, kernel, bias, stride), 0.0)
        last = xp.astype(xp.reshape(maps, (-1, prod(self.last_shape))), inputs.dtype)
        return self.dense(xp.concat([last, inputs[:, :first], inputs[:, end:]], axis=1))

    @property
    def last_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the last convolution's output."""
        sides = self.place[2:]
        for stride in self.strides:
            sides = output_sides(sides, stride)
        return self.kernels[-1].shape[0], *sides

    @property
    def n_multiply_adds(self) -> int:
        """Number of multiply-adds for one sample."""
        total, sides = self.dense.n_multiply_adds, self.place[2:]
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            sides = output_sides(sides, stride)
            total += kernel.size * prod(sides)
        return total

    def divided_by(self, temperature: float) -> ConvNetwork:
        """A network whose outputs are the outputs of this network divided by `temperature`."""
        return replace(self, dense=self.dense.divided_by(temperature))


def output_sides(sides: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of a convolution's output, from the height and width of its input."""
    height, width = sides
    return -(-height // stride), -(-width // stride)


def convolve(maps: Any, kernel: Any, bias: Any, stride: int) -> Any:
    """Cross-correlation of zero-padded maps of shape (n_samples, n_channels, height, width).

    torch computes it for tensors, and also for NumPy arrays if torch has been imported.
    """
    kernel, bias = as_like(kernel, maps), as_like(bias, maps)
    if array_api_compat.is_torch_array(maps):
        return _convolve_by_torch(maps, kernel, bias, stride)
    if isinstance(maps, np.ndarray) and "torch" in sys.modules:
        import torch

        # Copies of kernel and bias, which may be read-only.
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            kernel, bias = (torch.tensor(values, device="cpu") for values in (kernel, bias))
            return _convolve_by_torch(torch.from_numpy(maps), kernel, bias, stride).numpy()
    n_rows = max(1, _WINDOW_NUMBERS // (KERNEL_SIZE**2 * prod(maps.shape[1:])))
    starts = range(0, max(len(maps), 1), n_rows)
    parts = [_convolve_windows(maps[start : start + n_rows], kernel, bias, stride) for start in starts]
    return array_namespace(maps).concat(parts)


def _convolve_by_torch(maps: Any, kernel: Any, bias: Any, stride: int) -> Any:
    from torch.nn import functional

    return functional.conv2d(maps, kernel, bias, stride, padding=KERNEL_SIZE // 2)


def _convolve_windows(maps: Any, kernel: Any, bias: Any, stride: int) -> Any:
    """The same convolution as a matrix product, with functions of the array API only."""
    xp = array_namespace(maps)
    n_samples, n_channels, height, width = maps.shape
    padded = _with_zeros(_with_zeros(maps, 2), 3)
    offsets = range(KERNEL_SIZE)
    windows = xp.concat(
        [padded[:, :, i : i + height : stride, j : j + width : stride] for i in offsets for j in offsets], axis=1
    )
    n_read, sides = KERNEL_SIZE**2 * n_channels, windows.shape[2:]
    matrix = xp.reshape(xp.permute_dims(kernel, (0, 2, 3, 1)), (-1, n_read))
    products = matrix @ xp.reshape(windows, (n_samples, n_read, prod(sides)))
    return xp.reshape(products, (n_samples, kernel.shape[0], *sides)) + bias[:, None, None]


def _with_zeros(maps: Any, axis: int) -> Any:
    """Maps padded with zeros on both sides of an axis."""
    xp = array_namespace(maps)
    shape = tuple(KERNEL_SIZE // 2 if i == axis else size for i, size in enumerate(maps.shape))
    zeros = xp.zeros(shape, dtype=maps.dtype, device=array_api_compat.device(maps))
    return xp.concat([zeros, maps, zeros], axis=axis)
