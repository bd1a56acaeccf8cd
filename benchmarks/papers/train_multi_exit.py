"""Exits that are trained with their network, compared with heads on the same network trained alone: CIFAR-10.

    python -m benchmarks.papers.train_multi_exit --data-root DIR [--seeds 5] [--blocks N] [--epochs N]
        [--images N] [--batch-size N] [--jobs N] [--out FOLDER]

ResNets for CIFAR start from the same weights and see the same batches, with an exit after each of their three
stages. They differ in what they are trained on, for the same number of epochs in all:

frozen network
    the loss of the last layer. The network is then frozen.
trained together
    the loss of all exits, `joint_cross_entropy` with the paper's weights.
network first
    the loss of the last layer in the first half of the epochs, and the loss of all exits in the second half: the
    mixed regime of "How to train your multi-exit model?" (arXiv 2407.14320).
distilled
    as the two above, with `distillation=0.5` in the loss of all exits.

Then `ExitHeads` are fitted on the same images, in the place of the heads that were trained with the network. This
separates what the network learned from what its heads learned. Policies are fitted on 5,000 training images that no
network has seen, and everything is measured on the test images. DIR holds `cifar10.npz` with X_train, y_train,
X_test and y_test, or is where torchvision finds or downloads CIFAR-10.

On a GPU: ResNet-20, 45,000 images, 40 epochs in batches of 512. Without one it says that it runs reduced:
ResNet-8 on 10,000 images for 6 epochs in batches of 128.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.shared.data import load_images
from benchmarks.shared.intervals import percent, write
from benchmarks.shared.networks import ResNetCIFAR
from skexit import ExitArray, ExitHeads, OptimalStoppingPolicy, ThresholdPolicy
from skexit.extraction import ExitExtractor
from skexit.training import MultiExitNetwork, joint_cross_entropy

EXITS = ["layer1", "layer2", "layer3"]
BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9)
N_HELD_OUT = 5_000
DISTILLATION = 0.5
FROZEN = "frozen network"
#: Share of the epochs that train the network alone, and the share of distillation in the epochs that follow.
REGIMES = {
    FROZEN: (1.0, 0.0),
    "trained together": (0.0, 0.0),
    "trained together, distilled": (0.0, DISTILLATION),
    "network first": (0.5, 0.0),
    "network first, distilled": (0.5, DISTILLATION),
}
REFITTED = ", heads fitted again"
DRAWN = (FROZEN, "trained together" + REFITTED, "network first, distilled" + REFITTED)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=3 if on_gpu else 1, help="blocks in each of three stages")
    parser.add_argument("--epochs", type=int, default=40 if on_gpu else 6)
    parser.add_argument("--images", type=int, default=45_000 if on_gpu else 10_000, help="images to train on")
    parser.add_argument("--batch-size", type=int, default=512 if on_gpu else 128)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, each in a process of its own")
    parser.add_argument("--out", type=Path, help="folder for the results as CSV, and the figure")
    options = parser.parse_args()
    device = torch.device("cuda" if on_gpu else "cpu")
    print(f"ResNet-{6 * options.blocks + 2}, {options.images:,} images, {options.epochs} epochs, on {device.type}")
    if not on_gpu:
        print("no GPU: a reduced run, whose networks are small and far from trained to their end")

    seeds = (delayed(run)(options, device, seed) for seed in range(options.seeds))
    at_exits, at_budgets = [], []
    for results in Parallel(n_jobs=options.jobs, return_as="generator")(seeds):
        for where, result in zip((at_exits, at_budgets), results, strict=True):
            where.append(result)
        report(pd.concat(at_exits), pd.concat(at_budgets), options.out)


def run(options: argparse.Namespace, device: torch.device, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`measure` of each method, for networks of one seed."""
    train = load_images(options.data_root, "train")
    test = load_images(options.data_root, "test")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held_out = TensorDataset(*train[rows[:N_HELD_OUT]])
    seen = TensorDataset(*train[rows[N_HELD_OUT:][: options.images]])
    at_exits, at_budgets = [], []
    for name, exits in trained_exits(options, device, seen, [held_out, test], seed):
        for where, result in zip((at_exits, at_budgets), measure(*exits, seed), strict=True):
            where.append(result.assign(method=name, seed=seed))
        print(f"seed {seed}, {name}: " + ", ".join(f"{value:.4f}" for value in at_exits[-1]["accuracy"]), flush=True)
    return pd.concat(at_exits), pd.concat(at_budgets)


#: X and y of the images to fit policies on, and of those to measure on.
Exits = tuple[ExitArray, np.ndarray, ExitArray, np.ndarray]


def trained_exits(
    options: argparse.Namespace, device: torch.device, seen: TensorDataset, others: list[TensorDataset], seed: int
) -> Iterator[tuple[str, Exits]]:
    for regime, (share_alone, distillation) in REGIMES.items():
        torch.manual_seed(seed)
        network = ResNetCIFAR(options.blocks).to(device, memory_format=torch.channels_last)
        n_alone = round(share_alone * options.epochs)
        if n_alone:
            train_network(network, functional.cross_entropy, seen, n_alone, options.batch_size, seed)
        if n_alone < options.epochs:
            model = MultiExitNetwork(network, EXITS, seen[:1][0])
            loss = partial(joint_cross_entropy, distillation=distillation)
            train_network(model, loss, seen, options.epochs - n_alone, options.batch_size, seed + n_alone)
            extractor = ExitExtractor(model, model.exits, head=model.head)
            (X_fit, y_fit), (X_test, y_test) = (extract(extractor, images) for images in others)
            yield regime, (X_fit, y_fit, X_test, y_test)
        yield regime if regime == FROZEN else regime + REFITTED, fit_heads(network, seen, others, seed)


