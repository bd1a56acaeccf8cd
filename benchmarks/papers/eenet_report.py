"""Tables of the documentation from the results of ``eenet_tables.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.shared.intervals import half_width, percent

BASELINES = ["BranchyNet", "MSDNet", "PABEE"]

#: Accuracy in % of these and of EENet at three budgets in the paper's Table 1, from low to high.
PAPER = {
    "CIFAR-10": [(87.55, 88.76, 84.39, 88.90), (92.57, 92.79, 91.85, 92.90), (93.76, 93.81, 93.69, 93.84)],
    "CIFAR-100": [(68.13, 68.70, 61.13, 70.15), (71.65, 71.99, 68.10, 72.75), (73.96, 74.01, 73.68, 74.08)],
    "SST-2": [(84.33, 84.30, 80.99, 90.45), (87.66, 87.71, 86.99, 91.45), (90.86, 91.00, 90.75, 92.07)],
    "AG News": [(75.08, 73.07, 74.67, 90.63), (85.58, 84.93, 85.22, 93.75), (92.95, 92.98, 92.57, 93.84)],
}


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Means over the splits, and the paired difference to the best baseline with half its 95 % interval."""
    keys = ["setting", "unit", "budget"]
    rows = []
    for group, part in results.groupby(keys, sort=False):
        accuracy = part.pivot(index="split", columns="policy", values="accuracy")
        best = accuracy[BASELINES].mean().idxmax()
        for policy in part["policy"].unique():
            gain = accuracy[policy] - accuracy[best]
            cost = part.loc[part["policy"] == policy, "cost"].mean()
            rows.append([*group, policy, accuracy[policy].mean(), cost, best, gain.mean(), half_width(gain)])
    columns = [*keys, "policy", "accuracy", "cost", "best baseline", "gain", "half width"]
    return pd.DataFrame(rows, columns=columns)


def table_1(summary: pd.DataFrame, unit: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracies in %, the best baseline in bold, and gains over it in points; one row per budget."""
    accuracies, gains = [], []
    of_unit = summary[summary["unit"] == unit]
    for (setting, budget), part in of_unit.groupby(["setting", "budget"], sort=False):
        part = part.set_index("policy")
        best = part["best baseline"].iloc[0]
        row = {"data": setting, "budget": percent(budget)}
        written = {policy: f"{100 * accuracy:.2f}" for policy, accuracy in part["accuracy"].items()}
        accuracies.append(row | written | {best: f"**{written[best]}**"})
        others = part.drop(BASELINES)
        gained = zip(100 * others["gain"], 100 * others["half width"], strict=True)
        cells = [f"{gain:+.2f} ± {error:.2f}" for gain, error in gained]
        gains.append(row | {"over": best} | dict(zip(others.index, cells, strict=True)))
    return pd.DataFrame(accuracies), pd.DataFrame(gains)


def table_of_costs(summary: pd.DataFrame, unit: str) -> pd.DataFrame:
    """What each policy spends on new rows, in % of the network's cost."""
    of_unit = summary[summary["unit"] == unit]
    table = of_unit.pivot(index=["setting", "budget"], columns="policy", values="cost")
    table = table.loc[of_unit[["setting", "budget"]].drop_duplicates().apply(tuple, axis=1), of_unit["policy"].unique()]
    table = (100 * table).map("{:.1f}".format).reset_index().rename(columns={"setting": "data"})
    table["budget"] = table["budget"].map(percent)
    return table


def beside_paper(summary: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The paper's Table 1 and ours: the best baseline, EENet, and its gain in points."""
    rows = []
    of_unit = summary[summary["unit"] == unit]
    for setting, part in of_unit.groupby("setting", sort=False):
        for published, (budget, ours) in zip(PAPER[setting], part.groupby("budget"), strict=True):
            *baselines, eenet = published
            ours = ours.set_index("policy")
            best, found = ours["best baseline"].iloc[0], ours.loc["EENet"]
            gain, error = 100 * found["gain"], 100 * found["half width"]
            rows.append(
                {
                    "data": setting,
                    "budget": percent(budget),
                    "paper: best baseline": f"{max(baselines):.2f}",
                    "paper: EENet": f"{eenet:.2f}",
                    "paper: gain": f"{eenet - max(baselines):+.2f}",
                    "ours: best baseline": f"{100 * ours.loc[best, 'accuracy']:.2f}",
                    "ours: EENet": f"{100 * found['accuracy']:.2f}",
                    "ours: gain": f"{gain:+.2f} ± {error:.2f}",
                }
            )
    return pd.DataFrame(rows)


def table_2(counts: pd.DataFrame) -> pd.DataFrame:
    """Millions of parameters and FLOPs until each exit, and thousands that heads and EENet add."""
    table = counts[["setting", "exit"]].rename(columns={"setting": "data"})
    for column, label, unit in [
        ("parameters", "parameters (M)", 1e6),
        ("heads' parameters", "heads (K)", 1e3),
        ("EENet's parameters", "EENet (K)", 1e3),
        ("FLOPs", "FLOPs (M)", 1e6),
        ("heads' FLOPs", "heads (KFLOPs)", 1e3),
        ("EENet's FLOPs", "EENet (KFLOPs)", 1e3),
    ]:
        table[label] = (counts[column] / unit).map("{:.2f}".format)
    return table


def table_of_exits(exits: pd.DataFrame, latency: pd.DataFrame | None) -> pd.DataFrame:
    """Accuracy of each exit in %, and milliseconds of the network without early exits."""
    table = 100 * exits.pivot_table(index="setting", columns="exit", values="accuracy", sort=False)
    table.columns = [f"exit {number}" for number in table.columns]
    table = table.map(lambda accuracy: "" if np.isnan(accuracy) else f"{accuracy:.2f}")
    if latency is not None:
        table["network, ms"] = latency.groupby("setting")["plain ms"].first().round(2)
    return table.reset_index().rename(columns={"setting": "data"})


def write_tables(
    out: Path, results: pd.DataFrame, exits: pd.DataFrame, counts: pd.DataFrame, latency: pd.DataFrame | None
) -> None:
    summary = summarize(results)
    tables = {"table_2": table_2(counts), "table_of_exits": table_of_exits(exits, latency)}
    for unit in results["unit"].unique():
        accuracies, gains = table_1(summary, unit)
        tables |= {
            f"accuracy_{unit.lower()}": accuracies,
            f"gain_{unit.lower()}": gains,
            f"cost_{unit.lower()}": table_of_costs(summary, unit),
            f"paper_{unit.lower()}": beside_paper(summary, unit),
        }
    for name, table in tables.items():
        # Names that do not break in narrow columns.
        table["data"] = table["data"].str.replace(" ", "\N{NO-BREAK SPACE}").str.replace("-", "\N{NON-BREAKING HYPHEN}")
        table.to_csv(out / f"{name}.csv", index=False)
