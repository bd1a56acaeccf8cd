"""Second moments of channels over the places of a map, or the tokens of a sequence: ``pool="cov"``."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: More channels are projected by ``"cov"``: the moments of 64 are 2,080 numbers.
_MAX_CHANNELS = 64
_NAME = re.compile(r"cov([1-9]\d*)?")
#: Keeps the square root smooth at 0, where it would make much of rounding, and has no gradient.
_SMOOTHING = 1e-4


def is_moments(name: Any) -> bool:
    """Whether a pool is ``"cov"``, or ``"cov"`` with a number of channels, as ``"cov32"``."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def second_moments(places: torch.Tensor, name: str, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Signed square roots of the mean products of two channels, the upper triangle with the diagonal.

    `places` has shape (n_samples, n_places, n_channels); `counted` is true where a place counts.
    """
    n_channels = int(places.shape[2])  # TorchScript records sizes as tensors
    n_kept = _n_kept(name, n_channels)
    if counted is not None:
        places = places.masked_fill(~counted.unsqueeze(2), 0)
    if n_kept < n_channels:
        places = places @ torch.from_numpy(_projection(n_channels, n_kept)).to(places)
    n_counted = places.shape[1] if counted is None else counted.sum(dim=1).reshape(-1, 1, 1)
    moments = places.transpose(1, 2) @ places / n_counted
    upper = torch.from_numpy(_upper_triangle(n_kept)).to(places.device)
    moments = moments.flatten(1).index_select(1, upper)
    return moments / (moments.abs() + _SMOOTHING).sqrt()


def n_moments(name: str, n_channels: int) -> int:
    """How many numbers `second_moments` gives."""
    n_kept = _n_kept(name, n_channels)
    return n_kept * (n_kept + 1) // 2


def moments_multiply_adds(name: str, n_places: int, n_channels: int) -> int:
    """Multiply-adds of `second_moments` of a sample."""
    n_kept = _n_kept(name, n_channels)
    projection = n_channels * n_kept if n_kept < n_channels else 0
    return n_places * (projection + n_kept**2)


def _n_kept(name: str, n_channels: int) -> int:
    return min(int(name.removeprefix("cov") or _MAX_CHANNELS), n_channels)


@lru_cache
def _projection(n_channels: int, n_kept: int) -> NDArray[np.float32]:
    """Random signs, the same everywhere: the legacy generator keeps its stream."""
    signs = np.random.RandomState(0).randint(2, size=(n_channels, n_kept))
    return ((2 * signs - 1) / np.sqrt(n_channels)).astype(np.float32)


@lru_cache
def _upper_triangle(size: int) -> NDArray[np.int64]:
    rows, columns = np.triu_indices(size)
    return (rows * size + columns).astype(np.int64)
