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


def empty_rows(tensor: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Room for rows like those of a tensor, in memory as the tensor is."""
    layout = torch.channels_last if is_channels_last(tensor) else torch.contiguous_format
    return torch.empty((n_rows, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device, memory_format=layout)


def write_rows(target: torch.Tensor, source: torch.Tensor, rows: torch.Tensor | slice) -> None:
    """Copy some rows of a tensor into another one, which has room for just these."""
    if isinstance(rows, slice):
        target.copy_(source[rows])
    elif is_channels_last(target):
        torch.index_select(source.permute(0, 2, 3, 1), 0, rows, out=target.permute(0, 2, 3, 1))
    else:
        torch.index_select(source, 0, rows, out=target)


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether feature maps lie in memory with their channels last."""
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def in_double(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision in which policies compute."""
    return tensor.to(double_on(tensor.device))


def double_on(device: torch.device) -> torch.dtype:
    """The precision in which policies compute on a cache, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def count_rows(leaves: torch.Tensor, gone: torch.Tensor | None) -> tuple[int, int]:
    """How many samples leave, and how many stay, without those that are gone. Waits once for the device."""
    if gone is None:
        n_leaving = int(leaves.count_nonzero())
        return n_leaving, len(leaves) - n_leaving
    n_leaving, n_staying = torch.stack([(leaves & ~gone).count_nonzero(), (~leaves & ~gone).count_nonzero()]).tolist()
    return n_leaving, n_staying


def split_rows(
    leaves: torch.Tensor, gone: torch.Tensor | None, n_leaving: int, n_staying: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that leave, and rows that stay, of which there are so many."""
    codes = (~leaves).to(torch.int8)
    if gone is not None:
        codes = torch.where(gone, 2, codes)
    rows = codes.argsort(stable=True)
    return rows[:n_leaving], rows[n_leaving : n_leaving + n_staying]


def size_to_run(n_rows: int, device: torch.device) -> int:
    """With how many rows to run a stage for so many: as many, or on a GPU a few more.

    There, for each number of rows that a convolution has not had before, it is planned anew, which takes longer than
    to run it. So numbers of more than four binary digits are rounded up to four, of which there are eight from one
    power of two to the next.

    Parameters
    ----------
    n_rows : int
    device : torch.device

    Returns
    -------
    int
    """
    step = 2 ** max(n_rows.bit_length() - 4, 0) if device.type == "cuda" else 1
    return -(-n_rows // step) * step


def fill_up(rows: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows, the last again and again until there are enough, and which of them were added.

    Parameters
    ----------
    rows : tensor of shape (n_rows,) of int64
    size : int
        At least n_rows.

    Returns
    -------
    rows : tensor of shape (size,) of int64
    added : tensor of shape (size,) of bool
    """
    position = torch.arange(size, device=rows.device)
    return rows[position.clamp(max=len(rows) - 1)], position >= len(rows)
