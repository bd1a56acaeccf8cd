"""What pooling an exit costs: products of matrices count, as in the network; averages and maxima do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from skexit.backbone._channels import Channels, find_channels, output_shapes
from skexit.backbone._inputs import Inputs, map_tensors
from skexit.backbone._modules import device_of
from skexit.backbone._moments import moments_multiply_adds
from skexit.backbone._pooling import Pool, moments_of


def pool_multiply_adds(
    model: nn.Module, exits: Sequence[str], example_input: Inputs, pool: Pool, channels: Channels
) -> list[int]:
    """Multiply-adds of pooling each exit of a network in evaluation mode, for an input of one row.

    Those of a callable are not known, and count as 0.
    """
    moments = moments_of(pool)
    if not moments:
        return [0] * len(exits)
    device = device_of(model)
    example = map_tensors(lambda tensor: tensor.to(device), example_input)
    layouts = find_channels(model, exits, example, pool, channels)
    shapes = output_shapes(model, exits, example)
    return [
        sum(_multiply_adds(name, shapes[exit_name], layouts[exit_name]) for name in moments if exit_name in shapes)
        for exit_name in exits
    ]


def _multiply_adds(name: str, shape: Sequence[int], channels: str) -> int:
    n_channels = shape[-1 if channels == "last" else 1]
    return moments_multiply_adds(name, math.prod(shape) // n_channels, n_channels)
