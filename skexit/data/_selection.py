"""Some of the exits of X, as if the network had no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.data._layout import ExitLayout
from skexit.data._sources import ColumnSource


def layout_of_exits(layout: ExitLayout, exits: Sequence[int] | NDArray[np.intp]) -> ExitLayout:
    """The layout of some of the exits, in rising order. Costs are without the heads of the others.

    >>> layout = ExitLayout([2, 2, 2], costs=[11, 32, 53], cost_unit="MACs", head_costs=[1, 2, 3])
    >>> layout_of_exits(layout, [0, 2]).costs
    array([11., 52.])
    """
    own_head_costs = np.diff(layout.head_costs, prepend=0.0)
    selected = np.asarray(exits)
    head_costs = np.cumsum(own_head_costs[selected])
    return layout.replace(
        n_logits=[layout.n_logits[k] for k in selected],
        n_features=[layout.n_features[k] for k in selected],
        costs=(layout.costs - layout.head_costs)[selected] + head_costs,
        head_costs=head_costs,
        network_cost=layout.network_cost,
        feature_maps=[layout.feature_maps[k] for k in selected],
        exit_names=None if layout.exit_names is None else [layout.exit_names[k] for k in selected],
        pools=None if layout.pools is None else [layout.pools[k] for k in selected],
    )


def check_selected_exits(exits: Any, n_exits: int) -> NDArray[np.intp]:
    """Exits that are selected, checked to exist and to rise."""
    selected = np.asarray(exits)
    if selected.dtype == bool and selected.shape == (n_exits,) and selected.any():
        raise ValueError(f"exits={exits!r} is a mask; pass the exits themselves, {np.flatnonzero(selected).tolist()}.")
    if selected.ndim != 1 or len(selected) == 0 or selected.dtype.kind not in "iu":
        raise ValueError(f"exits={exits!r} must be a list of exits, such as [0, {n_exits - 1}].")
    if selected.min() < 0 or selected.max() >= n_exits:
        raise ValueError(
            f"exits={selected.tolist()} must be from 0 to {n_exits - 1}: X has {n_exits} exits, counted from 0."
        )
    if (np.diff(selected) <= 0).any():
        raise ValueError(f"exits={selected.tolist()} must rise; pass {np.unique(selected).tolist()}.")
    return selected.astype(np.intp)


class SelectedExits:
    """The columns of some exits of another source, whose layout is `layout`."""

    def __init__(self, source: ColumnSource, layout: ExitLayout, exits: NDArray[np.intp]) -> None:
        self.source, self.layout, self.exits = source, layout, exits
        self.n_rows, self.dtype = source.n_rows, source.dtype

    @property
    def stored_dtype(self) -> np.dtype:
        """Type in which the other source has stored the values."""
        return getattr(self.source, "stored_dtype", self.dtype)

    @property
    def saves_unread_rows(self) -> bool:
        """Whether the other source runs models for the rows that are read."""
        return getattr(self.source, "saves_unread_rows", False)

    def read(self, layout: ExitLayout, k: int, part: str, rows: Any) -> NDArray[Any]:
        return self.source.read(self.layout, int(self.exits[k]), part, rows)