def fit_heads(network: nn.Module, seen: TensorDataset, others: list[TensorDataset], seed: int) -> Exits:
    extractor = ExitExtractor(network, EXITS)
    heads = ExitHeads(random_state=seed).fit(*extract(extractor, seen))
    (X_fit, y_fit), (X_test, y_test) = (extract(extractor, images) for images in others)
    return heads.transform(X_fit), y_fit, heads.transform(X_test), y_test


def train_network(
    model: nn.Module, loss: Callable[..., torch.Tensor], seen: TensorDataset, n_epochs: int, batch_size: int, seed: int
) -> None:
    """AdamW, whose steps do not change where a loss is multiplied; images are shifted and mirrored."""
    device = next(model.parameters()).device
    images, labels = (tensor.to(device) for tensor in seen.tensors)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05)
    n_batches = len(images) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=n_batches * n_epochs)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(n_epochs):
        for rows in torch.randperm(len(images), generator=generator)[: n_batches * batch_size].split(batch_size):
            optimizer.zero_grad()
            loss(model(augment(images[rows.to(device)], generator)), labels[rows.to(device)]).backward()
            optimizer.step()
            schedule.step()


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift a batch by up to four pixels, and mirror half of it."""
    top, left = torch.randint(9, (2,), generator=generator).tolist()
    shifted = functional.pad(images, (4, 4, 4, 4))[..., top : top + 32, left : left + 32]
    is_mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    shifted = torch.where(is_mirrored[:, None, None, None], shifted.flip(3), shifted)
    return shifted.contiguous(memory_format=torch.channels_last)


def extract(extractor: ExitExtractor, images: TensorDataset) -> tuple[ExitArray, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        loader = DataLoader(images, batch_size=250)
        cache = extractor.extract(loader, Path(folder, "cache"), progress=False)
        return ExitArray.from_array(np.asarray(cache.X), cache.layout), cache.y


def measure(
    X_fit: ExitArray, y_fit: np.ndarray, X_test: ExitArray, y_test: np.ndarray, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy of each exit, and accuracy and cost of each policy at each budget."""
    layout = X_test.layout
    at_exits = pd.DataFrame(
        {
            "exit": EXITS,
            "cost": layout.cost_fractions,
            "MFLOPs": layout.costs / 1e6,
            "accuracy": [(X_test.logits(k).argmax(axis=1) == y_test).mean() for k in range(layout.n_exits)],
        }
    )
    at_budgets = []
    for budget in BUDGETS:
        for policy in (ThresholdPolicy(budget=budget), OptimalStoppingPolicy(budget, random_state=seed)):
            policy.fit(X_fit, y_fit)
            at_budgets.append(
                {
                    "policy": type(policy).__name__,
                    "budget": budget,
                    "cost": policy.mean_cost(X_test),
                    "accuracy": policy.score(X_test, y_test),
                }
            )
    return at_exits, pd.DataFrame(at_budgets)


def report(at_exits: pd.DataFrame, at_budgets: pd.DataFrame, folder: Path | None) -> None:
    tables = {"exits": summarize(at_exits, ["exit"]), "budgets": summarize(at_budgets, ["policy", "budget"])}
    for table in tables.values():
        print(table.to_string(index=False), flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        at_exits.to_csv(folder / "exits_of_seeds.csv", index=False)
        at_budgets.to_csv(folder / "budgets_of_seeds.csv", index=False)
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
        draw(at_exits, at_budgets).savefig(folder / "accuracy_cost.png", dpi=120)


def summarize(results: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Means over the seeds, and differences to heads on a frozen network with their 95 % intervals."""
    accuracy = results.pivot(index=[*keys, "seed"], columns="method", values="accuracy")
    groups = results.groupby([*keys, "method"], sort=False)[["cost", "accuracy"]].mean().unstack("method")
    table = {}
    methods = list(results["method"].unique())
    for method in methods:
        if method == FROZEN:
            continue
        difference = 100 * (accuracy[method] - accuracy[FROZEN])
        table[f"gain (points), {method}"] = write(difference.groupby(level=keys, sort=False), digits=1)
    for method in methods:
        for value in groups.columns.levels[0]:
            table[f"{value} (%), {method}"] = (100 * groups[value, method]).round(1)
    named = pd.DataFrame(table).reset_index()
    return named.assign(budget=named["budget"].map(percent)) if "budget" in keys else named


def draw(at_exits: pd.DataFrame, at_budgets: pd.DataFrame) -> object:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.subplots()
    for color, method in zip(("C1", "C2", "C0"), DRAWN, strict=True):
        exits = at_exits[at_exits["method"] == method].groupby("exit", sort=False)[["cost", "accuracy"]].mean()
        axes.plot(exits["cost"], exits["accuracy"], "s:", color=color, label=f"{method}: each exit for all")
        for policy, style in {"ThresholdPolicy": "o--", "OptimalStoppingPolicy": "o-"}.items():
            chosen = at_budgets[(at_budgets["method"] == method) & (at_budgets["policy"] == policy)]
            mean = chosen.groupby("budget")[["cost", "accuracy"]].mean()
            axes.plot(mean["cost"], mean["accuracy"], style, color=color, ms=4, label=f"{method}: {policy}")
    axes.set(xlabel="mean cost, as a fraction of the whole network's FLOPs", ylabel="accuracy on the test images")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8, ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    main()
