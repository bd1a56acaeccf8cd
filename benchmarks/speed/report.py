"""Tables and a figure of what the speed suite has measured.

    python -m benchmarks.speed.report RESULT.json [RESULT.json ...] --out FOLDER

Several results are parts of one run, of which later ones replace what earlier ones have measured of the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.speed.cases import AXES, BASE, ESTIMATORS

LARGEST = AXES["rows"][-1]
REFERENCE = "LogisticRegression"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    measured = read(options.results)
    options.out.mkdir(parents=True, exist_ok=True)
    tables = {
        "ratios": ratios(measured),
        "exponents": exponents(measured),
        "memory": memory(measured),
        "other": other(measured),
    }
    for name, table in tables.items():
        print(f"{name}\n{table.to_string(index=False)}\n")
        table.to_csv(options.out / f"{name}.csv", index=False)
    measured.to_csv(options.out / "measurements.csv", index=False, float_format="%.6g")
    draw(measured).savefig(options.out / "growth.png", dpi=110)


def read(files: list[Path]) -> pd.DataFrame:
    """One row a measurement, its median time in seconds."""
    rows: list[dict[str, Any]] = []
    for file in files:
        for result in json.loads(file.read_text())["benchmarks"]:
            rows.append({**result["extra_info"], "seconds": result["stats"]["median"]})
    keys = ["what", "name", *BASE._fields]
    return pd.DataFrame(rows).drop_duplicates(keys, keep="last").sort_values(keys, ignore_index=True)


def at(measured: pd.DataFrame, what: str, size: Any = None) -> pd.DataFrame:
    """What was measured of one kind, at one size, by name."""
    chosen = measured[measured["what"] == what]
    for field, value in {} if size is None else size._asdict().items():
        chosen = chosen[chosen[field] == value]
    return chosen.set_index("name")


def ratios(measured: pd.DataFrame) -> pd.DataFrame:
    """At the most rows: seconds, and how many times what scikit-learn, or reading X once, takes."""
    fit, predict = (at(measured, what, LARGEST)["seconds"].reindex(list(ESTIMATORS)) for what in ("fit", "predict"))
    reading = at(measured, "read", LARGEST)["seconds"].item()
    table = {
        "fit, s": fit.round(3),
        "fit / LogisticRegression.fit": fit / fit[REFERENCE],
        "predict, ms": (1000 * predict).round(1),
        "predict / LogisticRegression.predict": predict / predict[REFERENCE],
        "predict / reading X": predict / reading,
    }
    return pd.DataFrame(table).round(3).rename_axis("estimator").reset_index()


def exponents(measured: pd.DataFrame) -> pd.DataFrame:
    """Slopes of the logarithm of the time over that of each size; of rows, from BASE on."""
    columns = {}
    for what in ("fit", "predict"):
        for axis, sizes in AXES.items():
            counted = [size for size in sizes if axis != "rows" or size.rows >= BASE.rows]
            seconds = pd.DataFrame({getattr(size, axis): at(measured, what, size)["seconds"] for size in counted})
            slopes = np.polyfit(np.log(seconds.columns.astype(float)), np.log(seconds.to_numpy().T), 1)[0]
            columns[f"{what}, {axis}"] = pd.Series(slopes, seconds.index).reindex(list(ESTIMATORS)).round(2)
    return pd.DataFrame(columns).rename_axis("estimator").reset_index()


def memory(measured: pd.DataFrame) -> pd.DataFrame:
    """At the most rows and the most classes: growth at the peak, as a multiple of X."""
    columns = {}
    for what in ("fit", "predict"):
        for axis in ("rows", "classes"):
            size = AXES[axis][-1]
            found = at(measured, what, size).reindex(list(ESTIMATORS))
            columns[f"{what}, {getattr(size, axis):,} {axis}"] = (found["MiB"] / found["MiB of X"]).round(2)
    return pd.DataFrame(columns).rename_axis("estimator").reset_index()


def other(measured: pd.DataFrame) -> pd.DataFrame:
    """The import over scikit-learn's, and an extraction over a bare forward loop."""
    seconds = at(measured, "import")["seconds"]
    extraction = at(measured, "extraction").iloc[0]
    rows = [
        {
            "what": f"import {name}" if name != "nothing" else "start of Python",
            "s": value,
            "ratio": value / seconds["sklearn"],
        }
        for name, value in seconds.sort_values().items()
    ]
    rows.append({"what": "bare forward loop", "s": extraction["bare"], "ratio": 1.0})
    rows.append({"what": "extraction", "s": extraction["seconds"], "ratio": extraction["seconds"] / extraction["bare"]})
    return pd.DataFrame(rows).round({"s": 2, "ratio": 3})


def draw(measured: pd.DataFrame) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10), layout="constrained")
    panels = figure.subplots(3, len(AXES), sharey="row", squeeze=False)
    kinds = [("fit", "seconds", "fit, s"), ("predict", "seconds", "predict, s"), ("fit", "MiB", "memory of fit, MiB")]
    for row, (what, value, label) in zip(panels, kinds, strict=True):
        for axes, (axis, sizes) in zip(row, AXES.items(), strict=True):
            table = pd.DataFrame({getattr(size, axis): at(measured, what, size)[value] for size in sizes})
            for number, name in enumerate(ESTIMATORS):
                color, line = ("black", "o--") if name == REFERENCE else (f"C{number}", "o-")
                axes.plot(table.columns, table.loc[name], line, ms=4, label=name, color=color)
            fixed = ", ".join(f"{getattr(BASE, other):,} {other}" for other in AXES if other != axis)
            axes.set(xscale="log", yscale="log", xlabel=f"{axis} ({fixed})")
            axes.set_xticks(table.columns, [f"{number:,}" for number in table.columns])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        row[0].set_ylabel(label)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    main()
