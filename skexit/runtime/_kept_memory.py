"""Memory that a network's tensors take again and again, kept from glibc's page faults."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: The largest block that glibc's threshold for mmap adapts to (DEFAULT_MMAP_THRESHOLD_MAX), less its bookkeeping.
_LARGEST_BLOCK = 2**25 - 2**13
_BLOCK = 2**24
#: Addresses, not memory: pages that no tensor touches are never mapped.
_N_BLOCKS = 128


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory for the next tensors, until the end.

    A stage of a network allocates each of its activations anew. glibc maps large blocks for one use only, and returns
    what is free at the top of its heap, so that every activation would be mapped page by page: up to half of a
    network's time. Blocks below an allocated one are not returned, and tensors of any size are cut from them.

    At the end it is returned. Settings of ``mallopt`` are not touched, as they belong to the process and cannot be put
    back. It does nothing on other devices and with other C libraries, or where addresses are limited.
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
    """Free blocks in a row below one that is allocated, which is given."""
    try:
        # Freeing a mapped block lets glibc serve blocks of up to this size from its heap.
        _allocate(_LARGEST_BLOCK)
        return [_allocate(_BLOCK) for _ in range(_N_BLOCKS)][-1]
    except RuntimeError:
        return None


def _allocate(n_bytes: int) -> torch.Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8)
