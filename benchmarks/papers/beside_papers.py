"""Every result of the papers that our runs can be compared with, in one table.

    python -m benchmarks.papers.beside_papers --results docs/benchmarks

The folder has the results of ``eenet_tables.py``, ``eenet_figure.py`` and ``jei_paper.py`` in ``eenet`` and ``jei``;
``papers.csv`` is written beside them, of those that are there. Nothing is measured. Intervals are 95 % t-intervals
over five splits, of paired differences. The EM paper reports no results.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.papers.eenet_report import PAPER, summarize
from benchmarks.shared.intervals import gain_at_same_cost, half_width, percent

EENET_NETWORKS = {
    "CIFAR-10": "ResNet-56, 3 exits; trained together / frozen",
    "CIFAR-100": "DenseNet121 / EfficientNet-Lite0 of ImageNet, frozen; 4 exits",
    "SST-2": "BERT, 4 exits / MiniLM, 6 exits; fine-tuned",
    "AG News": "BERT, 4 exits / MiniLM, 6 exits; fine-tuned on fewer, shorter texts",
}
JEI_DATA = {
    "cifar10": ("CIFAR-10", "T2T-ViT-7 / ResNet-56, 9 exits"),
    "cifar100": ("CIFAR-100", "T2T-ViT-14 / EfficientNet-Lite0 of ImageNet, 16 exits, 5,000 images to fit"),
    "cifar100-lt": ("CIFAR100-LT", "T2T-ViT-14 / EfficientNet-Lite0 of ImageNet, 16 exits, half the images to fit"),
}
JEI, BASELINES = "JEI-DNN, the paper's", ("BoostedNet", "L2W")

#: What is compared, in the paper, ours, and the networks.
Row = tuple[str, str, str, str]


def eenet_rows(folder: Path) -> Iterator[Row]:
    """Table 1: EENet's gain over the best of BranchyNet, MSDNet and PABEE. Table 2: its size. Figure 5: its parts."""
    summary = summarize(pd.read_csv(folder / "results.csv")).set_index("policy").loc["EENet"]
    for name, of_data in summary.groupby("setting", sort=False):
        for published, (budget, units) in zip(PAPER[name], of_data.groupby("budget"), strict=True):
            ours = [
                f"{with_interval(100 * row['gain'], 100 * row['half width'])} by {row['unit']}"
                for _, row in units.iterrows()
            ]
            gain = published[-1] - max(published[:-1])
            what = f"Table 1, {name}: EENet's gain at {percent(budget)} of the cost, in points"
            yield what, f"{gain:+.2f} by ms", ", ".join(ours), EENET_NETWORKS[name]
    sizes = pd.read_csv(folder / "sizes.csv")
    for name, rows in sizes.groupby("setting", sort=False):
        share = (rows["EENet's FLOPs"] / rows["FLOPs"]).max()
        numbers = rows["EENet's parameters"]
        yield (
            f"Table 2, {name}: size of EENet at an exit",
            {"CIFAR-10": "70 to 110", "CIFAR-100": "5,250 to 5,570"}.get(name, "under 200")
            + " parameters, under 0.5 % of FLOPs",
            f"{numbers.min():,} to {numbers.max():,} parameters, at most {100 * share:.1g} % of FLOPs",
            EENET_NETWORKS[name],
        )
    ablation = pd.read_csv(folder / "ablation.csv")
    for name, rows in ablation.groupby("setting", sort=False):
        accuracy = rows.pivot_table(index="split", columns=["policy", "budget"], values="accuracy")
        for part in ("scores", "distribution"):
            difference = accuracy["EENet"] - accuracy[f"EENet without learned {part}"]
            yield (
                f"Figure 5, {name}: gain of the learned {part}, in points",
                "a gain at every budget",
                describe(100 * difference),
                EENET_NETWORKS[name],
            )


def describe(differences: pd.DataFrame) -> str:
    """Range of the means, and the number of columns whose interval excludes zero."""
    mean, error = differences.mean(), half_width(differences)
    above, below = int((mean > error).sum()), int((mean < -error).sum())
    return f"{mean.min():+.2f} to {mean.max():+.2f}; a gain at {above} of {len(mean)} budgets, a loss at {below}"


