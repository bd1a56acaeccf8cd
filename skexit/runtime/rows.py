"""Rows of the tensors that go from stage to stage, and arrays that a policy works on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def select_rows(tensors: list[torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    """Some rows of each tensor, in memory as the tensor is."""
    return [_select(tensor, rows) for tensor in tensors]


def _select(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    if is_channels_last(tensor):
        return tensor.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return tensor.index_select(0, rows)


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether feature maps lie in memory with their channels last."""
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def as_array(tensor: torch.Tensor) -> Any:
    """What a policy computes with: NumPy on the CPU, where it is faster for few rows, else the tensor itself."""
    if tensor.device.type == "cpu":
        return tensor.detach().to(torch.float64).numpy()
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def as_tensor(array: Any) -> torch.Tensor:
    """The tensor of an array that `as_array` gave, or that was computed from one."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def split_rows(leaves: Any) -> tuple[Any, Any]:
    """Rows that leave, and rows that stay. Waits once for the device."""
    if isinstance(leaves, np.ndarray):
        return np.flatnonzero(leaves), np.flatnonzero(~leaves)
    n_leaving = int(leaves.sum())
    order = torch.argsort(leaves.to(torch.int8), descending=True, stable=True)
    return order[:n_leaving], order[n_leaving:]


def row_numbers(n_rows: int, device: torch.device) -> Any:
    """0, 1, ..., as an array of the kind that `as_array` gives on the device."""
    return np.arange(n_rows) if device.type == "cpu" else torch.arange(n_rows, device=device)
