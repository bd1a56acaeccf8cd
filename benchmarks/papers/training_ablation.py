"""How heads are trained, and what for: CIFAR-10 with nine exits of a frozen ResNet-56.

    python -m benchmarks.papers.training_ablation --data-root DIR --weights resnet56.th [--splits 5] [--out CSV]

`--data-root` and `--weights` are those of ``em_routing.py``. Maximum probability with geometric shares
decides on heads that are trained separately, as a boosted sum, and with weighted samples; JEI-DNN
trains modules and gates. All are compared on the same splits. They are fitted for a budget of 0.7, and
``with_budget`` gives the others: modules that are trained with gates stay those of the price that 0.7 takes.

It also prints the accuracy of each head on all samples, and how long fits take.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from benchmarks.papers.weighted_heads import WeightedHeads
from benchmarks.shared.intervals import gain_at_same_cost, half_width
from benchmarks.shared.routing import BASELINE, BUDGETS, argument_parser, extract, half_rows, measure_policy, summarize
from skexit import ExitArray, ExitHeads, JEIGatedEnsemble, ThresholdPolicy
from skexit.data._walk import correct_exits
from skexit.policies import ExitPolicy

JEI = {"JEI-DNN": {}, "JEI-DNN, joint=False": {"joint": False}}
FITTED_BUDGET = 0.7

Rows = list[dict[str, object]]


def make_policies(seed: int) -> dict[str, ExitPolicy]:
    heads = {
        BASELINE: ExitHeads(random_state=seed),
        "boosted": ExitHeads(training="boosted", random_state=seed),
        "weighted": WeightedHeads(random_state=seed),
    }
    on_heads = {method: ThresholdPolicy(budget=FITTED_BUDGET, heads=trained) for method, trained in heads.items()}
    with_gates = {
        method: JEIGatedEnsemble(budget=FITTED_BUDGET, random_state=seed, **parameters)
        for method, parameters in JEI.items()
    }
    return on_heads | with_gates


def measure_split(X: ExitArray, y: np.ndarray, seed: int) -> dict[str, Rows]:
    fit, test = half_rows(len(y), seed)
    X_fit, y_fit, X_test, y_test = X[fit], y[fit], X[test], y[test]
    results: dict[str, Rows] = {"accuracy": [], "heads": [], "fits": []}
    for method, policy in make_policies(seed).items():
        start = time.perf_counter()
        policy.fit(X_fit, y_fit)
        notes = {"seconds": time.perf_counter() - start, "lam": getattr(policy, "lam_", np.nan)}
        place = {"method": method, "split": seed}
        results["fits"].append(place | notes | {"epochs": getattr(policy, "n_epochs_", np.nan)})
        right = correct_exits(policy.heads_.transform(X_test), y_test)
        results["heads"] += [place | {"exit": k, "right": of_exit.mean()} for k, of_exit in enumerate(right.T)]
        for budget in BUDGETS:
            moved = policy.with_budget(budget)
            results["accuracy"].append(place | {"budget": budget} | measure_policy(moved, X_test, y_test))
    return results


def gains_by_budget(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Gain over maximum probability on separate heads at the same cost on new rows, with half its 95 % interval."""
    gains = accuracy.assign(gain=gain_at_same_cost(accuracy, BASELINE))
    groups = gains.pivot(index=["method", "split"], columns="budget", values="gain").groupby("method")
    return pd.concat({"gain": groups.mean(), "±": half_width(groups)})


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    X, y = extract(options.data_root, options.weights, options.pool)
    splits = [measure_split(X, y, seed) for seed in range(options.splits)]
    results = {name: pd.DataFrame([row for split in splits for row in split[name]]) for name in splits[0]}
    if options.out:
        pd.concat(results).to_csv(options.out)
    tables = {
        "accuracy within budgets": summarize(results["accuracy"]),
        "at the same cost on new rows": gains_by_budget(results["accuracy"]),
        "heads on all samples": results["heads"].pivot_table(index="method", columns="exit", values="right"),
        "fits": results["fits"].groupby("method", sort=False).mean(),
    }
    for name, table in tables.items():
        print(f"\n{name}\n{table.round(4).to_string()}", flush=True)


if __name__ == "__main__":
    main()
