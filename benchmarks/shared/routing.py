"""What benchmarks of routing share: nine exits of a frozen ResNet-56 on CIFAR-10, split after split."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from benchmarks.shared.data import load_images
from benchmarks.shared.intervals import half_width
from benchmarks.shared.networks import load_network
from skexit import ExitArray, ExitHeads
from skexit.extraction import ExitExtractor
from skexit.policies import ExitPolicy

BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9)
EXITS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (2, 5, 8)]
BASELINE = "maximum probability"

#: Gives fitted policies by name, from the rows to fit on, their labels, a budget and a seed.
FitPolicies = Callable[[ExitArray, np.ndarray, float, int], dict[str, ExitPolicy]]


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--pool", nargs="+", default=["avg"])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--out", type=Path, help="CSV file for the result of every split")
    return parser


def extract(
    data_root: Path,
    weights: Path,
    pool: list[str],
    part: str = "test",
    n_images: int | None = None,
    exits: list[str] = EXITS,
) -> tuple[ExitArray, np.ndarray]:
    """Features of the exits, nine by default, on the images of a part, and their labels."""
    network = load_network(weights)
    loader = DataLoader(load_images(data_root, part, n_images), batch_size=250)
    with tempfile.TemporaryDirectory() as folder:
        cache = ExitExtractor(network, exits=exits, pool=tuple(pool)).extract(loader, Path(folder, "cache"))
        return ExitArray.from_array(np.asarray(cache.X), cache.layout), cache.y


def half_rows(n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows to measure on, at random."""
    rows = np.random.default_rng(seed).permutation(n_rows)
    return rows[: n_rows // 2], rows[n_rows // 2 :]


def split(X: ExitArray, y: np.ndarray, seed: int) -> tuple[ExitArray, np.ndarray, ExitArray, np.ndarray]:
    """Rows to fit on and rows to measure on, both with the logits of heads fitted on the former."""
    fit, test = half_rows(len(y), seed)
    heads = ExitHeads(random_state=seed)
    return heads.fit_transform(X[fit], y[fit]), y[fit], heads.transform(X[test]), y[test]


def compare(X: ExitArray, y: np.ndarray, n_splits: int, fit_policies: FitPolicies) -> pd.DataFrame:
    """Accuracy and mean cost of each method, on each split and at each budget."""
    results = []
    for seed in range(n_splits):
        X_fit, y_fit, X_test, y_test = split(X, y, seed)
        for budget in BUDGETS:
            for name, policy in fit_policies(X_fit, y_fit, budget, seed).items():
                results.append(
                    {
                        "method": name,
                        "budget": budget,
                        "split": seed,
                        "accuracy": policy.score(X_test, y_test),
                        "cost": policy.mean_cost(X_test),
                        "fitted cost": policy.mean_cost(X_fit),
                    }
                )
    return pd.DataFrame(results)


def measure_policy(policy: ExitPolicy, X: ExitArray, y: np.ndarray) -> dict[str, float]:
    """Accuracy, and mean cost on these rows and on the fitted ones."""
    fitted_cost = float(policy.exit_distribution_ @ policy.costs_)
    return {"accuracy": policy.score(X, y), "cost": policy.mean_cost(X), "fitted cost": fitted_cost}


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Means and 95 % intervals over the splits; differences to maximum probability are paired."""
    accuracy = results.pivot(index=["method", "split"], columns="budget", values="accuracy")
    difference = accuracy - accuracy.loc[BASELINE].reindex(accuracy.index, level="split")
    tables = {
        "accuracy": accuracy.groupby("method").mean(),
        "cost on fitted rows": results.pivot_table(index="method", columns="budget", values="fitted cost"),
        "cost on new rows": results.pivot_table(index="method", columns="budget", values="cost"),
        f"accuracy - {BASELINE}": difference.groupby("method").mean(),
        "± (95 %, paired)": half_width(difference.groupby("method")),
    }
    return pd.concat(tables).round(4)
