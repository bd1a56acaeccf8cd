"""Rows of a batch: which leave, which stay, and with how many rows a stage is run."""

from __future__ import annotations

import torch


def in_double(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision of policies."""
    return tensor.to(double_on(tensor.device))


def double_on(device: torch.device) -> torch.dtype:
    """Double precision, as on a cache; single precision on devices without double precision."""
    return torch.float32 if device.type == "mps" else torch.float64


def count_rows(leaves: torch.Tensor, gone: torch.Tensor | None) -> tuple[int, int]:
    """Number of samples that leave, and number that stay, without those that are gone. Waits once for the device."""
    if gone is None:
        n_leaving = int(leaves if len(leaves) == 1 else leaves.count_nonzero())
        return n_leaving, len(leaves) - n_leaving
    n_leaving, n_staying = torch.stack([(leaves & ~gone).count_nonzero(), (~leaves & ~gone).count_nonzero()]).tolist()
    return n_leaving, n_staying


def split_rows(
    leaves: torch.Tensor, gone: torch.Tensor | None, n_leaving: int, n_staying: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `n_leaving` rows that leave, and the `n_staying` rows that stay."""
    codes = (~leaves).to(torch.int8)
    if gone is not None:
        codes = torch.where(gone, 2, codes)
    rows = codes.argsort(stable=True)
    return rows[:n_leaving], rows[n_leaving : n_leaving + n_staying]


def size_to_run(n_rows: int, device: torch.device) -> int:
    """Number of rows with which a stage is run for `n_rows` samples: on a GPU, `n_rows` is rounded up.

    cuDNN plans a convolution again for each new number of rows, which takes longer than to run it. Therefore the number
    is rounded up to four significant binary digits: there are eight such numbers from one power of two to the next.
    """
    step = 2 ** max(n_rows.bit_length() - 4, 0) if device.type == "cuda" else 1
    return -(-n_rows // step) * step


def fill_up(rows: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows, padded to `size` with copies of the last one, and a mask of the added rows."""
    position = torch.arange(size, device=rows.device)
    return rows[position.clamp(max=len(rows) - 1)], position >= len(rows)
