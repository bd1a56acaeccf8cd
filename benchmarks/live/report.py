"""Tables and a figure of what ``side_by_side.py`` measured.

    python -m benchmarks.live.report MEASUREMENTS.csv --out docs/benchmarks/live

Writes a table for each network, ``NETWORK.csv``: time over the plain network's, and over the ideal in brackets, by
runtime, method and batch size. ``times.png`` shows the first network's times.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

PLOTTED = ["static", "maximum probability", "EENet", "EM", "JEI", "optimal stopping", "recommended", "empty decisions"]
MARKERS = "sovD^Pp*"


def tabulate(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each runtime and method, one column for each batch size."""
    order = {method: i for i, method in enumerate(rows["method"].unique())}
    table = rows.assign(cell=[_cell(*pair) for pair in zip(rows["time / plain"], rows["time / ideal"], strict=True)])
    table["order"] = table["method"].map(order)
    index = ["runtime", "order", "method"]
    cells = table.pivot_table(index=index, columns="batch size", values="cell", aggfunc="first", fill_value="")
    accuracy = table.groupby(index)["accuracy"].first().map(lambda value: "" if np.isnan(value) else f"{value:.3f}")
    cells.insert(0, "accuracy", accuracy)
    cells = cells.reset_index().drop(columns="order")
    in_ms = rows[rows["method"] == "plain"].set_index(["runtime", "batch size"])["ms"]
    for i in cells.index[cells["method"] == "plain"]:
        cells.loc[i, "method"] = "plain, in ms"
        for size in cells.columns[3:]:
            cells.loc[i, size] = f"{in_ms[cells.loc[i, 'runtime'], size]:.3g}"
    return cells.sort_values("runtime", ascending=False, kind="stable")


def _cell(over_plain: float, over_ideal: float) -> str:
    return f"{over_plain:.2f}" + ("" if np.isnan(over_ideal) else f" ({over_ideal:.2f})")


def draw(rows: pd.DataFrame, path: Path) -> None:
    figure, axes = plt.subplots(2, 1, figsize=(4.6, 7), sharex=True, sharey=True, layout="constrained")
    for axis, runtime in zip(axes, ["torch", "onnxruntime"], strict=True):
        for method, marker in zip(PLOTTED, MARKERS, strict=True):
            own = rows[(rows["method"] == method) & (rows["runtime"] == runtime)]
            style = {"color": "0.4", "linestyle": "--"} if method in ("static", "empty decisions") else {}
            axis.plot(own["batch size"], own["time / plain"], marker=marker, label=method, **style)
        axis.axhline(1, color="black", linewidth=1)
        axis.set(xscale="log", ylabel="time / plain network's")
        axis.set_title(runtime, fontsize="medium")
        axis.set_xticks(sorted(rows["batch size"].unique()), sorted(rows["batch size"].unique()))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("batch size")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=170)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    measured = pd.read_csv(arguments.measurements)
    for network, rows in measured.groupby("network", sort=False):
        tabulate(rows).to_csv(arguments.out / f"{network}.csv", index=False)
    draw(measured[measured["network"] == measured["network"].iloc[0]], arguments.out / "times.png")


if __name__ == "__main__":
    main()