def with_interval(mean: float, error: float) -> str:
    return f"{mean:+.2f} ± {error:.2f}"


def jei_rows(folder: Path) -> Iterator[Row]:
    """Figures 2 to 5 and 9, and Table 2."""
    for data, (name, networks) in JEI_DATA.items():
        if not (folder / f"{data}-splits.csv").exists():
            continue
        points = pd.read_csv(folder / f"{data}-splits.csv")
        exits = pd.read_csv(folder / f"{data}-exits.csv")
        for column, scale, what, paper in (
            (
                "accuracy",
                100,
                "Figure 2 or 11, {}: accuracy of JEI-DNN minus that of {} at the same cost, in points",
                "above 0",
            ),
            ("ECE", 100, "Figure 5a or 12, {}: calibration error of JEI-DNN minus that of {}, in points", "below 0"),
            ("gated size", 1, "Figure 5b or 13, {}: labels in a set of JEI-DNN minus those of {}", "below 0"),
        ):
            for baseline in BASELINES:
                difference = scale * at_same_cost(points, JEI, baseline, column)
                yield what.format(name, baseline), paper, at_prices(difference), networks
        yield (
            f"Figure 3, {name}: exits at which samples leave",
            "neither the first nor the last exits",
            where_they_leave(exits),
            networks,
        )
        errors = exits[exits["method"].isin(BASELINES)].groupby("exit")["ECE"].mean()
        yield (
            f"Figure 4, {name}: calibration error of the modules of the baselines",
            "falls with depth",
            f"{percent(errors.iloc[0], 1)} at the first, {percent(errors.iloc[-1], 1)} at the last; rank correlation "
            f"with depth {np.corrcoef(errors.rank(), errors.index)[0, 1]:+.2f}",
            networks,
        )
        joint = 100 * at_same_cost(points, "JEI-DNN", "JEI-DNN, joint=False", "accuracy")
        yield (
            f"Figure 9, {name}: gain of training modules with gates (our defaults), in points",
            "above 0",
            describe(joint.unstack("setting")),
            networks,
        )


def at_same_cost(points: pd.DataFrame, method: str, baseline: str, column: str) -> pd.Series:
    """Differences of a method to a baseline at its cost, by split and setting, within the baseline's costs."""
    known = points[points["method"] == baseline].groupby("split")["cost"].agg(["min", "max"])
    found = points.assign(difference=gain_at_same_cost(points, baseline, column)).join(known, on="split")
    found = found[(found["method"] == method) & found["cost"].between(found["min"], found["max"])]
    return found.set_index(["split", "setting"])["difference"]


def at_prices(differences: pd.Series) -> str:
    """Mean and interval at each price that all splits have."""
    table = differences.unstack("setting").dropna(axis="columns")
    mean, error = table.mean(), half_width(table)
    return ", ".join(f"{with_interval(mean[lam], error[lam])} (λ = {lam:g})" for lam in table)


def where_they_leave(exits: pd.DataFrame) -> str:
    """Shares that leave in the first and the last quarter of the exits."""
    shares = exits[exits["method"] == JEI].groupby(["setting", "exit"])["share"].mean().unstack("exit")
    quarter = shares.shape[1] // 4
    first, last = shares.iloc[:, :quarter].sum(axis=1), shares.iloc[:, -quarter:].sum(axis=1)
    parts = [f"{percent(first[lam])} and {percent(last[lam])} (λ = {lam:g})" for lam in shares.index]
    return "in the first and the last quarter of the exits: " + ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder with the results of the other scripts")
    options = parser.parse_args()
    columns = ["result", "paper", "skexit", "networks: paper's / ours"]
    found = {"EENet": ("eenet", eenet_rows), "JEI-DNN": ("jei", jei_rows)}
    rows = [
        (f"{paper}: {what}", *others)
        for paper, (folder, make_rows) in found.items()
        if (options.results / folder).exists()
        for what, *others in make_rows(options.results / folder)
    ]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(options.results / "papers.csv", index=False)
    print(table.to_string())


if __name__ == "__main__":
    main()
