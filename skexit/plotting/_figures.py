"""What the displays share: colours, axes and labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skexit.utils._optional import import_pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours of Okabe and Ito, which are distinct for colour-blind readers; without yellow, which is too light for lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


def line_styles() -> Iterator[tuple[str, str]]:
    """Colour and marker of one line after another. A pair is repeated after 70 lines."""
    return zip(cycle(COLORS), cycle(_MARKERS), strict=False)


def exit_colors(n_exits: int) -> NDArray[np.float64]:
    """One colour (red, green, blue, opacity) per exit, from light for the first to dark for the last."""
    positions = np.linspace(0.95, 0.1, n_exits) if n_exits > 1 else np.array([0.5])
    return np.asarray(import_pyplot().get_cmap("cividis")(positions))


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The given axes, or those of a new figure of this size in inches."""
    plt = import_pyplot()
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def axes_of_exits(
    axes: Sequence[Axes] | None, n_exits: int, *, n_columns: int, width: float, height: float
) -> NDArray[Any]:
    """The given axes, one per exit, or those of a new figure with `n_columns` small pictures in a row.

    `width` is the width of the figure, and `height` the height of a row, in inches.
    """
    if axes is not None:
        given = np.asarray(axes, dtype=object).ravel()
        if len(given) != n_exits:
            raise ValueError(f"axes has {len(given)} Axes, but there are {n_exits} exits; give one per exit.")
        return given
    n_columns = min(n_columns, n_exits)
    n_rows = -(-n_exits // n_columns)
    plt = import_pyplot()
    _, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(width, height * n_rows),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for unused in grid.ravel()[n_exits:]:
        unused.remove()
    # The last picture of each column shows the x axis, also if the last row has no picture in this column.
    for ax in grid.ravel()[max(n_exits - n_columns, 0) : n_exits]:
        ax.tick_params(labelbottom=True)
    return grid.ravel()[:n_exits]


def label_exits(axes: NDArray[Any], xlabel: str, ylabel: str, handles: Sequence[Any], *, own_figure: bool) -> None:
    """Label the axes and show a legend: for the whole figure if it is new, else for the given axes."""
    if own_figure:
        figure = axes[0].figure
        figure.supxlabel(xlabel, fontsize="medium")
        figure.supylabel(ylabel, fontsize="medium")
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small", frameon=False)
    else:
        for ax in axes:
            ax.set(xlabel=xlabel, ylabel=ylabel)
        axes[0].legend(handles=handles, fontsize="small")


def label_lines(ax: Axes, lines: Iterable[Any]) -> None:
    """Write the name of each line beside it, at the point where it is farthest from the other lines."""
    curves = [(line, np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in lines]
    for line, x, y in curves:
        others = [np.interp(x, other_x, other_y) for other, other_x, other_y in curves if other is not line]
        gaps = y - np.array(others) if others else np.ones((1, len(y)))
        nearest = np.abs(gaps).min(axis=0)
        point = int(nearest.argmax())
        above = bool(gaps[np.abs(gaps[:, point]).argmin(), point] > 0)
        on_the_left = x[point] <= np.mean(ax.get_xlim())
        ax.annotate(
            line.get_label(),
            (x[point], y[point]),
            (2 if above else 10 if on_the_left else -10, 8 if above else -3),
            textcoords="offset points",
            ha="left" if on_the_left else "right",
            va="bottom" if above else "center",
            color=line.get_color(),
        )


def label_level(ax: Axes, line: Any) -> None:
    """Write the name of a horizontal line above its right end."""
    level = line.get_ydata()[0]
    ax.annotate(
        line.get_label(), (1, level), (-4, 3), xycoords=ax.get_yaxis_transform(), textcoords="offset points", ha="right"
    )
