"""Networks cut at their exits, and clocks, for benchmarks of the live network."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from skexit.backbone._inputs import tensors_of
from skexit.runtime import EarlyExitModel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Milliseconds, and the result."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function(*arguments)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start), result


def ideal_ms(live: EarlyExitModel, inputs: Any, exits: torch.Tensor) -> float:
    """Sum over the stages of the plain stage's time for as many samples as reach it."""
    first, *side = tensors_of(inputs)
    total, tensors = 0.0, [first]
    for k, stage in live.stages.items():
        n_rows = int((exits >= k).sum())
        if n_rows == 0:
            break
        tensors = [tensor[:n_rows].clone() for tensor in tensors]
        side = [tensor[:n_rows] for tensor in side]
        duration, tensors = timed(stage.network, *tensors, *side)
        total += duration
        if k == len(live.exits) - 1 and stage.logits is not None:
            total += timed(stage.logits, *tensors, *side)[0]
    return total
