"""Logits of the plain network, if X has them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data._arrays import ExitArray
from skexit.data._sorted_classes import sort_classes
from skexit.data._validation import read_logits


def network_logits(X: Any) -> NDArray[np.float64] | None:
    """Logits of the network without exits, by sorted classes: those of a last exit without added heads.

    Returns None if X has no layout, or the last exit is not the end of the network.
    """
    if not (isinstance(X, ExitArray) or hasattr(X, "columns")):
        return None
    X = sort_classes(ExitArray.from_array(X))
    layout, last = X.layout, X.layout.n_exits - 1
    if not layout.has_logits(last) or layout.head_costs[last] or not np.isclose(layout.cost_fractions[last], 1):
        return None
    return read_logits(X, last)
