"""The EM-routing paper's experiments on CIFAR-10: four exits, its baselines, its ablations.

    python -m benchmarks.papers.em_paper --data-root DIR --weights resnet56.th --results docs/benchmarks/em [--splits 5]

`--data-root` and `--weights` are those of ``em_routing.py``. The network is a frozen ResNet-56, divided into four
parts of about the same cost; heads are linear, on averages. Heads and policies are fitted on a random half of
the test images, which the network has not seen, and measured on the other half, split after split.

``--results`` is a folder for tables and figures; what they are made of, every method on every split, is in its
``splits.csv``. Gains are over thresholds on the entropy, the paper's baseline (BranchyNet), on the same split
and at the same cost on new rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.papers.em_ablation import BY, ablate
from benchmarks.shared.intervals import (
    draw_line,
    gain_at_same_cost,
    half_width,
    new_axes,
    percent,
    save,
    with_error,
    write,
)
from benchmarks.shared.routing import argument_parser, extract, split
from skexit import EMExitAssigner, ExitArray, OptimalStoppingPolicy, RandomExit, StaticExit, ThresholdPolicy, oracle
from skexit.metrics import exit_distribution_by_class
from skexit.plotting import ExitDistributionDisplay
from skexit.policies import ExitPolicy

#: After 7, 14, 20 and 27 of 27 blocks.
EXITS = ["layer1.6", "layer2.4", "layer3.1", "layer3.8"]
BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CLASS_BUDGET = 0.5
#: Prices of the paper, 0.1 to 1, and larger ones.
PRICES = (0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
PAPERS_SETTINGS = {
    "assignment": "hard",
    "router_input": "features",
    "confidence_weight": 0,
    "learning_rate": 1e-3,
    "l2": 0.0,
    "max_epochs": 100,
}
ENTROPY, CONFIDENCE = "entropy thresholds", "maximum probability"
PAPER, PAPER_SOFT = "EM, the paper's", "EM, the paper's, soft"
ROUTERS, DEFAULT, OPTIMAL = "EM, routers alone", "EM, default", "optimal stopping"
STATIC, RANDOM, UNIFORM, ORACLE = "one exit for all", "random", "random, uniform", "oracle"
#: Methods that can be given a budget.
METHODS = [ENTROPY, CONFIDENCE, ROUTERS, DEFAULT, OPTIMAL, RANDOM]
#: Columns of the tables that are written in % or points.
UNITS = {"accuracy": "accuracy (%)", "cost": "cost (%)", "gain": "gain (points)", "last exit": "last exit (%)"}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

STYLES = {
    ENTROPY: {"color": "black", "marker": "s", "label": "entropy (BranchyNet)"},
    DEFAULT: {"color": "#0072B2", "marker": "o", "label": "EM, within a budget"},
    ROUTERS: {"color": "#56B4E9", "marker": "v", "label": "EM, routers alone"},
    PAPER: {"color": "#D55E00", "marker": "^", "label": "EM, the paper's (λ)"},
    OPTIMAL: {"color": "#009E73", "marker": "D", "label": "optimal stopping"},
}

Rows = list[dict[str, object]]


def fitted_policies(X: ExitArray, y: np.ndarray, seed: int) -> Iterator[tuple[str, float, ExitPolicy]]:
    """Methods, their setting (a budget, a price or an exit), and the policy."""
    everywhere = sorted({*BUDGETS, *np.linspace(0.28, 1, 37).round(2).tolist()})
    for name, criterion in ((ENTROPY, "entropy"), (CONFIDENCE, "max_prob")):
        thresholds = ThresholdPolicy(criterion, budget=0.5).fit(X, y)
        yield from ((name, budget, thresholds.with_budget(budget)) for budget in everywhere)
    stopping = OptimalStoppingPolicy(random_state=seed).fit(X, y)
    yield from ((OPTIMAL, budget, stopping.with_budget(budget)) for budget in BUDGETS)
    for budget in BUDGETS:
        yield DEFAULT, budget, EMExitAssigner(budget=budget, random_state=seed).fit(X, y)
        yield ROUTERS, budget, EMExitAssigner(budget=budget, confidence_weight=0, random_state=seed).fit(X, y)
        yield RANDOM, budget, RandomExit(budget, random_state=seed).fit(X, y)
    for lam in PRICES:
        yield PAPER, lam, EMExitAssigner(lam, random_state=seed, **PAPERS_SETTINGS).fit(X, y)
        soft = PAPERS_SETTINGS | {"assignment": "soft"}
        yield PAPER_SOFT, lam, EMExitAssigner(lam, random_state=seed, **soft).fit(X, y)
    yield UNIFORM, 0, RandomExit(random_state=seed).fit(X, y)
    for k in range(len(EXITS)):
        yield STATIC, k, StaticExit(k).fit(X, y)


def measure_split(X: ExitArray, y: np.ndarray, seed: int) -> tuple[Rows, list[pd.DataFrame]]:
    """Accuracy and cost of every policy, and where the classes leave."""
    X_fit, y_fit, X_test, y_test = split(X, y, seed)
    results: Rows = []
    classes = []
    for method, setting, policy in fitted_policies(X_fit, y_fit, seed):
        results.append(
            {
                "method": method,
                "setting": setting,
                "split": seed,
                "cost": policy.mean_cost(X_test),
                "fitted cost": float(policy.exit_distribution_ @ policy.costs_),
                "accuracy": policy.score(X_test, y_test),
            }
        )
        if setting == CLASS_BUDGET and method in (ENTROPY, DEFAULT, ROUTERS):
            exits = policy.predict_exit(X_test)
            shares = exit_distribution_by_class(y_test, exits, n_exits=len(EXITS))
            classes.append(shares_table(method, shares, seed))
            if method == DEFAULT:
                assigned = policy.assignments(X_test, y_test)
                means = np.stack([assigned[y_test == label].mean(axis=0) for label in range(len(CLASSES))])
                classes.append(shares_table("EM, assigned", means, seed))
    perfect = oracle(X_test, y_test)
    results.append(
        {"method": ORACLE, "setting": 0, "split": seed, "cost": perfect.mean_cost, "accuracy": perfect.accuracy}
    )
    return results, classes


def shares_table(method: str, shares: np.ndarray, seed: int) -> pd.DataFrame:
    table = pd.DataFrame(shares, columns=[f"exit {k}" for k in range(shares.shape[1])])
    return table.assign(method=method, split=seed, **{"class": CLASSES})


def within_budgets(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Accuracy, cost and gain of the methods that can be given a budget, one column a budget."""
    rows = results[results["method"].isin(METHODS) & results["setting"].isin(BUDGETS)]
    points = in_percent(rows.groupby(["method", "setting"])[["accuracy", "cost", "gain"]])
    points = points.assign(setting=points["setting"].map(percent))
    return {
        name: points.pivot(index="method", columns="setting", values=UNITS[name]).loc[METHODS].reset_index()
        for name in ("accuracy", "cost", "gain")
    }


