"""Figures 2 to 5 of the JEI-DNN paper: CIFAR-10, CIFAR-100 and CIFAR100-LT through frozen networks.

    python -m benchmarks.papers.jei_paper DATA --data-root DIR --caches DIR \
        --results docs/benchmarks/jei [--weights FILE]

DATA is one of

cifar10
    nine exits of a ResNet-56, whose `--weights` are those of ``em_routing.py``. It was trained on the training
    images: 5,000 test images are fitted on, 1,000 calibrate, 4,000 are measured on;
cifar100
    sixteen exits of EfficientNet-Lite0, which was trained on ImageNet. 5,000 training images are fitted on;
    of the test images 1,000 calibrate, and 4,000 others are measured on;
cifar100-lt
    the same, fitted on some 5,400 training images, 250 of the first class and 2 of the last.

Modules are linear, on averages of the feature maps.

`--data-root` is that of ``em_routing.py`` and ``shared/data.py``; `--caches` is a folder for features, which are
extracted once. ``--results`` is a folder for tables and figures, all named after DATA; ``DATA-splits.csv``
has every method on every split, and tables have means with 95 % t-intervals. Gains are over maximum
probability with geometric shares on separately trained heads, on the same split and at the same cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.papers.jei_ablation import PAPERS_SETTINGS
from benchmarks.papers.jei_figures import draw
from benchmarks.papers.weighted_heads import WeightedHeads
from benchmarks.shared.data import load_cifar100, long_tail_rows
from benchmarks.shared.intervals import gain_at_same_cost, percent, write
from benchmarks.shared.networks import extract_cifar100
from benchmarks.shared.routing import argument_parser, extract
from skexit import (
    ExitArray,
    ExitHeads,
    FeatureCache,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    ThresholdPolicy,
    recommended_pipeline,
    stack_exits,
)
from skexit.metrics import exit_report
from skexit.policies import ExitPolicy
from skexit.uncertainty import coverage_score, expected_calibration_error, fit_temperature, inefficiency_score, softmax

DATA = ("cifar10", "cifar100", "cifar100-lt")
N_FIT = 5_000
#: Images of the first class of the long tail; of the last there is one for a hundred of these.
N_LARGEST = 250
#: Numbers that are kept of a channel: its average first, then its maximum and averages on a grid of four.
N_POOLED = 6
BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: Budgets of the baseline, between whose costs lines are drawn.
EVERYWHERE = tuple(np.linspace(0.2, 1, 9).round(2).tolist())
FITTED_BUDGET = 0.6
PRICES = (0.3, 1.0, 2.0, 4.0)
ALPHA = 0.05

BASELINE, SHARED = "maximum probability", "maximum probability, shared threshold"
BOOSTED, WEIGHTED = "BoostedNet", "L2W"
DEFAULT, GATES, PAPER = "JEI-DNN", "JEI-DNN, joint=False", "JEI-DNN, the paper's"
OPTIMAL, RECOMMENDED = "optimal stopping", "recommended pipeline"

Rows = list[dict[str, object]]


@dataclass
class Part:
    """Rows and their labels."""

    X: ExitArray
    y: np.ndarray


@dataclass
class DataSplit:
    """Rows to fit on, to calibrate with and to measure on."""

    fit: Part
    calibration: Part
    test: Part

    def with_heads(self, heads: ExitHeads) -> DataSplit:
        """The same rows with the logits of heads that are fitted here."""
        fit = Part(heads.fit_transform(self.fit.X, self.fit.y), self.fit.y)
        others = [Part(heads.transform(part.X), part.y) for part in (self.calibration, self.test)]
        return DataSplit(fit, *others)


def cifar10(data_root: Path, weights: Path, pool: list[str]) -> Callable[[int], DataSplit]:
    X, y = extract(data_root, weights, pool)

    def split(seed: int) -> DataSplit:
        rows = np.random.default_rng(seed).permutation(len(y))
        return DataSplit(*(Part(X[part], y[part]) for part in np.split(rows, [5000, 6000])))

    return split


def cifar100(data_root: Path, caches: Path, long_tail: bool) -> Callable[[int], DataSplit]:
    train, test = (
        extract_cifar100(*load_cifar100(data_root, part), caches / f"cifar100-{part}") for part in ("train", "test")
    )

    def take(cache: FeatureCache, rows: np.ndarray) -> Part:
        rows, layout = np.sort(rows), cache.layout
        features = [cache.X.features(k, rows) for k in range(layout.n_exits)]
        averages = [block[:, : block.shape[1] // N_POOLED] for block in features]
        return Part(stack_exits(features=averages, costs=layout.costs, cost_unit=layout.cost_unit), cache.y[rows])

    def split(seed: int) -> DataSplit:
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(train))
        fit = rows[long_tail_rows(train.y[rows], n_largest=N_LARGEST)] if long_tail else rows[:N_FIT]
        calibration, measured, _ = np.split(rng.permutation(len(test)), [1000, 5000])
        return DataSplit(take(train, fit), take(test, calibration), take(test, measured))

    return split


def fitted_policies(split: DataSplit, seed: int) -> Iterator[tuple[str, float, ExitPolicy, DataSplit]]:
    """Methods, their setting (a budget or a price), the policy, and the rows with what it needs."""
    heads = {
        BASELINE: ExitHeads(cv=3, random_state=seed),
        BOOSTED: ExitHeads(training="boosted", cv=3, random_state=seed),
        WEIGHTED: WeightedHeads(cv=3, random_state=seed),
    }
    for method, trained in heads.items():
        rows = split.with_heads(trained)
        X, y = rows.fit.X, rows.fit.y
        thresholds = ThresholdPolicy(budget=0.5).fit(X, y)
        for budget in EVERYWHERE if method == BASELINE else BUDGETS:
            yield method, budget, thresholds.with_budget(max(budget, thresholds.costs_[0])), rows
        if method == BASELINE:
            on_these = {
                SHARED: ThresholdPolicy(schedule="shared"),
                OPTIMAL: OptimalStoppingPolicy(random_state=seed),
                GATES: JEIGatedEnsemble(budget=FITTED_BUDGET, joint=False, random_state=seed),
            }
            for name, policy in on_these.items():
                policy.fit(X, y)
                yield from ((name, budget, policy.with_budget(budget), rows) for budget in BUDGETS)
    jointly = JEIGatedEnsemble(budget=FITTED_BUDGET, random_state=seed).fit(split.fit.X, split.fit.y)
    yield from ((DEFAULT, budget, jointly.with_budget(budget), split) for budget in BUDGETS)
    for lam in PRICES:
        paper = JEIGatedEnsemble(lam, early_stopping=False, random_state=seed, **PAPERS_SETTINGS)
        yield PAPER, lam, paper.fit(split.fit.X, split.fit.y), split
    rows = split.with_heads(recommended_pipeline(random_state=seed)["ensemble"])
    stopping = OptimalStoppingPolicy(random_state=seed).fit(rows.fit.X, rows.fit.y)
    yield from ((RECOMMENDED, budget, stopping.with_budget(budget), rows) for budget in BUDGETS)


def measure_policy(policy: ExitPolicy, rows: DataSplit) -> dict[str, float]:
    """Cost, as a fraction of the network's, and what is right and what is said of how sure it is."""
    X, y = rows.test.X, rows.test.y
    policy.calibrate(rows.calibration.X, rows.calibration.y)
    probabilities = policy.predict_proba(X)
    result = {
        "cost": policy.mean_cost(X),
        "accuracy": float((policy.classes_[probabilities.argmax(axis=1)] == y).mean()),
        "ECE": expected_calibration_error(y, probabilities, labels=policy.classes_),
    }
    for method in ("gated", "general"):
        sets = policy.predict_set(X, alpha=ALPHA, method=method)
        result[f"{method} size"] = inefficiency_score(sets)
        result[f"{method} coverage"] = coverage_score(y, sets, labels=policy.classes_)
    return result


