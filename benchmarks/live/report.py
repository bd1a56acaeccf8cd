"""Tables and a figure of what ``side_by_side.py`` measured.

    python -m benchmarks.live.report MEASUREMENTS.csv --out docs/benchmarks/live

Writes a table for each network, ``NETWORK.csv``: for each method its accuracy, and by runtime and batch size its time
over the plain network's, and over the ideal in brackets. ``times.png`` shows the first network's times.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

FLOOR = "floor (no decisions)"
PLOTTED = [
    *("static", "maximum probability", "EENet", "EM", "JEI", "optimal stopping", "recommended"),
    *("recommended, fitted for ms", FLOOR),
]
MARKERS = "sovD^PpX*"
#: Lines of what is not a policy; the others have the colours of matplotlib.
STYLES = {"static": {"color": "0.4", "linestyle": "--"}, FLOOR: {"color": "0.4", "linestyle": ":"}}
#: Names of the runtimes in columns, which must be narrow.
HEADINGS = {"torch": "torch", "onnxruntime": "ONNX"}


def tabulate(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per method, the floor last; accuracies, and a column for each runtime and batch size."""
    methods = [method for method in rows["method"].unique() if method != FLOOR] + [FLOOR]
    columns = [f"{HEADINGS[runtime]} {size}" for runtime, size in zip(rows["runtime"], rows["batch size"], strict=True)]
    cells = rows.assign(column=columns, cell=[_cell(row) for _, row in rows.iterrows()])
    table = cells.pivot_table(index="method", columns="column", values="cell", aggfunc="first")
    accuracies = rows.groupby("method")["accuracy"].agg(["min", "max"])
    table.insert(0, "accuracy (%)", [_range(*accuracies.loc[method]) for method in table.index])
    table = table.loc[methods, ["accuracy (%)", *dict.fromkeys(columns)]].fillna("")
    return table.rename(index={"plain": "plain, in ms"}).rename_axis(columns=None).reset_index()


def _range(lowest: float, highest: float) -> str:
    if np.isnan(lowest):
        return ""
    first, last = f"{100 * lowest:.0f}", f"{100 * highest:.0f}"
    return first if first == last else f"{first} to {last}"


def _cell(row: pd.Series) -> str:
    if row["method"] == "plain":
        return f"{row['ms']:.3g}" if row["ms"] < 100 else f"{row['ms']:,.0f}"
    over_ideal = row["time / ideal"]
    return f"{row['time / plain']:.2f}" + ("" if np.isnan(over_ideal) else f" ({over_ideal:.2f})")


def draw(rows: pd.DataFrame, path: Path) -> None:
    figure, axes = plt.subplots(2, 1, figsize=(4.6, 7), sharex=True, sharey=True, layout="constrained")
    for axis, runtime in zip(axes, ["torch", "onnxruntime"], strict=True):
        for method, marker in zip(PLOTTED, MARKERS, strict=True):
            own = rows[(rows["method"] == method) & (rows["runtime"] == runtime)]
            axis.plot(own["batch size"], own["time / plain"], marker=marker, label=method, **STYLES.get(method, {}))
        axis.axhline(1, color="black", linewidth=1)
        axis.set(xscale="log", ylabel="time / plain")
        axis.set_title(runtime, fontsize="medium")
        axis.set_xticks(sorted(rows["batch size"].unique()), sorted(rows["batch size"].unique()))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("batch size")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize="small"
    )
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
