"""EM routing against confidence thresholds on CIFAR-10, nine exits of a frozen ResNet-56.

    python benchmarks/em_routing.py --data-root DIR --weights resnet56.th [--pool avg] [--splits 5]

`--data-root` holds CIFAR-10 as torchvision stores it (downloaded there when it is missing and there
is a network), or ``cifar10.npz`` with ``X_test`` (10000, 32, 32, 3) and ``y_test``. `--weights` is a
checkpoint of the CIFAR ResNet-56 with option A shortcuts: a dict with a ``state_dict``.

Heads and policies are fitted on a random half of the test images, which the network has not seen,
and measured on the other half; the table has means over the splits, and half the width of their
95 % interval.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from resnet_cifar import resnet56
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from skexit import EMExitAssigner, ExitArray, ExitHeads, ThresholdPolicy
from skexit.extraction import ExitExtractor

BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9)
EXITS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (2, 5, 8)]


def load_test_images(root: Path) -> TensorDataset:
    if (root / "cifar10.npz").exists():
        arrays = np.load(root / "cifar10.npz")
        images, y = arrays["X_test"], arrays["y_test"]
    else:
        from torchvision.datasets import CIFAR10

        data = CIFAR10(root, train=False, download=True)
        images, y = data.data, np.asarray(data.targets)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    return TensorDataset(inputs, torch.from_numpy(y.astype(np.int64)))


def compare(X: ExitArray, y: np.ndarray, seed: int) -> list[dict[str, object]]:
    """Accuracy and mean cost of each method on one split."""
    rows = np.random.default_rng(seed).permutation(len(y))
    fit, test = rows[: len(y) // 2], rows[len(y) // 2 :]
    heads = ExitHeads(random_state=seed)
    X_fit, X_test = heads.fit_transform(X[fit], y[fit]), heads.transform(X[test])
    confidence = ThresholdPolicy(budget=BUDGETS[0]).fit(X_fit, y[fit])
    results = []
    for budget in BUDGETS:
        policies = {
            "maximum probability": confidence.with_budget(budget),
            "EM": EMExitAssigner(budget=budget, random_state=seed),
            "EM, routers alone": EMExitAssigner(budget=budget, confidence_weight=0, random_state=seed),
        }
        for name, policy in policies.items():
            if name != "maximum probability":
                policy.fit(X_fit, y[fit])
            accuracy, cost = policy.score(X_test, y[test]), policy.mean_cost(X_test)
            results.append({"method": name, "budget": budget, "split": seed, "accuracy": accuracy, "cost": cost})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--pool", nargs="+", default=["avg"])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--out", type=Path, help="CSV file for the result of every split")
    options = parser.parse_args()

    network = resnet56()
    checkpoint = torch.load(options.weights, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("module."): value for name, value in checkpoint.items()})
    loader = DataLoader(load_test_images(options.data_root), batch_size=250)
    with tempfile.TemporaryDirectory() as folder:
        cache = ExitExtractor(network, exits=EXITS, pool=tuple(options.pool)).extract(loader, Path(folder, "cache"))
        X = ExitArray.from_array(np.asarray(cache.X), cache.layout)
        y = cache.y
    results = pd.DataFrame([row for seed in range(options.splits) for row in compare(X, y, seed)])
    if options.out:
        results.to_csv(options.out, index=False)
    print(summarize(results).to_string())


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Means and 95 % intervals over the splits; differences to maximum probability are paired."""
    accuracy = results.pivot(index=["method", "split"], columns="budget", values="accuracy")
    difference = accuracy - accuracy.loc["maximum probability"].reindex(accuracy.index, level="split")
    n_splits = results["split"].nunique()
    half_width = stats.t.ppf(0.975, n_splits - 1) * difference.groupby("method").std() / np.sqrt(n_splits)
    tables = {
        "accuracy": accuracy.groupby("method").mean(),
        "realised cost": results.pivot_table(index="method", columns="budget", values="cost"),
        "accuracy - maximum probability": difference.groupby("method").mean(),
        "± (95 %, paired)": half_width,
    }
    return pd.concat(tables).round(4)


if __name__ == "__main__":
    main()
