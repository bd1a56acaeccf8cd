"""X from the arrays of each exit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from skexit.data._arrays import ExitArray
from skexit.data._blocks import Blocks, logit_blocks, logits_of_probabilities, split_exits
from skexit.data._layout import ExitLayout
from skexit.data._sources import ArraySource


def stack_exits(
    logits: ArrayLike | Sequence[ArrayLike | None] | None = None,
    features: ArrayLike | Sequence[ArrayLike | None] | None = None,
    *,
    probabilities: ArrayLike | Sequence[ArrayLike | None] | None = None,
    costs: ArrayLike | None = None,
    classes: ArrayLike | None = None,
    cost_unit: str | None = None,
) -> ExitArray:
    """Build X from the logits and features that each exit of a network gave.

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_exits, n_classes), or list of n_exits arrays of \
shape (n_samples, n_classes) or None, default=None
        Logits of each exit; in a list, None where an exit has none. A single column z, as of a binary
        network with a sigmoid, becomes ``[0, z]``. A logit of -inf, as of a class that is masked, becomes that
        of the probability 1e-30.
    features : list of n_exits arrays of shape (n_samples, n_features_k) or None, or array-like of \
shape (n_samples, n_exits, n_features), default=None
        Features of each exit; in a list, None where an exit has none, and arrays of shape (n_samples, n_channels,
        height, width) where they are maps.
    probabilities : as `logits`, default=None
        Class probabilities of exits that have no `logits`. Their logarithms become the logits; what is
        below 1e-12, as the zeros of a forest, counts as 1e-12. A single column p becomes ``[1 - p, p]``.
    costs : array-like of shape (n_exits,), default=None
        Cumulative cost of an answer at each exit, in `cost_unit`, strictly increasing. By default
        the fractions ``(k + 1) / n_exits``.
    classes : array-like of shape (n_classes,), default=None
        Class labels in the order of the logits. By default they are found in y: the integers from 0 on, or
        names in sorted order; numbers in names, as "10" and "2", must sort alike.
    cost_unit : str, default=None
        Unit of `costs`: ``"FLOPs"``, ``"MACs"``, ``"ms"`` or any other name.

    Returns
    -------
    X : ExitArray of shape (n_samples, n_columns)
        In memory, with its layout.

    Raises
    ------
    ValueError
        If there is nothing to stack, the arrays do not fit each other, or the probabilities of a row are
        negative or do not sum to 1.

    Warns
    -----
    UserWarning
        If all logits of an exit look like probabilities.

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
    blocks = {
        "logits": logit_blocks(logits),
        "probabilities": logits_of_probabilities(probabilities),
        "features": split_exits(features, "features"),
    }
    n_exits = _number_of_exits(blocks)
    of_logits, of_probabilities, features_or_maps = (part or [None] * n_exits for part in blocks.values())
    feature_maps = [
        (0, *block.shape[1:]) if block is not None and block.ndim == 4 else None for block in features_or_maps
    ]
    feature_blocks = [None if block is None else block.reshape(len(block), -1) for block in features_or_maps]
    both_given = [k for k in range(n_exits) if of_logits[k] is not None and of_probabilities[k] is not None]
    if both_given:
        raise ValueError(
            f"exit {both_given[0]} has logits and probabilities; pass one of them, and None for it in the other list."
        )
    all_logits = [of_probabilities[k] if of_logits[k] is None else of_logits[k] for k in range(n_exits)]
    columns = [block for pair in zip(all_logits, feature_blocks, strict=True) for block in pair if block is not None]
    lengths = {len(block) for block in columns}
    if len(lengths) > 1:
        raise ValueError(
            f"the arrays have different numbers of rows: {sorted(lengths)}. Give each exit the same rows, in one order."
        )
    layout = ExitLayout(
        n_logits=[0 if block is None else block.shape[1] for block in all_logits],
        n_features=[0 if block is None else block.shape[1] for block in feature_blocks],
        costs=costs,
        cost_unit=cost_unit,
        classes=classes,
        feature_maps=feature_maps,
    )
    return ExitArray(ArraySource(np.ascontiguousarray(np.concatenate(columns, axis=1))), layout)


def _number_of_exits(blocks: dict[str, Blocks]) -> int:
    counts = {name: len(part) for name, part in blocks.items() if part}
    if not counts:
        raise ValueError("there is nothing to stack; pass logits, probabilities or features.")
    (first, n_exits), *others = counts.items()
    for name, count in others:
        if count != n_exits:
            raise ValueError(
                f"{first} has {n_exits} exits and {name} {count}; pass lists, with None where an exit has none."
            )
    return n_exits