def points_table(results: pd.DataFrame) -> pd.DataFrame:
    groups = results.groupby(["method", "setting"], sort=False)[["cost", "accuracy", "gain"]]
    return in_percent(groups)


def in_percent(groups: Any) -> pd.DataFrame:
    """Means and intervals; those of shares in % or points."""
    mean, error = groups.mean(), half_width(groups)
    columns = {
        UNITS.get(name, name): with_error(100 * mean[name], 100 * error[name], 1)
        if name in UNITS
        else with_error(mean[name], error[name], 3)
        for name in mean
    }
    return pd.DataFrame(columns).reset_index()


def class_table(classes: pd.DataFrame) -> pd.DataFrame:
    shares = classes.drop(columns="split").groupby(["method", "class"], sort=False)
    return write(shares, digits=2).reset_index()


def draw_frontier(results: pd.DataFrame, folder: Path) -> None:
    ax = new_axes("mean cost / cost of the network", "accuracy")
    for name, style in STYLES.items():
        rows = results[results["method"] == name]
        rows = rows if name == PAPER else rows[rows["setting"].isin(BUDGETS)]
        line = {"linestyle": "none"} if name == PAPER else {}
        draw_line(ax, rows, "setting", "cost", "accuracy", **style, **line)
    others = {STATIC: ("#777777", "_"), RANDOM: ("#CC79A7", "x"), ORACLE: ("#E69F00", "*")}
    for name, (color, marker) in others.items():
        line = {"linestyle": ":" if name != ORACLE else "none", "color": color, "marker": marker, "label": name}
        draw_line(ax, results[results["method"] == name], "setting", "cost", "accuracy", **line)
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    save(ax, folder / "frontier.png")

    ax = new_axes("mean cost / cost of the network", "gain over entropy, points of accuracy")
    in_points = results.assign(gain=100 * results["gain"])
    for name in (ROUTERS, DEFAULT, OPTIMAL):
        rows = in_points[(in_points["method"] == name) & in_points["setting"].isin(BUDGETS)]
        draw_line(ax, rows, "setting", "cost", "gain", **STYLES[name])
    draw_line(ax, in_points[in_points["method"] == PAPER], "setting", "cost", "gain", **STYLES[PAPER], linestyle="none")
    ax.axhline(0, color="black", linewidth=1)
    ax.legend(frameon=False, fontsize=9)
    save(ax, folder / "gains.png")


