"""Stages that torch.compile has compiled, for a few sizes of batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from skexit.backbone._rows import select_rows
from skexit.backbone._stages import Stage


class PaddedNetwork(nn.Module):
    """A compiled network that sees batches of a few sizes only, which rise.

    A batch is filled up to the next size by repeating its last row; one that is larger than the largest is divided. So
    each row of what the network gives must be a function of the same row of what it takes.
    """

    def __init__(self, network: nn.Module, sizes: Sequence[int], options: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self._sizes = sizes
        self._compiled = torch.compile(network, dynamic=False, **options)

    def forward(self, *tensors: torch.Tensor) -> Any:
        """What the network gives for tensors of any number of rows."""
        n_rows, largest = len(tensors[0]), self._sizes[-1]
        parts = [
            self._compute_part(tensors, range(n_rows)[start : start + largest]) for start in range(0, n_rows, largest)
        ]
        if len(parts) == 1:
            return parts[0]
        return pytree.tree_map(lambda *outputs: torch.cat(outputs), *parts)

    def _compute_part(self, tensors: Sequence[torch.Tensor], rows: range) -> Any:
        size = next(size for size in self._sizes if size >= len(rows))
        # Copied also where nothing is added: what lies in memory in another way would be compiled anew.
        padded = torch.arange(rows.start, rows.start + size, device=tensors[0].device).clamp_(max=rows[-1])
        outputs = self._compiled(*select_rows(list(tensors), padded))
        # Copied, because with CUDA graphs the next run writes into the same memory.
        return pytree.tree_map(lambda output: output[: len(rows)].clone(), outputs)


def compile_stage(stage: Stage, sizes: Sequence[int], options: dict[str, Any]) -> Stage:
    """A stage whose networks are compiled, for rising numbers of rows, with options of ``torch.compile``."""
    head = None if stage.logits is None else PaddedNetwork(plain_network(stage.logits), sizes, options)
    return Stage(PaddedNetwork(plain_network(stage.network), sizes, options), head)


def plain_network(network: Any) -> Any:
    """The network of a stage as it was before it was compiled."""
    return network.network if isinstance(network, PaddedNetwork) else network


def check_sizes(pad_to: Sequence[int]) -> list[int]:
    """The sizes of batches, rising; a ValueError says if there is none, or one is no positive integer."""
    sizes = sorted(set(pad_to))
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"pad_to={pad_to!r} must be one or more numbers of rows, each at least 1.")
    return sizes
