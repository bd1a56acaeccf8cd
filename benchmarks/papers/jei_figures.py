"""Figures 2 to 5 of the JEI-DNN paper, drawn from what ``jei_paper.py`` measured."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.legend import Legend

from benchmarks.shared.intervals import draw_line, new_axes, save

#: Of the baseline, points at every second of its budgets are enough for a line.
STYLES = {
    "maximum probability": {"color": "black", "marker": "s"},
    "maximum probability, shared threshold": {"color": "#777777", "marker": "x"},
    "BoostedNet": {"color": "#E69F00", "marker": "<"},
    "L2W": {"color": "#CC79A7", "marker": ">"},
    "JEI-DNN": {"color": "#0072B2", "marker": "o"},
    "JEI-DNN, the paper's": {"color": "#D55E00", "marker": "^"},
    "optimal stopping": {"color": "#009E73", "marker": "D"},
    "recommended pipeline": {"color": "#56B4E9", "marker": "P"},
}
SHORT = {
    "maximum probability, shared threshold": "shared threshold",
    "JEI-DNN, the paper's": "JEI-DNN, the paper's (λ)",
}
DECOMPOSED = ("maximum probability", "JEI-DNN", "JEI-DNN, the paper's", "optimal stopping")
COST = "mean cost / cost of the network"
BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NEAR = 0.6


def draw(results: pd.DataFrame, exits: pd.DataFrame, folder: Path, data: str) -> None:
    """`results` has a row a method, setting and split, `exits` also an exit."""
    of_curves = results[results["setting"].isin(BUDGETS) | (results["method"] == "JEI-DNN, the paper's")]
    labels = {"accuracy": "accuracy", "ECE": "calibration error", "gated size": "classes in a set"}
    for column, label in labels.items():
        ax = new_axes(COST, label)
        for name, style in STYLES.items():
            rows = of_curves[of_curves["method"] == name]
            draw_line(ax, rows, "setting", "cost", column, label=SHORT.get(name, name), **style)
        add_legend(ax)
        save(ax, folder / f"{data}-{column.replace(' ', '-').lower()}.png")
    draw_decomposition(exits, results, folder / f"{data}-exits.png")
    draw_calibration(exits, folder / f"{data}-modules.png")


def draw_decomposition(exits: pd.DataFrame, results: pd.DataFrame, path: Path) -> None:
    """Accuracy on the samples that leave at an exit, by the size of the dot how many, and on all (Figure 3)."""
    ax = new_axes("exit", "accuracy")
    for name in DECOMPOSED:
        setting = nearest_setting(results[results["method"] == name]) if name.endswith("paper's") else NEAR
        rows = exits[(exits["method"] == name) & (exits["setting"] == setting)].groupby("exit")
        means, color = rows[["share", "accuracy_leaving", "accuracy_all"]].mean(), STYLES[name]["color"]
        used = means[means["share"] > 0]
        ax.plot(means["accuracy_all"], color=color, linewidth=0.8, linestyle=":")
        ax.plot(used["accuracy_leaving"], color=color, linewidth=1)
        label = f"{name}, λ = {setting:g}" if setting != NEAR else f"{name}, {NEAR:g}"
        ax.scatter(used.index, used["accuracy_leaving"], 400 * used["share"], color=color, alpha=0.7, label=label)
    for handle in add_legend(ax).legend_handles:
        handle.set_sizes([40])
    save(ax, path)


def nearest_setting(results: pd.DataFrame) -> float:
    """The setting whose mean cost is nearest to 0.6."""
    return float((results.groupby("setting")["cost"].mean() - NEAR).abs().idxmin())


def draw_calibration(exits: pd.DataFrame, path: Path) -> None:
    """Calibration error of each module on all samples, before and after a temperature (Figure 4)."""
    ax = new_axes("exit", "calibration error on all samples")
    for name in ("maximum probability", "BoostedNet", "L2W", "JEI-DNN, the paper's"):
        rows = exits[
            (exits["method"] == name) & (exits["setting"] == exits.loc[exits["method"] == name, "setting"].min())
        ]
        style = STYLES[name] | {"label": {"maximum probability": "separate heads"}.get(name, name)}
        draw_line(ax, rows, "exit", "exit", "ECE", **style)
        draw_line(ax, rows, "exit", "exit", "ECE, scaled", **(style | {"label": None}), linestyle=":")
    ax.set_ylim(bottom=0)
    ax.xaxis.get_major_locator().set_params(integer=True)
    add_legend(ax)
    save(ax, path)


def add_legend(ax: Axes) -> Legend:
    """Above the axes, where it hides nothing."""
    return ax.figure.legend(loc="outside upper center", frameon=False, fontsize=8.5, ncols=2)
