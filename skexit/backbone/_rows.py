"""Select, write and move the rows of tensors that pass from stage to stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def axis_of_rows(shape: Sequence[Any], is_rows: Callable[[Any], bool]) -> int | None:
    """The axis of the samples: the first, or the second as in recurrent layers; None if it is neither."""
    return next((axis for axis, size in enumerate(shape[:2]) if is_rows(size)), None)


def rows_first(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """The tensor with its samples along the first axis."""
    return tensor.transpose(0, 1) if axis else tensor


def rows_second(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its samples along the second axis, contiguous in memory as in the network."""
    return tensor.transpose(0, 1).contiguous()


def with_rows(tensor: torch.Tensor, n_rows: int) -> torch.Tensor:
    """A copy of the first rows of a tensor, repeated if they are too few, in the tensor's memory format."""
    return _select(tensor, torch.arange(n_rows, device=tensor.device) % len(tensor))


def select_rows(tensors: list[torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    """Some rows of each tensor, in the tensor's memory format."""
    return [_select(tensor, rows) for tensor in tensors]


def _select(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    if is_channels_last(tensor):
        return tensor.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return tensor.index_select(0, rows)


def empty_rows(tensor: torch.Tensor, n_rows: int) -> torch.Tensor:
    """An empty tensor for rows like those of a tensor, in its memory format."""
    layout = torch.channels_last if is_channels_last(tensor) else torch.contiguous_format
    return torch.empty((n_rows, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device, memory_format=layout)


def write_rows(target: torch.Tensor, source: torch.Tensor, rows: torch.Tensor | slice) -> None:
    """Copy some rows of a tensor into another one, which has exactly as many rows."""
    if isinstance(rows, slice):
        target.copy_(source[rows])
    elif is_channels_last(target):
        torch.index_select(source.permute(0, 2, 3, 1), 0, rows, out=target.permute(0, 2, 3, 1))
    else:
        torch.index_select(source, 0, rows, out=target)


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether feature maps are stored in memory with their channels last."""
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
