"""Samples of a batch of a live network: who leaves, who stays, and how many to run."""

from __future__ import annotations

import torch


def in_double(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision in which policies compute."""
    return tensor.to(double_on(tensor.device))


def double_on(device: torch.device) -> torch.dtype:
    """The precision in which policies compute on a cache, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def count_rows(leaves: torch.Tensor, gone: torch.Tensor | None) -> tuple[int, int]:
    """How many samples leave, and how many stay, without those that are gone. Waits once for the device."""
    if gone is None:
        n_leaving = int(leaves if len(leaves) == 1 else leaves.count_nonzero())
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

    There, for each number of rows that a convolution has not had before, it is planned anew, which takes longer than to
    run it. So numbers of more than four binary digits are rounded up to four, of which there are eight from one power
    of two to the next.
    """
    step = 2 ** max(n_rows.bit_length() - 4, 0) if device.type == "cuda" else 1
    return -(-n_rows // step) * step


def fill_up(rows: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows, the last again and again until there are `size`, and which of them were added."""
    position = torch.arange(size, device=rows.device)
    return rows[position.clamp(max=len(rows) - 1)], position >= len(rows)
