"""Figure 5 of the EENet paper again: EENet without each of its two parts, BranchyNet and MSDNet, on texts.

    python -m benchmarks.papers.eenet_figure --data-root DIR --weights resnet56.th \
        --fine-tuned DIR --caches DIR --out DIR

The arguments are those of ``eenet_tables.py``, and so are the splits. Accuracy against mean milliseconds, where
`--out` has the ``latency.csv`` of ``eenet_latency.py``, else against FLOPs; below, what each gains over MSDNet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from benchmarks.papers.eenet_settings import SETTINGS, argument_parser, eenet
from benchmarks.papers.eenet_tables import N_SPLITS, fit_to, in_units, replace_settings
from benchmarks.shared.intervals import half_width
from benchmarks.shared.routing import half_rows
from skexit import ThresholdPolicy
from skexit.policies import BudgetedPolicy

BUDGETS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9)
TEXTS = ["SST-2", "AG News"]
BASELINE = "MSDNet"
STYLES = {
    "BranchyNet": ("#8e6bb0", "s", "--"),
    BASELINE: ("#444444", "o", "--"),
    "EENet": ("#c0392b", "D", "-"),
    "EENet without learned scores": ("#e1a03c", "v", "-"),
    "EENet without learned distribution": ("#4878a8", "^", "-"),
}


def variants(setting: str, seed: int) -> dict[str, BudgetedPolicy]:
    return {
        "BranchyNet": ThresholdPolicy("entropy"),
        BASELINE: ThresholdPolicy("max_prob"),
        "EENet": eenet(setting, seed),
        "EENet without learned scores": eenet(setting, seed, learn_scores=False),
        "EENet without learned distribution": eenet(setting, seed, learn_distribution=False),
    }


def measure(name: str, arguments: argparse.Namespace) -> pd.DataFrame:
    """Accuracy and mean cost of each variant at each budget on each split."""
    setting = SETTINGS[name](arguments)
    path = arguments.out / "latency.csv"
    latency = pd.read_csv(path) if path.exists() else None
    rows = []
    for seed in range(N_SPLITS):
        fit, test = half_rows(len(setting.y), seed)
        for variant, policy in variants(name, seed).items():
            measured_as = variant if variant in ("BranchyNet", BASELINE) else "EENet"
            *_, (unit, X) = in_units(setting, name, measured_as, latency)
            for budget in BUDGETS:
                fitted = fit_to(policy, X[fit], setting.y[fit], budget)
                cost = fitted.mean_cost(X[test]) * fitted.layout_.network_cost
                rows.append(
                    {
                        "setting": name,
                        "unit": unit,
                        "budget": budget,
                        "policy": variant,
                        "split": seed,
                        "accuracy": fitted.score(X[test], setting.y[test]),
                        "cost": cost,
                    }
                )
    return pd.DataFrame(rows)


def gains(results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Paired difference to MSDNet, and half its 95 % interval; by policy and budget."""
    accuracy = results.pivot(index=["policy", "split"], columns="budget", values="accuracy")
    difference = accuracy - accuracy.loc[BASELINE].reindex(accuracy.index, level="split")
    return difference.groupby("policy").mean(), half_width(difference.groupby("policy"))


def draw(results: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(8.4, 6.6), sharex="col", layout="constrained")
    for (top, bottom), name in zip(axes.T, TEXTS, strict=True):
        of_text = results[results["setting"] == name]
        difference, errors = gains(of_text)
        unit = of_text["unit"].iloc[0]
        for variant, (color, marker, line) in STYLES.items():
            style = {"color": color, "marker": marker, "markersize": 4.5, "linestyle": line, "label": variant}
            means = of_text[of_text["policy"] == variant].groupby("budget")[["cost", "accuracy"]].mean()
            top.plot(means["cost"], 100 * means["accuracy"], **style)
            if variant != BASELINE:
                gain, error = 100 * difference.loc[variant], 100 * errors.loc[variant]
                bottom.errorbar(means["cost"], gain, error, linewidth=1, **style)
        bottom.axhline(0, color=STYLES[BASELINE][0], linewidth=1)
        top.set_title(name, fontsize=11)
        bottom.set_xlabel(f"mean {unit} of a sample")
        for ax in (top, bottom):
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("accuracy in %")
    axes[1, 0].set_ylabel(f"gain over {BASELINE} in points")
    axes[0, 0].legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path)


def run(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in TEXTS:
        results = replace_settings(arguments.out / "ablation.csv", measure(name, arguments))
        difference, errors = gains(results[results["setting"] == name])
        print(name, (100 * difference).round(2), (100 * errors).round(2), sep="\n", flush=True)
    draw(results, arguments.out / "ablation.svg")


if __name__ == "__main__":
    run(argument_parser(__doc__).parse_args())
