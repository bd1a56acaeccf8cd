"""What benchmarks of routing share: nine exits of a frozen ResNet-56 on CIFAR-10, split after split."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from resnet_cifar import resnet56
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

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


def load_images(root: Path, part: str = "test", n_images: int | None = None) -> TensorDataset:
    """The first images of the part "train" or "test", as the network takes them, and their labels."""
    if (root / "cifar10.npz").exists():
        arrays = np.load(root / "cifar10.npz")
        images, y = arrays[f"X_{part}"], arrays[f"y_{part}"]
    else:
        from torchvision.datasets import CIFAR10

        data = CIFAR10(root, train=part == "train", download=True)
        images, y = data.data, np.asarray(data.targets)
    images, y = images[:n_images], y[:n_images]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    return TensorDataset(inputs, torch.from_numpy(y.astype(np.int64)))


def extract(
    data_root: Path, weights: Path, pool: list[str], part: str = "test", n_images: int | None = None
) -> tuple[ExitArray, np.ndarray]:
    """Features of the nine exits on the test images, and their labels."""
    network = resnet56()
    checkpoint = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("module."): value for name, value in checkpoint.items()})
    loader = DataLoader(load_images(data_root, part, n_images), batch_size=250)
    with tempfile.TemporaryDirectory() as folder:
        cache = ExitExtractor(network, exits=EXITS, pool=tuple(pool)).extract(loader, Path(folder, "cache"))
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


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Means and 95 % intervals over the splits; differences to maximum probability are paired."""
    accuracy = results.pivot(index=["method", "split"], columns="budget", values="accuracy")
    difference = accuracy - accuracy.loc[BASELINE].reindex(accuracy.index, level="split")
    n_splits = results["split"].nunique()
    half_width = stats.t.ppf(0.975, n_splits - 1) * difference.groupby("method").std() / np.sqrt(n_splits)
    tables = {
        "accuracy": accuracy.groupby("method").mean(),
        "cost on fitted rows": results.pivot_table(index="method", columns="budget", values="fitted cost"),
        "cost on new rows": results.pivot_table(index="method", columns="budget", values="cost"),
        f"accuracy - {BASELINE}": difference.groupby("method").mean(),
        "± (95 %, paired)": half_width,
    }
    return pd.concat(tables).round(4)
