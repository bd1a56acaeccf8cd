"""X from the arrays of each exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.data._arrays import ExitArray
from skexit.data._layout import ExitLayout
from skexit.data._sources import ArraySource


def stack_exits(
    logits: ArrayLike | Sequence[ArrayLike | None] | None = None,
    features: ArrayLike | Sequence[ArrayLike | None] | None = None,
    *,
    costs: ArrayLike | None = None,
    classes: ArrayLike | None = None,
    cost_unit: str | None = None,
) -> ExitArray:
    """Build X from the logits and features that each exit of a network gave.

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_exits, n_classes), or list of n_exits arrays of \
shape (n_samples, n_classes) or None, default=None
        Logits of each exit; in a list, None where an exit has none.
    features : list of n_exits arrays of shape (n_samples, n_features_k) or None, or array-like of \
shape (n_samples, n_exits, n_features), default=None
        Features of each exit; in a list, None where an exit has none.
    costs : array-like of shape (n_exits,), default=None
        Cumulative cost of an answer at each exit, in `cost_unit`, strictly increasing. By default
        the fractions ``(k + 1) / n_exits``.
    classes : array-like of shape (n_classes,), default=None
        Class labels in the order of the logits. By default they are found in y.
    cost_unit : str, default=None
        Unit of `costs`: ``"FLOPs"``, ``"MACs"``, ``"ms"`` or any other name.

    Returns
    -------
    X : ExitArray of shape (n_samples, n_columns)
        In memory, with its layout.

    Raises
    ------
    ValueError
        If there are neither logits nor features, or the arrays do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from skexit import stack_exits
    >>> logits = np.zeros((5, 3, 10))  # five samples, three exits, ten classes
    >>> stack_exits(logits, costs=[1e6, 3e6, 9e6], cost_unit="FLOPs")
    ExitArray(5 rows, 30 columns, 3 exits, float64)

    A frozen network has logits at its last exit only:

    >>> X = stack_exits([None, np.zeros((5, 10))], [np.ones((5, 4)), np.ones((5, 8))])
    >>> X.layout.n_logits, X.layout.n_features
    ((0, 10), (4, 8))
    """
    logit_blocks = _split_exits(logits, "logits")
    feature_blocks = _split_exits(features, "features")
    n_exits = max(len(logit_blocks), len(feature_blocks))
    logit_blocks = logit_blocks or [None] * n_exits
    feature_blocks = feature_blocks or [None] * n_exits
    if n_exits == 0:
        raise ValueError("stack_exits needs logits, features, or both.")
    if len(logit_blocks) != len(feature_blocks):
        raise ValueError(
            f"logits has {len(logit_blocks)} exits and features {len(feature_blocks)}; put None where an exit has none."
        )
    blocks = [block for pair in zip(logit_blocks, feature_blocks, strict=True) for block in pair]
    lengths = {len(block) for block in blocks if block is not None}
    if len(lengths) > 1:
        raise ValueError(f"the arrays have different numbers of rows: {sorted(lengths)}.")
    layout = ExitLayout(
        n_logits=[0 if block is None else block.shape[1] for block in logit_blocks],
        n_features=[0 if block is None else block.shape[1] for block in feature_blocks],
        costs=costs,
        cost_unit=cost_unit,
        classes=classes,
    )
    array = np.concatenate([block for block in blocks if block is not None], axis=1)
    return ExitArray(ArraySource(np.ascontiguousarray(array)), layout)


def _split_exits(blocks: Any, name: str) -> list[NDArray[Any] | None]:
    if blocks is None:
        return []
    if not isinstance(blocks, list | tuple):
        blocks = np.asarray(blocks)
        if blocks.ndim != 3:
            width = "n_classes" if name == "logits" else "n_features"
            raise ValueError(
                f"{name} has shape {blocks.shape}; pass (n_samples, n_exits, {width}), or a list of arrays, one per "
                "exit."
            )
        blocks = list(np.moveaxis(blocks, 1, 0))
    return [_as_block(block, name, k) for k, block in enumerate(blocks)]


def _as_block(block: Any, name: str, k: int) -> NDArray[Any] | None:
    if block is None:
        return None
    array = np.asarray(block)
    if array.ndim != 2:
        raise ValueError(f"{name}[{k}] has shape {array.shape}; it must be (n_samples, width).")
    if array.dtype.kind in "fiub":
        return array if array.dtype.kind == "f" else array.astype(np.float64)
    raise ValueError(f"{name}[{k}] has dtype {array.dtype}; it must be numeric.")