def measure_exits(policy: ExitPolicy, rows: DataSplit) -> Rows:
    """Of each exit: who leaves, how often it is right, and its calibration error on all rows (Figures 3 and 4)."""
    test = rows.test
    report = exit_report(
        test.y, policy.predict_at_exits(test.X), policy.predict_exit(test.X), policy.costs_, output="frame"
    )
    report = report.drop(index="total").reset_index(drop=True)[["share", "accuracy_leaving", "accuracy_all"]]
    logits = [_logits(policy, part.X) for part in (rows.calibration, test)]
    calibration_labels = np.searchsorted(policy.classes_, rows.calibration.y)
    result = []
    for k, row in report.iterrows():
        temperature = fit_temperature(logits[0].logits(k), calibration_labels)
        errors = {
            name: expected_calibration_error(test.y, softmax(logits[1].logits(k) / scale), labels=policy.classes_)
            for name, scale in (("ECE", 1.0), ("ECE, scaled", temperature))
        }
        result.append({"exit": k, **row, **errors})
    return result


def _logits(policy: ExitPolicy, X: ExitArray) -> ExitArray:
    return X if policy.heads_ is None else policy.heads_.transform(X)


def measure_split(split: DataSplit, seed: int) -> dict[str, Rows]:
    results: dict[str, Rows] = {"splits": [], "exits": []}
    start = time.perf_counter()
    for method, setting, policy, rows in fitted_policies(split, seed):
        place = {"method": method, "setting": setting, "split": seed}
        results["splits"].append(place | measure_policy(policy, rows))
        if setting == FITTED_BUDGET or method == PAPER:
            results["exits"] += [place | row for row in measure_exits(policy, rows)]
            print(f"split {seed}, {method}, {setting:g}: {time.perf_counter() - start:.0f} s", flush=True)
    return results


