"""Rows of the tensors that go from stage to stage."""

from __future__ import annotations

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


def in_double(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision in which policies compute on a cache, where the device has it."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def split_rows(leaves: torch.Tensor, gone: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that leave, and rows that stay, without those that are gone. Waits once for the device."""
    if gone is not None:
        codes = torch.where(gone, 2, (~leaves).to(torch.int8))
        n_leaving, n_staying, _ = torch.bincount(codes, minlength=3).tolist()
        rows = codes.argsort(stable=True)
        return rows[:n_leaving], rows[n_leaving : n_leaving + n_staying]
    n_leaving = int(leaves.count_nonzero())
    if n_leaving in (0, len(leaves)):
        rows = torch.arange(len(leaves), device=leaves.device)
    else:
        rows = leaves.to(torch.int8).argsort(descending=True, stable=True)
    return rows[:n_leaving], rows[n_leaving:]
