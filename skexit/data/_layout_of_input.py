"""The layout of an X that a user passes: its own, that of its column names, or a default."""

from __future__ import annotations

from typing import Any

import numpy as np

from skexit.data._layout import ExitLayout
from skexit.exceptions import LayoutLostWarning
from skexit.utils._warnings import warn

#: Key under which :meth:`skexit.ExitArray.to_frame` stores the layout in ``DataFrame.attrs``.
FRAME_ATTRIBUTE = "skexit_layout"

#: Key in it for the part of the layout that is a default, not given by X.
_GUESSED = "guessed"


def resolve_layout(layout: ExitLayout | int | None, X: Any, n_columns: int) -> ExitLayout:
    """Find the layout of `X`: `layout`, else ``X.layout``, else column names, else one exit.

    `X` is what the user passed, before it became an array. An int splits the columns evenly into that many exits. A
    ValueError says if the layout does not have `n_columns` columns.
    """
    layout = own_layout(X) if layout is None else layout
    if layout is None:
        return ExitLayout.even(n_columns, 1)._as_guess("exits")
    if isinstance(layout, int | np.integer) and not isinstance(layout, bool):
        return ExitLayout.even(n_columns, int(layout))
    if not isinstance(layout, ExitLayout):
        raise ValueError(
            f"layout={layout!r} is neither an ExitLayout nor a number of exits; pass one of them, or None."
        )
    if layout.n_columns != n_columns:
        knows = isinstance(getattr(X, "layout", None), ExitLayout)
        cure = "Leave layout=None, to go by X." if knows else "Pass the layout of the ExitArray that X was made from."
        raise ValueError(f"layout describes {layout.n_columns} columns but X has {n_columns}. {cure}")
    return layout


def own_layout(X: Any) -> ExitLayout | None:
    """The layout that X itself knows, None for a plain array."""
    if hasattr(X, "columns"):
        return _layout_of_frame(X)
    own = getattr(X, "layout", None)  # a torch tensor has a layout of another kind
    return own if isinstance(own, ExitLayout) else None


def _layout_of_frame(frame: Any) -> ExitLayout | None:
    layout = ExitLayout.from_column_names(list(frame.columns))
    if layout is None:
        return None
    stored = getattr(frame, "attrs", {}).get(FRAME_ATTRIBUTE)
    if stored is None:
        return layout._as_guess("costs")
    guessed = stored.get(_GUESSED)
    stored = ExitLayout.from_dict({name: value for name, value in stored.items() if name != _GUESSED})
    if (stored.n_logits, stored.n_features) != (layout.n_logits, layout.n_features):
        raise ValueError(
            "the columns of the DataFrame are not those of the layout kept in its attrs. Delete that, by "
            f"del X.attrs[{FRAME_ATTRIBUTE!r}], or pass layout= to the estimator that is fitted."
        )
    return stored._as_guess(guessed)


def attributes_of_frame(layout: ExitLayout) -> dict[str, Any]:
    """The entry of a layout in ``DataFrame.attrs``."""
    guessed = {} if layout._guessed is None else {_GUESSED: layout._guessed}
    return {FRAME_ATTRIBUTE: layout.to_dict() | guessed}


def warn_of_default_costs(layout: ExitLayout) -> ExitLayout:
    """Warn if a DataFrame names its exits but has no costs and classes; returns the layout with the defaults."""
    if layout._guessed != "costs":
        return layout
    logits = "" if layout.n_classes is None else ", and logits are read in the order of the sorted classes"
    warn(
        LayoutLostWarning(
            "the columns of the DataFrame name its exits, but its attrs, where to_frame() stores costs and classes, "
            f"are empty: files and many operations lose them. Costs are now {layout.costs.round(4).tolist()}{logits}. "
            "Save X.layout.to_dict() beside the file, as JSON; then pass layout=ExitLayout.from_dict(...), or "
            "ExitArray.from_frame(frame, layout)."
        )
    )
    return layout._as_guess(None)
