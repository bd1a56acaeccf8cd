"""EM routing over its price, iterations, router depth, and soft or hard assignments, as its paper asks.

    python -m benchmarks.papers.em_ablation --data-root DIR --weights resnet56.th [--splits 5] [--figure PATH]

`--data-root` and `--weights` are those of ``em_routing.py``, and so are data, exits and splits. Gains are
over maximum probability at the same cost on the fitted rows, paired, with half their 95 % interval.

`--figure` draws accuracy against cost over prices, and how many samples each exit is assigned and gets.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.shared.intervals import half_width
from benchmarks.shared.routing import BASELINE, argument_parser, extract, split
from skexit import EMExitAssigner, ExitArray, ThresholdPolicy

PRICES = (0.3, 1.0, 3.0, 5.0, 10.0)
PAPERS_PRICES = (0.1, 0.3, 1.0)
ITERATIONS = (1, 3, 10, 30)
ITERATION_BUDGET = 0.7
DEPTHS = ((), (64,), (64, 64))
BUDGETS = (0.5, 0.7, 0.9)
#: Assignments and router depths that are compared within budgets.
ROUTERS = [("soft", hidden) for hidden in DEPTHS] + [("hard", (64,))]
#: The paper's routers, and the weight of the confidence that is chosen by default.
CONFIDENCE_WEIGHTS = (0, "auto")

#: What the rows of each ablation are told apart by.
BY = {
    "prices": ["assignment", "lam"],
    "iterations": ["setting", "iterations"],
    "routers": ["confidence_weight", "assignment", "router_hidden_layer_sizes", "budget"],
}

Rows = list[dict[str, object]]


class Measurement:
    """Rows of one split, and what a policy does on them."""

    def __init__(self, X: ExitArray, y: np.ndarray, seed: int) -> None:
        self.X_fit, self.y_fit, self.X_test, self.y_test = split(X, y, seed)
        self.seed = seed
        self.baseline = ThresholdPolicy(budget=0.7).fit(self.X_fit, self.y_fit)

    def fit(self, **parameters: object) -> EMExitAssigner:
        return EMExitAssigner(random_state=self.seed, **parameters).fit(self.X_fit, self.y_fit)

    def measure(self, policy: EMExitAssigner) -> dict[str, object]:
        fitted_cost = float(policy.exit_distribution_ @ policy.costs_)
        accuracy = policy.score(self.X_test, self.y_test)
        same_cost = self.baseline.with_budget(fitted_cost).score(self.X_test, self.y_test)
        return {
            "split": self.seed,
            "fitted cost": fitted_cost,
            "cost": policy.mean_cost(self.X_test),
            "accuracy": accuracy,
            "gain": accuracy - same_cost,
        }

    def over_prices(self) -> Rows:
        rows = []
        for assignment, lam in product(("soft", "hard"), PRICES):
            policy = self.fit(lam=lam, assignment=assignment)
            place = {"assignment": assignment, "lam": lam, "assigned": policy.exit_prior_}
            rows.append(place | {"got": policy.exit_distribution_} | self.measure(policy))
        return rows

    def over_iterations(self) -> Rows:
        settings = [*({"lam": lam} for lam in PAPERS_PRICES), {"budget": ITERATION_BUDGET, "confidence_weight": 0}]
        rows = []
        for parameters in settings:
            for max_iter in ITERATIONS:
                policy = self.fit(max_iter=max_iter, **parameters)
                name = ", ".join(f"{name}={value}" for name, value in parameters.items())
                place = {"setting": name, "iterations": max_iter, "log-likelihood": policy.log_likelihood_[-1]}
                rows.append(place | {"last exit": policy.exit_prior_[-1]} | self.measure(policy))
        return rows

    def over_routers(self) -> Rows:
        rows = []
        for budget, weight, (assignment, hidden) in product(BUDGETS, CONFIDENCE_WEIGHTS, ROUTERS):
            policy = self.fit(
                budget=budget, confidence_weight=weight, assignment=assignment, router_hidden_layer_sizes=hidden
            )
            place = {
                "confidence_weight": str(weight),
                "assignment": assignment,
                "router_hidden_layer_sizes": str(hidden),
            }
            rows.append(
                place
                | {"budget": budget, "confidence alone": float(np.isinf(policy.confidence_weight_))}
                | self.measure(policy)
            )
        return rows


def summarize(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means over the splits, and half the 95 % interval of the gain."""
    groups = rows.select_dtypes("number").drop(columns=["split", *by], errors="ignore").groupby([rows[c] for c in by])
    return groups.mean().join(half_width(groups["gain"]).rename("±")).round(4)


