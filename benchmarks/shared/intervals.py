"""Means over splits with their 95 % intervals, gains at the same cost, and how both are written and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def half_width(groups: Any) -> Any:
    """Half the 95 % t-interval of the mean of each group of a pandas groupby."""
    n_values = groups.count()
    return stats.t.ppf(0.975, n_values - 1) * groups.std() / np.sqrt(n_values)


def gain_at_same_cost(results: pd.DataFrame, baseline: str, column: str = "accuracy") -> pd.Series:
    """What each row has more of `column` than the baseline, on its split, at its cost on new rows.

    Between the costs of the baseline lines are drawn; beyond them its first and last value hold.
    """
    gains = []
    for _, rows in results.groupby("split"):
        points = rows[rows["method"] == baseline].sort_values("cost")
        gains.append(rows[column] - np.interp(rows["cost"], points["cost"], points[column]))
    return pd.concat(gains).reindex(results.index)


def write(groups: Any, digits: int = 4) -> Any:
    """Mean and half its 95 % interval of each group, as text: ``0.9314 ± 0.0012``."""
    mean, error = groups.mean(), half_width(groups)
    if isinstance(mean, pd.DataFrame):
        return pd.DataFrame({name: with_error(mean[name], error[name], digits) for name in mean})
    return with_error(mean, error, digits)


def with_error(mean: pd.Series, error: pd.Series, digits: int) -> pd.Series:
    """Means and halves of their intervals as text, empty for means that are missing."""
    pairs = zip(mean, error, strict=True)
    return pd.Series(["" if np.isnan(m) else f"{m:.{digits}f} ± {e:.{digits}f}" for m, e in pairs], index=mean.index)


def percent(share: float, digits: int = 0) -> str:
    """A share in %, such as ``93.4 %``."""
    return f"{100 * share:.{digits}f} %"


def new_axes(xlabel: str, ylabel: str) -> Axes:
    """Axes of a figure that can be read at 350 pixels, and on a dark page as it has its own ground."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.grid": True, "grid.alpha": 0.3})
    ax = plt.subplots(figsize=(5.2, 4.0), layout="constrained")[1]
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def draw_line(ax: Axes, rows: pd.DataFrame, by: str, x: str, y: str, **style: Any) -> None:
    """Mean of `y` against mean of `x` of each group of rows, with the 95 % interval of `y`."""
    groups = rows.groupby(by)[[x, y]]
    mean, error = groups.mean(), half_width(groups)[y]
    order = np.argsort(mean[x].to_numpy())
    mean, error = mean.iloc[order], error.iloc[order]
    ax.errorbar(mean[x], mean[y], error, capsize=2, markersize=4.5, linewidth=1.3, **style)


def save(ax: Axes, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    ax.figure.savefig(path, dpi=150)
    plt.close(ax.figure)