def draw_classes(classes: pd.DataFrame, folder: Path) -> None:
    """Shares of the exits by class, the mean of the splits."""
    files = {DEFAULT: "classes-em.png", ENTROPY: "classes-entropy.png", "EM, assigned": "classes-assigned.png"}
    for method, file in files.items():
        means = classes[classes["method"] == method].drop(columns=["method", "split"]).groupby("class").mean()
        shares = np.vstack([means.mean(), means])
        ax = new_axes("", "")
        ax.grid(False)
        save(ExitDistributionDisplay(shares, ["all", *means.index]).plot(ax).ax_, folder / file)


def draw_prices(prices: pd.DataFrame, folder: Path) -> None:
    """Where samples are assigned, and where routers that learned it let them out."""
    soft = prices[prices["assignment"] == "soft"].groupby("lam")
    rows, names = [], []
    for lam, group in soft:
        for column, name in (("assigned", "assigned"), ("got", "routers")):
            rows.append(np.mean(list(group[column]), axis=0))
            names.append(f"λ = {lam:g}, {name}")
    ax = new_axes("", "")
    ax.grid(False)
    save(ExitDistributionDisplay(rows, names).plot(ax).ax_, folder / "prices.png")


def ablation_tables(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    columns = {
        "prices": ["cost", "accuracy", "gain"],
        "iterations": ["log-likelihood", "last exit", "cost", "accuracy", "gain"],
        "routers": ["accuracy", "gain"],
    }
    written = {name: in_percent(tables[name].groupby(BY[name])[columns[name]]) for name in columns}
    routers = written["routers"]
    routers["budget"] = routers["budget"].map(percent)
    routers["confidence"] = routers["confidence_weight"].map({"0": "none (the paper's)", "auto": "chosen (default)"})
    by = ["confidence", "assignment", "router_hidden_layer_sizes"]
    written["routers"] = routers.pivot(index=by, columns="budget", values=UNITS["gain"]).reset_index()
    return written


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder for tables and figures")
    options = parser.parse_args()
    X, y = extract(options.data_root, options.weights, options.pool, exits=EXITS)
    print(f"costs: {X.layout.cost_fractions.round(3)} of {X.layout.costs[-1]:.4g} {X.layout.cost_unit}", flush=True)
    measured = [measure_split(X, y, seed) for seed in range(options.splits)]
    results = pd.DataFrame([row for rows, _ in measured for row in rows])
    results["gain"] = gain_at_same_cost(results, ENTROPY)
    classes = pd.concat([table for _, tables in measured for table in tables], ignore_index=True)
    ablations = ablate(X, y, options.splits)

    folder = options.results
    draw_frontier(results, folder)
    draw_classes(classes, folder)
    draw_prices(ablations["prices"], folder)
    results.round(5).to_csv(folder / "splits.csv", index=False)
    by_price = results[results["method"].isin([PAPER, PAPER_SOFT])]
    fixed = results[results["method"].isin([STATIC, UNIFORM, ORACLE])]
    fixed = fixed.assign(setting=fixed["setting"].map("{:.0f}".format).where(fixed["method"] == STATIC, ""))
    tables = {
        **within_budgets(results),
        "paper": points_table(by_price).rename(columns={"setting": "λ"}),
        "fixed": points_table(fixed).rename(columns={"setting": "exit"}),
        "classes": class_table(classes),
        **ablation_tables(ablations),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
        print(f"\n{name}\n{table.to_string()}", flush=True)


if __name__ == "__main__":
    main()
