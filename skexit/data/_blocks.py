"""Logits and features of single exits, in the forms that users have, as blocks of X."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from skexit.utils._warnings import warn

#: One block of shape (n_samples, width) per exit, None if the exit has none.
Blocks: TypeAlias = list[NDArray[Any] | None]

#: Smallest probability: smaller ones, such as zeros, are raised to it.
SMALLEST_PROBABILITY = 1e-12
#: Probability of a class that is masked by -inf, small enough to be negligible at any temperature.
MASKED_PROBABILITY = 1e-30

#: How far the sum of a row may be from 1 by rounding in half precision with many classes.
_SUM_TOLERANCE = 0.01


def logit_blocks(blocks: Any, name: str = "logits") -> Blocks:
    """Logits of each exit: a single column z becomes [0, z], and a logit of -inf stands for a small probability."""
    checked = [None if block is None else checked_logits(block) for block in split_exits(blocks, name)]
    warn_of_probabilities(checked)
    return checked


def logits_of_probabilities(blocks: Any) -> Blocks:
    """Logarithms of the probabilities of each exit; a single column p becomes [1 - p, p]."""
    return [
        None if block is None else log_of_probabilities(block, k)
        for k, block in enumerate(split_exits(blocks, "probabilities"))
    ]


def split_exits(blocks: Any, name: str) -> Blocks:
    """The blocks of the exits, from an array of three dimensions or a sequence of blocks."""
    if blocks is None:
        return []
    if not isinstance(blocks, list | tuple):
        blocks = as_numpy(blocks)
        if blocks.ndim != 3:
            width = "n_features" if name == "features" else "n_classes"
            raise ValueError(
                f"{name} has shape {blocks.shape}; pass (n_samples, n_exits, {width}), or a list of arrays of shape "
                f"(n_samples, {width}), one per exit."
            )
        blocks = list(np.moveaxis(blocks, 1, 0))
    return [_as_block(block, name, k) for k, block in enumerate(blocks)]


def as_numpy(values: Any) -> NDArray[Any]:
    """An array, or a tensor of any device and precision, as an array of NumPy."""
    if issparse(values):
        raise TypeError("Sparse data was passed, but dense data is required. Use '.toarray()' to convert it.")
    if str(getattr(values, "dtype", "")) == "torch.bfloat16":  # NumPy does not have it
        values = values.float()
    return np.asarray(values.numpy(force=True) if hasattr(values, "requires_grad") else values)


def warn_of_probabilities(
    logits: Sequence[NDArray[Any] | None], cure: str = "Pass probabilities as stack_exits(probabilities=...)."
) -> None:
    """Warn where all rows of an exit's logits are non-negative and sum to one, or a single one is between 0 and 1."""
    for k, block in enumerate(logits):
        if block is None:
            continue
        # A few rows are enough to exclude nearly all logits.
        if _sum_to_one(block[:16]) and _sum_to_one(block):
            fault, effect = f"every row of the logits of exit {k} is non-negative and sums to 1", "are never certain"
        elif _single_in_unit_range(block[:16]) and _single_in_unit_range(block):
            fault, effect = f"the single logit of exit {k} is between 0 and 1 in every row", "predict one class only"
        else:
            continue
        warn(
            f"{fault}, as probabilities are. Probabilities that are taken for logits {effect}, so that confidences and "
            "losses are wrong. "
            f"{cure}"
        )
        return


def _sum_to_one(block: NDArray[Any]) -> bool:
    return bool(
        len(block) and (block >= 0).all() and (np.abs(block.sum(axis=1, dtype=np.float64) - 1) <= _SUM_TOLERANCE).all()
    )


def _single_in_unit_range(block: NDArray[Any]) -> bool:
    """Whether the rows are [0, p] with p between 0 and 1; a few logits may be so by chance."""
    if block.shape[1] != 2 or len(block) < 10 or block[:, 0].any():
        return False
    return bool(block[:, 1].any() and ((block[:, 1] >= 0) & (block[:, 1] <= 1)).all())


def _as_block(block: Any, name: str, k: int) -> NDArray[Any] | None:
    if block is None:
        return None
    array = as_numpy(block)
    if array.ndim != 2 and not (name == "features" and array.ndim == 4):
        cure = "reshape(-1, 1)" if array.ndim == 1 else "reshape(len(array), -1), or a mean over positions"
        raise ValueError(f"{name}[{k}] has shape {array.shape}; pass one row per sample, for example by {cure}.")
    if array.dtype.kind in "fiub":
        return array if array.dtype.kind == "f" else array.astype(np.float64)
    raise ValueError(f"{name}[{k}] has dtype {array.dtype}; pass numbers, for example by astype(float).")


def checked_logits(logits: NDArray[Any]) -> NDArray[Any]:
    """Logits of an exit: a single column z becomes [0, z], and -inf the logit of a small probability."""
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    masked = np.isneginf(logits)
    # A sample with all classes masked is refused later, when it is read.
    masked &= ~masked.all(axis=1, keepdims=True) & (masked | np.isfinite(logits)).all(axis=1, keepdims=True)
    if not masked.any():
        return logits
    # 0 * -inf, as in an entropy, is NaN.
    rows = masked.any(axis=1)
    given, hidden = logits[rows], masked[rows]
    floor = np.logaddexp.reduce(given, axis=1, keepdims=True, dtype=np.float64) + np.log(MASKED_PROBABILITY)
    least = np.where(hidden, np.inf, given).min(axis=1, keepdims=True)
    floored = logits.copy()
    floored[rows] = np.where(hidden, np.minimum(floor, least), given)
    return floored


def log_of_probabilities(given: NDArray[Any], k: int) -> NDArray[Any]:
    """Logarithms of the probabilities of exit `k`; messages name the exit."""
    probabilities = np.hstack([1 - given, given]) if given.shape[1] == 1 else given
    is_negative = np.logical_not((probabilities >= 0).all(axis=1))  # or NaN
    sums = probabilities.sum(axis=1, dtype=np.float64)
    wrong = np.flatnonzero(is_negative | ~(np.abs(sums - 1) <= _SUM_TOLERANCE))
    if len(wrong):
        row = wrong[0]
        if np.isnan(sums[row]):
            fault, cure = "has NaN", "Remove such rows."
        elif sums[row] == 0:
            fault, cure = "sums to 0, not 1", "Remove such rows, or give each class the same probability there."
        else:
            fault = "has a value below 0 or above 1" if is_negative[row] else f"sums to {sums[row]:.6g}, not 1"
            cure = (
                "Divide percentages by 100, and counts by their sum. Pass logits, and scores of any size, as "
                "stack_exits(logits=...)."
            )
        values = np.array2string(given[row], precision=6, threshold=6)
        raise ValueError(
            f"probabilities[{k}]: row {row} {fault}: {values}. Every row needs the probability of each class, "
            f"non-negative and summing to 1. {cure}"
        )
    floored = np.maximum(probabilities, SMALLEST_PROBABILITY, dtype=np.float64)
    return np.log(floored).astype(np.promote_types(probabilities.dtype, np.float32))