#: Name of a difference to the baseline, and what of.
DIFFERENCES = {"gain": "accuracy", "ECE difference": "ECE", "size difference": "gated size"}


def add_differences(results: pd.DataFrame) -> pd.DataFrame:
    """With what each row has more than the baseline on its split, at its cost; accuracy and ECE in points."""
    differences = {name: gain_at_same_cost(results, BASELINE, column) for name, column in DIFFERENCES.items()}
    differences |= {name: 100 * differences[name] for name in ("gain", "ECE difference")}
    return results.assign(**differences)


def points_table(results: pd.DataFrame) -> pd.DataFrame:
    """Every method at every setting."""
    shown = results[(results["method"] != BASELINE) | results["setting"].isin(BUDGETS)]
    columns = ["cost", "accuracy", "gain", "ECE", "ECE difference", "gated size", "size difference"]
    columns += ["gated coverage", "general size", "general coverage"]
    return write(shown.groupby(["method", "setting"], sort=False)[columns], digits=3).reset_index()


def tables_of_differences(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each difference by method and budget, beside what the baseline has; and the paper's training by price."""
    of_budgets = results[results["setting"].isin(BUDGETS) & (results["method"] != PAPER)]
    tables = {}
    for name, column in DIFFERENCES.items():
        differences = write(
            of_budgets[of_budgets["method"] != BASELINE].groupby(["method", "setting"], sort=False)[name], digits=2
        )
        baseline = of_budgets[of_budgets["method"] == BASELINE].groupby("setting")[column].mean()
        baseline = (baseline if name == "size difference" else 100 * baseline).map("{:.2f}".format)
        table = pd.concat([baseline.to_frame(BASELINE).T, differences.unstack("setting")]).rename(columns=percent)
        tables[name.split()[0].lower()] = table.rename_axis("method").reset_index()
    columns = ["cost", "accuracy", *DIFFERENCES, "gated coverage"]
    shares = ["cost", "accuracy", "gated coverage"]
    in_percent = results.assign(**{name: 100 * results[name] for name in shares})
    by_price = in_percent[in_percent["method"] == PAPER].groupby("setting")[columns]
    names = {"setting": "λ"} | {name: f"{name} (%)" for name in shares}
    return tables | {"paper": write(by_price, digits=1).reset_index().rename(columns=names)}


def exits_table(exits: pd.DataFrame) -> pd.DataFrame:
    by = ["method", "setting", "exit"]
    return write(exits.drop(columns="split").groupby(by, sort=False), digits=3).reset_index()


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--caches", type=Path, required=True, help="folder for features")
    parser.add_argument("--results", type=Path, required=True, help="folder for tables and figures")
    options = parser.parse_args()
    if options.data == "cifar10":
        split = cifar10(options.data_root, options.weights, options.pool)
    else:
        split = cifar100(options.data_root, options.caches, long_tail=options.data == "cifar100-lt")
    measured = []
    options.results.mkdir(parents=True, exist_ok=True)
    for seed in range(options.splits):
        measured.append(measure_split(split(seed), seed))
        tables = {name: pd.DataFrame([row for one in measured for row in one[name]]) for name in measured[0]}
        for name, table in tables.items():
            table.round(5).to_csv(options.results / f"{options.data}-{name}.csv", index=False)
    results = add_differences(tables["splits"])
    points = points_table(results)
    points.to_csv(options.results / f"{options.data}.csv", index=False)
    for name, table in tables_of_differences(results).items():
        table.to_csv(options.results / f"{options.data}-{name}.csv", index=False)
    by_exit = exits_table(tables["exits"])
    draw(tables["splits"], tables["exits"], options.results, options.data)
    print(points.to_string(), by_exit.to_string(), sep="\n\n")


if __name__ == "__main__":
    main()
