"""Mean cost on new rows less the budget, over random splits of the packaged data.

    python -m benchmarks.papers.spend_on_new_rows [--splits 20] [--rows 300 600 1000 2500] [--methods linear ...]

A table of each method, number of fitting rows and budget: the mean of the difference with its 95 % interval, and the
standard deviation of a single split, which is what remains by chance. New rows are 2,500 that no split fits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline, make_pipeline

from benchmarks.shared.intervals import write
from skexit import ExitHeads, OptimalStoppingPolicy, ThresholdPolicy, recommended_pipeline
from skexit.datasets import load_cifar10_resnet56

BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8)
N_NEW = 2500

METHODS: dict[str, Callable[[int], Pipeline]] = {
    "linear": lambda seed: make_pipeline(ExitHeads(random_state=seed), ThresholdPolicy()),
    "linear, stopping": lambda seed: make_pipeline(
        ExitHeads(random_state=seed), OptimalStoppingPolicy(random_state=seed)
    ),
    "cascade": lambda seed: make_pipeline(
        ExitHeads((256,), cascade=True, dropout=0.2, learning_rate=0.005, batch_size=512, random_state=seed),
        ThresholdPolicy(),
    ),
    "recommended": lambda seed: recommended_pipeline(random_state=seed),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--rows", type=int, nargs="+", default=[300, 600, 1000, 2500])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    for method in options.methods:
        for n_rows in options.rows:
            results = pd.DataFrame(row for seed in range(options.splits) for row in measure(method, n_rows, seed))
            groups = results.groupby("budget")["excess"]
            table = pd.DataFrame({"excess": write(groups), "of a split": groups.std().round(4)})
            print(f"{method}, {n_rows} rows\n{table}\n", flush=True)


def measure(method: str, n_rows: int, seed: int) -> list[dict[str, Any]]:
    """What one split spends on new rows at each budget, less the budget."""
    X, y = load_cifar10_resnet56(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(X))
    fitted, new = order[:n_rows], order[-N_NEW:]
    *transformers, policy = METHODS[method](seed).fit(X[fitted], y[fitted])
    outputs = X[new]
    for transformer in transformers:
        outputs = transformer.transform(outputs)
    return [{"budget": budget, "excess": policy.with_budget(budget).mean_cost(outputs) - budget} for budget in BUDGETS]


if __name__ == "__main__":
    main()
