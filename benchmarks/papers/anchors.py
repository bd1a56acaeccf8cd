"""Methods of other papers against ours, on the same cached features.

    python -m benchmarks.papers.anchors --data-root DIR --weights resnet56.th [--splits 5] [--out FOLDER]

CIFAR-10 through a frozen ResNet-56 with nine exits, averages and maxima of the maps. Everything is fitted on half of
the 10,000 test images and measured on the other half, split after split. Nothing is chosen by the rows that measure.
With ``--out``, the tables of ``docs/benchmarks/papers.rst`` are written.

EERO
    "EERO: Early exit with reject option for efficient classification with limited budget" (UAI 2025, arXiv:2402.03779).
    Each head is a classifier with a reject option, and answers the most confident of the samples that reach it. How
    many follows from exponential weights on the error rates of the heads, under the budget.
Zero Time Waste
    "Zero Time Waste: Recycling predictions in early exit neural networks" (NeurIPS 2021, arXiv:2106.05409). Heads see
    the logits of the head before them (cascade connections). Each exit answers with a weighted geometric mean of the
    probabilities of all heads so far and a bias for each class (eq. 3). One threshold on the largest probability serves
    all exits.
Fast yet safe
    "Fast yet safe: Early-exiting with risk control" (NeurIPS 2024, arXiv:2405.20915). One threshold on the largest
    probability, controlled by the loss of accuracy or by disagreement with the last exit. Reported are the cost and
    the loss of accuracy on new rows at alpha = .01 and .02, delta = .1.

EEFP is early-exit failure prediction ("Rethinking calibration for early-exit neural networks", ICML 2026,
arXiv:2508.21495): the mean over the early exits of :func:`skexit.metrics.early_exit_failure_prediction`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.shared.intervals import half_width, percent, write
from benchmarks.shared.routing import argument_parser, extract, half_rows
from skexit import (
    ExitArray,
    ExitEnsemble,
    ExitHeads,
    ExitLayout,
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    ThresholdPolicy,
    stack_exits,
)
from skexit.data._walk import correct_exits
from skexit.metrics import early_exit_failure_prediction
from skexit.policies import BudgetedPolicy, quota_thresholds
from skexit.policies._quotas import exits_from_scores
from skexit.uncertainty import log_odds

BUDGETS = (0.3, 0.5, 0.7)
ALPHAS = (0.01, 0.02)
BASELINE = "linear heads, maximum probability, quotas"


class EEROPolicy(BudgetedPolicy):
    """Reject options at the heads, with shares of the exits by exponential weights under a budget.

    Written from the abstract of the paper, which names these parts; formulas are ours.

    With R_k the error rate of head k on all rows and C_k its cost, the shares minimise ``sum_k p_k R_k`` plus
    ``KL(p, uniform) / strength`` at the mean cost of the budget: ``p_k`` is in proportion to
    ``exp(-strength (R_k + price C_k))``. At each head, the samples with the largest probabilities are answered until
    its share is full; the others are rejected and go on. `strength` is chosen from a grid by the accuracy on the fitted
    rows, and shares are solved again at each head for the samples that are left.
    """

    strengths = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

    def __init__(self, budget: float = 0.5, *, heads: object = None, layout: ExitLayout | int | None = None) -> None:
        self.budget = budget
        self.heads = heads
        self.layout = layout

    def earlier_exits(self, k: int) -> range:
        return range(0)

    def score_exit(self, k: int, logits: np.ndarray, features: object, memory: dict[str, object]) -> np.ndarray:
        return log_odds(logits)

    def fit_policy(self, X: ExitArray, labels: np.ndarray, weight: np.ndarray) -> None:
        self._correct = correct_exits(X, labels)
        self.fit_thresholds(X, weight)

    def choose_thresholds(self, scores: np.ndarray, weight: np.ndarray) -> np.ndarray:
        risks = 1 - self._correct.mean(axis=0)
        candidates = [self._thresholds(scores, risks, strength) for strength in self.strengths]
        return max(candidates, key=lambda thresholds: self._accuracy(scores, thresholds))

    def _thresholds(self, scores: np.ndarray, risks: np.ndarray, strength: float) -> np.ndarray:
        return quota_thresholds(
            scores, self.costs_, self.budget, log_prior=-strength * risks, direction=self.costs_, warn=False
        )

    def _accuracy(self, scores: np.ndarray, thresholds: np.ndarray) -> float:
        stops = exits_from_scores(scores, thresholds)
        return float(self._correct[np.arange(len(stops)), stops].mean())


def zero_time_waste_heads(
    X: ExitArray, y: np.ndarray, fit: np.ndarray, test: np.ndarray
) -> tuple[ExitArray, ExitArray]:
    """Logits of linear heads with cascade connections, of the rows to fit on and of those to measure on.

    Each head sees its features and the logits of the head before, which it does not change. Logits of the fitted rows
    are cross-fitted, so that ensemble and threshold see what new rows will show; the paper trains on other rows.
    """
    layout = X.layout
    last = layout.n_exits - 1
    logits_fit, logits_test = [], []
    for k in range(last):
        seen_fit, seen_test = (
            np.hstack([X.features(k, rows), *before[-1:]]) for rows, before in ((fit, logits_fit), (test, logits_test))
        )
        # The penalty of ExitHeads up to 5,000 rows.
        head = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (3e-3 * len(fit)), max_iter=500))
        logits_fit.append(cross_val_predict(head, seen_fit, y[fit], cv=5, method="decision_function"))
        logits_test.append(head.fit(seen_fit, y[fit]).decision_function(seen_test))
    n_classes = layout.n_logits[last]
    multiply_adds = np.array([*(n_classes * (layout.n_features[k] + n_classes * (k > 0)) for k in range(last)), 0])
    head_costs = layout.head_costs + 2 * np.cumsum(multiply_adds)
    changes = {
        "costs": layout.costs - layout.head_costs + head_costs,
        "cost_unit": layout.cost_unit,
        "head_costs": head_costs,
        "network_cost": layout.network_cost,
    }
    return tuple(
        stack_exits([*logits, X.logits(last, rows)]).with_layout(
            ExitLayout([n_classes] * layout.n_exits, classes=np.arange(n_classes), **changes)
        )
        for logits, rows in ((logits_fit, fit), (logits_test, test))
    )


def methods_of_split(
    X: ExitArray, y: np.ndarray, fit: np.ndarray, test: np.ndarray
) -> Iterator[tuple[str, BudgetedPolicy, ExitArray, ExitArray]]:
    """Name, policy, and rows to fit and to measure of each method."""
    heads = ExitHeads(random_state=0)
    linear = heads.fit_transform(X[fit], y[fit]), heads.transform(X[test])
    cascade = zero_time_waste_heads(X, y, fit, test)
    shared = ThresholdPolicy(schedule="shared")
    yield BASELINE, ThresholdPolicy(), *linear
    yield "linear heads, maximum probability, one threshold", shared, *linear
    yield "linear heads, EERO", EEROPolicy(), *linear
    yield "linear heads, optimal stopping", OptimalStoppingPolicy(random_state=0), *linear
    yield "Zero Time Waste, cascade connections alone", shared, *cascade
    for name, rows, policies in (
        (
            "Zero Time Waste",
            cascade,
            {"": shared, ", EERO": EEROPolicy(), ", optimal stopping": OptimalStoppingPolicy(random_state=0)},
        ),
        ("linear heads in ExitEnsemble", linear, {", optimal stopping": OptimalStoppingPolicy(random_state=0)}),
    ):
        ensemble = ExitEnsemble()
        mixed = ensemble.fit_transform(rows[0], y[fit]), ensemble.transform(rows[1])
        for suffix, policy in policies.items():
            yield name + suffix, policy, *mixed


def measure(X: ExitArray, y: np.ndarray, seed: int) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Accuracies at budgets, and risks that are controlled, of one split."""
    fit, test = half_rows(len(y), seed)
    at_budgets, controlled = [], []
    for name, policy, X_fit, X_test in methods_of_split(X, y, fit, test):
        for budget in BUDGETS:
            fitted = policy.set_params(budget=budget).fit(X_fit, y[fit])
            correct = fitted.predict_at_exits(X_test) == y[test, None]
            at_budgets.append(
                {
                    "method": name,
                    "budget": budget,
                    "split": seed,
                    "accuracy": fitted.score(X_test, y[test]),
                    "cost": fitted.mean_cost(X_test),
                    "EEFP": early_exit_failure_prediction(correct, fitted.exit_scores(X_test))[:-1].mean(),
                }
            )
        if not isinstance(policy, EEROPolicy) and "alone" not in name:
            controlled += control(name, fitted, X_test, y[test], seed)
    return at_budgets, controlled


