"""Reuse freed memory for the tensors of a network, without page faults by glibc."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Bytes of the largest block to which glibc adapts its mmap threshold (DEFAULT_MMAP_THRESHOLD_MAX), less its header.
_LARGEST_BLOCK = 2**25 - 2**13
_BLOCK = 2**24
#: These blocks reserve addresses, not memory: a page is mapped only when a tensor writes to it.
_N_BLOCKS = 128


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory for the next tensors, and return it to the system at the end.

    A stage of a network allocates memory for each of its activations. By default, glibc maps large blocks for one use
    only, and returns free memory at the top of its heap to the system. Every activation is then mapped page by page,
    which can take half of a network's time. glibc does not return free memory below an allocated block: therefore one
    block stays allocated above free memory, and all tensors are cut from this memory.

    The settings of ``mallopt`` do not change, because they apply to the whole process and cannot be restored. The
    function has no effect on other devices, with other C libraries, or if the address space is limited.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    keeper = _reserve()
    try:
        yield
    finally:
        del keeper
        ctypes.CDLL(None).malloc_trim(0)


def _reserve() -> torch.Tensor | None:
    """Reserve contiguous free blocks below an allocated block, and return this block; None if that fails."""
    try:
        # After a mapped block is freed, glibc allocates blocks of up to its size from the heap.
        _allocate(_LARGEST_BLOCK)
        return [_allocate(_BLOCK) for _ in range(_N_BLOCKS)][-1]
    except RuntimeError:
        return None


def _allocate(n_bytes: int) -> torch.Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, device="cpu")
