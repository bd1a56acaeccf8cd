"""The figure and the numbers of README and landing page, from the results of ``which_policy``.

    python -m benchmarks.papers.early_exits RESULTS.csv [--docs docs]

`RESULTS.csv` is what ``python -m benchmarks.papers.which_policy --out RESULTS.csv`` wrote. It is kept as
``benchmarks/which/results.csv`` of the documentation. Numbers that stand on more than one page go to
``benchmarks/figures.csv``, from which the pages take them, and into the marked places of the README. The heads are
those of training images where they were measured, else those of the rows that policies are fitted on.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pandas as pd

from benchmarks.papers.which_policy import BASELINE, CASCADE, RECOMMENDED, SINGLE, TRAINED
from benchmarks.shared.intervals import half_width

#: Colours that are readable on white and on black, lines and markers.
LINES = {RECOMMENDED: ("#2b8cc4", "-", "o"), BASELINE: ("#d9822b", "-", "s"), SINGLE: ("#808080", "--", "^")}
GREY = "#808080"
WHICH = "python -m benchmarks.papers.which_policy"
NETWORKS = "python -m benchmarks.networks --onnx"
#: A number in the README, between the comments ``<!--name-->`` and ``<!---->``.
MARKED = re.compile(r"<!--(\w+)-->(.*?)<!---->")


def heads_of(results: pd.DataFrame) -> str:
    """The heads that the figure shows."""
    return TRAINED if TRAINED in set(results["heads"]) else CASCADE


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def numbers(results: pd.DataFrame, networks: pd.DataFrame) -> pd.DataFrame:
    """What stands on more than one page: name, value as pages write it, and the command that measured it."""
    shown = results[results["heads"] == heads_of(results)]
    recommended = shown[shown["policy"] == RECOMMENDED].set_index(["budget", "split"])
    accuracy = recommended["accuracy"].groupby("budget").mean()
    lost = recommended["network"] - recommended["accuracy"]
    mean, error = lost.groupby("budget").mean(), half_width(lost.groupby("budget"))
    interval = "" if error.isna().all() else f" ± {100 * error[0.5]:.1f}"  # one split has none
    small = [budget for budget in mean.index if (mean.loc[budget:] <= 0.001).all()]
    rows = {
        "network_accuracy": (percent(results.groupby("split")["network"].first().mean()), WHICH),
        "half_accuracy": (percent(accuracy[0.5]), WHICH),
        "half_lost": (f"{100 * mean[0.5]:.1f}{interval}", WHICH),
        "small_loss_budget": (f"{100 * small[0]:.0f} %" if small else "100 %", WHICH),
        "networks": (str(int((networks["live"] == "yes").sum())), NETWORKS),
    }
    return pd.DataFrame([(name, *row) for name, row in rows.items()], columns=["name", "value", "command"])


def table_of_budgets(results: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in % with its 95 % interval, one row per method, and the mean cost on new rows."""
    shown = results[(results["heads"] == heads_of(results)) & (results["policy"] != SINGLE)]
    rows = []
    for policy, name in ((RECOMMENDED, "recommended pipeline"), (BASELINE, "maximum probability, the same heads")):
        groups = shown[shown["policy"] == policy].groupby("budget")
        for column, label in (("accuracy", name), ("cost", f"{name}: cost on new rows")):
            mean, error = 100 * groups[column].mean(), 100 * half_width(groups[column])
            rows.append({"": label, **{f"{100 * b:.0f} %": f"{mean[b]:.1f} ± {error[b]:.1f}" for b in mean.index}})
    return pd.DataFrame(rows)


def draw(results: pd.DataFrame, path: Path) -> None:
    """Accuracy against mean cost, for a page of any colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = results[results["heads"] == heads_of(results)]
    network = results.groupby("split")["network"].first().mean()
    plt.rcParams.update({"font.size": 11, "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY})
    plt.rcParams.update({"xtick.color": GREY, "ytick.color": GREY})
    figure, ax = plt.subplots(figsize=(5, 3.7), layout="constrained")
    means = {
        policy: shown[shown["policy"] == policy].groupby("budget")[["cost", "accuracy"]].mean() for policy in LINES
    }
    for policy, (color, line, marker) in LINES.items():
        points = 100 * means[policy]
        ax.plot(points["cost"], points["accuracy"], line, color=color, marker=marker, markersize=5, linewidth=2)
    ax.axhline(100 * network, color=GREY, linewidth=1.5, linestyle=":")
    ax.text(14, 100 * network + 0.2, "the whole network", va="bottom")
    # Names stand beside their lines, where these lie apart.
    fixed = 100 * means[SINGLE]
    for policy, label, point, offset, side in (
        (RECOMMENDED, "recommended", 100 * means[RECOMMENDED].loc[0.4], (-9, 3), "right"),
        (BASELINE, "maximum\nprobability", 100 * means[BASELINE].loc[0.4], (8, -24), "left"),
        (SINGLE, "fixed exits", fixed.iloc[-3], (8, -12), "left"),
    ):
        place = point["cost"], point["accuracy"]
        ax.annotate(label, place, offset, textcoords="offset points", ha=side, color=LINES[policy][0])
    half = 100 * means[RECOMMENDED].loc[0.5]
    color, level = LINES[RECOMMENDED][0], 100 * network + 0.9
    arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (half["cost"], level), (100, level), arrowprops=arrow)
    text = f"half of the compute,\n{100 * network - half['accuracy']:.1f} points less"
    ax.text((100 + half["cost"]) / 2, level + 0.2, text, ha="center", va="bottom", color=color)
    lowest = min(means[policy]["accuracy"].min() for policy in (RECOMMENDED, BASELINE))
    ax.set(xlim=(12, 106), ylim=(100 * lowest - 3, 100 * network + 3.2))
    ax.set(xlabel="mean cost (% of the whole network)", ylabel="accuracy (%)")
    ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200, transparent=True)
    plt.close(figure)


def fill_in(text: str, values: dict[str, str]) -> str:
    """The text with the present values in its marked places."""
    return MARKED.sub(lambda place: f"<!--{place[1]}-->{values[place[1]]}<!---->", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    results = pd.read_csv(options.results)
    kept = options.docs / "benchmarks" / "which" / "results.csv"
    kept.parent.mkdir(exist_ok=True)
    results.to_csv(kept, index=False)
    networks = pd.read_csv(options.docs / "benchmarks" / "networks" / "networks.csv")
    table = numbers(results, networks)
    table.to_csv(options.docs / "benchmarks" / "figures.csv", index=False)
    table_of_budgets(results).to_csv(kept.parent / "accuracy.csv", index=False)
    draw(results, options.docs / "images" / "early_exits.png")
    readme = options.docs.parent / "README.md"
    values = dict(zip(table["name"], table["value"], strict=True))
    readme.write_text(fill_in(readme.read_text(encoding="utf-8"), values), encoding="utf-8")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