def draw(prices: pd.DataFrame, baseline: list[tuple[float, float]], path: Path) -> None:
    """Accuracy against cost over prices, and the share of each exit."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.3, 4.2), layout="constrained")
    left.plot(*zip(*baseline, strict=True), color="black", linewidth=1.2, label=BASELINE)
    colors = {"soft": ("#2f5f8f", "o"), "hard": ("#e1a03c", "^")}
    for assignment, (color, marker) in colors.items():
        means = prices[prices["assignment"] == assignment].groupby("lam")[["cost", "accuracy"]].mean()
        left.plot(means["cost"], means["accuracy"], color=color, marker=marker, label=f"{assignment} assignments")
        if assignment == "soft":
            for lam, (cost, accuracy) in means.iterrows():
                left.annotate(f"λ = {lam:g}", (cost, accuracy), (7, -11), textcoords="offset points", fontsize=9)
    left.set(xlabel="mean cost on new rows", ylabel="accuracy")
    left.legend(frameon=False, loc="lower right")
    left.grid(alpha=0.3)

    soft = prices[prices["assignment"] == "soft"].groupby("lam")
    shares = {
        column: np.stack([np.mean(list(rows), axis=0) for _, rows in soft[column]]) for column in ("assigned", "got")
    }
    place, n_exits = np.arange(len(PRICES)), shares["got"].shape[1]
    palette = plt.get_cmap("viridis_r")(np.linspace(0.05, 0.95, n_exits))
    for column, offset in {"assigned": -0.2, "got": 0.2}.items():
        bottom = np.zeros(len(PRICES))
        for k in range(n_exits):
            label = f"exit {k}" if column == "got" else None
            right.bar(place + offset, shares[column][:, k], 0.36, bottom, color=palette[k], label=label)
            bottom += shares[column][:, k]
    right.set(ylabel="share of the samples", ylim=(0, 1))
    right.set_xticks(place, [f"λ = {lam:g}" for lam in PRICES])
    right.set_xlabel("left bar: assigned; right bar: where the routers stop")
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def ablate(X: ExitArray, y: np.ndarray, n_splits: int) -> dict[str, pd.DataFrame]:
    """All ablations on every split, and accuracy and cost of maximum probability."""
    results: dict[str, Rows] = {"prices": [], "iterations": [], "routers": [], "baseline": []}
    for seed in range(n_splits):
        measurement = Measurement(X, y, seed)
        results["prices"] += measurement.over_prices()
        results["iterations"] += measurement.over_iterations()
        results["routers"] += measurement.over_routers()
        for budget in np.linspace(max(0.2, measurement.baseline.costs_[0]), 1, 33):
            policy = measurement.baseline.with_budget(budget)
            cost, accuracy = policy.mean_cost(measurement.X_test), policy.score(measurement.X_test, measurement.y_test)
            results["baseline"].append({"split": seed, "budget": budget, "cost": cost, "accuracy": accuracy})
    return {name: pd.DataFrame(rows) for name, rows in results.items()}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--figure", type=Path, help="image file to draw prices in")
    options = parser.parse_args()
    X, y = extract(options.data_root, options.weights, options.pool)
    tables = ablate(X, y, options.splits)
    if options.out:
        pd.concat({name: tables[name] for name in BY}).to_csv(options.out)
    if options.figure:
        curve = tables["baseline"].groupby("budget")[["cost", "accuracy"]].mean()
        draw(tables["prices"], curve.to_numpy().tolist(), options.figure)
    for name, columns in BY.items():
        print(f"\n{name}\n{summarize(tables[name], columns).to_string()}")


if __name__ == "__main__":
    main()