def control(name: str, fitted: BudgetedPolicy, X: ExitArray, y: np.ndarray, seed: int) -> list[dict[str, object]]:
    """Cost and loss of accuracy where a loss is controlled on one half of the rows, on the other half."""
    calibrate, new = half_rows(len(y), seed)
    last = np.mean(fitted.predict_at_exits(X[new])[:, -1] == y[new])
    rows = []
    for loss in ("accuracy_drop", "disagreement"):
        for alpha in ALPHAS:
            policy = RiskControlledPolicy(FrozenEstimator(fitted), alpha, 0.1, loss=loss, random_state=seed)
            policy.fit(X[calibrate], y[calibrate])
            lost = last - policy.score(X[new], y[new])
            rows.append(
                {"method": name, "loss": loss, "alpha": alpha, "split": seed, "lost": lost}
                | {"cost": policy.mean_cost(X[new])}
            )
    return rows


def tables(at_budgets: pd.DataFrame, controlled: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Means over the splits with 95 % intervals; gains over the baseline are paired."""
    accuracy = at_budgets.pivot(index=["method", "split"], columns="budget", values="accuracy").rename(columns=percent)
    order = at_budgets["method"].unique()
    gain = 100 * (accuracy - accuracy.loc[BASELINE].reindex(accuracy.index, level="split"))
    groups = gain.groupby("method")
    gains = groups.mean().round(1).astype(str) + " ± " + half_width(groups).round(1).astype(str)
    means = (100 * accuracy.groupby("method").mean()).round(1)
    eefp = at_budgets[at_budgets["budget"] == 0.5].groupby("method")["EEFP"].mean().round(3)
    costs = at_budgets.pivot_table(index="method", columns="budget", values="cost").rename(columns=percent)
    parts = [
        means.add_prefix("accuracy (%) at "),
        gains.add_prefix("gain (points) at "),
        (100 * costs).round(1).add_prefix("cost (%) at "),
        eefp,
    ]
    budgets = pd.concat(parts, axis=1)
    settings = ["method", "loss", "alpha"]
    in_percent = controlled.assign(**{"cost (%)": 100 * controlled["cost"], "lost (points)": 100 * controlled["lost"]})
    risks = write(in_percent.groupby(settings, sort=False)[["cost (%)", "lost (points)"]], 1)
    return {"anchors": budgets.loc[order], "controlled": risks}


def main() -> None:
    options = argument_parser(__doc__)
    options.set_defaults(pool=["avg", "max"])
    options = options.parse_args()
    X, y = extract(options.data_root, options.weights, options.pool)
    measured = [measure(X, y, seed) for seed in range(options.splits)]
    frames = (pd.DataFrame([row for split in measured for row in split[part]]) for part in (0, 1))
    for name, table in tables(*frames).items():
        print(table.to_string(), end="\n\n")
        if options.out:
            Path(options.out).mkdir(parents=True, exist_ok=True)
            table.to_csv(Path(options.out, f"{name}.csv"))


if __name__ == "__main__":
    main()
