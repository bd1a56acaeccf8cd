"""Heads and policies against each other, and against single exits.

    python -m benchmarks.papers.which_policy --data-root DIR --weights resnet56.th --caches DIR \
        [--splits 5] [--figure PATH]

CIFAR-10 through a frozen ResNet-56 with nine exits. `--data-root` and `--weights` are those of
``em_routing.py``; `--caches` is a folder for the features, 2 GB, which are extracted once. Heads of
three kinds:

linear
    linear heads on the averages, cross-fitted on the rows that the policies are fitted on;
cascade
    one hidden layer that is handed on from exit to exit, on average, maximum, grid and covariance, cross-fitted on
    the same rows, and each exit mixed with those before it;
cascade, training images
    the same, trained once on the images that the network was trained on, as they are and augmented.

The last two learn from the network's own logits; ``cascade, labels`` and ``cascade, training images, labels``
are the same without these. The seconds that heads take to fit are beside them.

Policies are fitted on half of the test images and measured on the other half, split after split; so is each exit, as if
all images stopped there. Budgets
and costs are fractions of the plain network's cost; what the heads cost is in them. Nothing is chosen by
the rows that measure.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.shared.data import load_images, normalize, read_images
from benchmarks.shared.intervals import half_width
from benchmarks.shared.networks import load_network
from benchmarks.shared.routing import EXITS, argument_parser, half_rows
from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitArray,
    ExitHeads,
    FeatureCache,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    ThresholdPolicy,
    recommended_heads,
    recommended_pipeline,
    stack_exits,
)
from skexit.extraction import ExitExtractor
from skexit.policies import BudgetedPolicy

BUDGETS = np.array([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
BASELINE = "maximum probability, quotas"
RECOMMENDED = "optimal stopping"
SINGLE = "fixed exit"
LINEAR, CASCADE, TRAINED = "linear", "cascade", "cascade, training images"
LABELS = ", labels"


class AugmentedImages(Dataset):
    """Training images, cropped, mirrored and tinted a little, the same way in every run.

    So little that the network is right for 95 % of them. Of the images as they are it knows all by heart, so
    that late exits would learn nothing of its mistakes.
    """

    def __init__(self, images: np.ndarray, y: np.ndarray, seed: int) -> None:
        from torchvision import transforms

        self.images, self.y, self.seed = images, y.astype(np.int64), seed
        self.augment = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomResizedCrop(32, scale=(0.8, 1), ratio=(0.9, 1.1)),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(0.2, 0.2, 0.2),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed * 1_000_003 + index)
            return normalize(self.augment(self.images[index])), self.y[index]


def extract_caches(data_root: Path, weights: Path, pool: list[str], folder: Path) -> tuple[list[FeatureCache], ...]:
    """Features of the images that heads are trained on, and of the test images."""
    images, y = read_images(data_root, "train")
    training = {"train": load_images(data_root, "train")}
    training |= {f"augmented-{seed}": AugmentedImages(images, y, seed) for seed in (1, 2)}
    extractor = ExitExtractor(load_network(weights), exits=EXITS, pool=tuple(pool), dtype="float16")

    def extract(name: str, data: Dataset) -> FeatureCache:
        return extractor.extract(DataLoader(data, batch_size=50), folder / name)

    return [extract(*item) for item in training.items()], [extract("test", load_images(data_root, "test"))]


def join(caches: list[FeatureCache]) -> tuple[ExitArray, np.ndarray]:
    """Rows of several caches, one after the other, in memory."""
    values = np.empty((sum(map(len, caches)), caches[0].layout.n_columns), dtype=np.float16)
    start = 0
    for cache in caches:
        for batch in cache.X.batches(4096):
            values[start + batch.start : start + batch.stop] = np.asarray(cache.X[batch])
        start += len(cache)
    return ExitArray.from_array(values, caches[0].layout), np.concatenate([cache.y for cache in caches])


def averages(X: ExitArray) -> ExitArray:
    """The averages alone, which come first of what is kept of an exit."""
    widths = [16, 16, 16, 32, 32, 32, 64, 64, 64]
    features = [X.features(k)[:, :width] for k, width in enumerate(widths)]
    logits = [X.logits(k) for k in range(X.layout.n_exits)]
    return stack_exits(logits, features, costs=X.layout.costs, cost_unit=X.layout.cost_unit)


def logits_only(X: ExitArray) -> ExitArray:
    layout = X.layout
    logits = stack_exits([X.logits(k) for k in range(layout.n_exits)])
    return logits.with_layout(layout.replace(n_features=[0] * layout.n_exits))


def add_logits(
    kind: str, X: ExitArray, y: np.ndarray, fit: np.ndarray, test: np.ndarray, trained: dict[str, ExitHeads]
) -> tuple[ExitArray, ExitArray]:
    """Rows to fit policies on and rows to measure on, with the logits of heads."""
    if kind == LINEAR:
        X, heads = averages(X), ExitHeads(distillation=0, random_state=0)
        return heads.fit_transform(X[fit], y[fit]), heads.transform(X[test])
    ensemble = recommended_pipeline(heads=trained.get(kind), random_state=0)["ensemble"]
    if kind == CASCADE + LABELS:
        ensemble.heads.set_params(distillation=0)
    X_fit = ensemble.fit_transform(X[fit], y[fit])
    return logits_only(X_fit), logits_only(ensemble.transform(X[test]))


def policies(seed: int) -> dict[str, BudgetedPolicy]:
    return {
        BASELINE: ThresholdPolicy(),
        RECOMMENDED: OptimalStoppingPolicy(random_state=seed),
        "optimal stopping, most confident": OptimalStoppingPolicy(use_most_confident=True, random_state=seed),
        "EENet": EENetPolicy(random_state=seed),
        "JEI": JEIGatedEnsemble(budget=0.5, random_state=seed),
        "EM": EMExitAssigner(budget=0.5, random_state=seed),
    }


def measure(
    kind: str, X: ExitArray, y: np.ndarray, trained: dict[str, ExitHeads], seed: int
) -> list[dict[str, object]]:
    """Accuracy and cost of every policy on one kind of heads, at each budget, and of every exit, on one split."""
    fit, test = half_rows(len(y), seed)
    network = np.mean(X.logits(X.layout.n_exits - 1, test).argmax(axis=1) == y[test])
    start = time.perf_counter()
    X_fit, X_test = add_logits(kind, X, y, fit, test, trained)
    seconds_of_heads = time.perf_counter() - start
    results: list[dict[str, object]] = []
    for name, policy in policies(seed).items():
        start = time.perf_counter()
        policy.fit(X_fit, y[fit])
        seconds = time.perf_counter() - start
        for budget in BUDGETS:
            at_budget = policy.with_budget(budget)
            results.append(
                {
                    "heads": kind,
                    "policy": name,
                    "budget": budget,
                    "split": seed,
                    "accuracy": at_budget.score(X_test, y[test]),
                    "cost": at_budget.mean_cost(X_test),
                    "network": network,
                    "seconds to fit": seconds,
                    "seconds of heads": seconds_of_heads,
                }
            )
    for k, cost in enumerate(X_test.layout.cost_fractions):
        accuracy = np.mean(X_test.logits(k).argmax(axis=1) == y[test])
        exit_alone = {"heads": kind, "policy": SINGLE, "budget": cost, "split": seed}
        results.append({**exit_alone, "accuracy": accuracy, "cost": cost, "network": network})
    return results


def differences(results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Mean accuracy, its difference to the baseline, and half the difference's paired 95 % interval."""
    keys = ["heads", "policy"]
    accuracy = results.pivot(index=[*keys, "split"], columns="budget", values="accuracy")
    baseline = accuracy.xs(BASELINE, level="policy").reindex(accuracy.index.droplevel("policy"))
    difference = accuracy - baseline.to_numpy()
    return accuracy.groupby(keys).mean(), difference.groupby(keys).mean(), half_width(difference.groupby(keys))


def summarize(results: pd.DataFrame) -> str:
    """Tables of means over the splits."""
    results = results[results["policy"] != SINGLE]
    accuracy, difference, error = differences(results)
    keys = ["heads", "policy"]
    tables = {
        "accuracy": accuracy,
        f"accuracy - {BASELINE}": difference,
        "± (95 %, paired)": error,
        "cost on new rows": results.pivot_table(index=keys, columns="budget", values="cost"),
        "seconds to fit": results.groupby(keys)[["seconds to fit", "seconds of heads"]].mean(),
    }
    text = "\n\n".join(f"{name}\n{table.round(4).to_string()}" for name, table in tables.items())
    network = results.groupby("split")["network"].first().mean()
    return f"{text}\n\nplain network: {network:.4f}"


def draw(results: pd.DataFrame, path: Path) -> None:
    """Accuracy against cost, and below what is gained over the baseline, one column a kind of heads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {
        BASELINE: ("#444444", "o", "--"),
        RECOMMENDED: ("#c0392b", "D", "-"),
        "EENet": ("#6aa36a", "^", "-"),
        "JEI": ("#e1a03c", "v", "-"),
        "EM": ("#8e6bb0", "P", "-"),
    }
    results = results[results["policy"] != SINGLE]
    _, difference, errors = differences(results)
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6.6), sharex=True, sharey="row", layout="constrained")
    titles = {LINEAR: "linear heads", CASCADE: "cascade heads", TRAINED: "cascade heads of training images"}
    for (top, bottom), (kind, title) in zip(axes.T, titles.items(), strict=True):
        of_kind = results[results["heads"] == kind]
        for place, (name, (color, marker, line)) in enumerate(shown.items()):
            style = {"color": color, "marker": marker, "markersize": 4.5, "label": name}
            means = of_kind[of_kind["policy"] == name].groupby("budget")[["cost", "accuracy"]].mean()
            top.plot(means["cost"], means["accuracy"], line, **style)
            gain, error = 100 * difference.loc[(kind, name)], 100 * errors.loc[(kind, name)]
            bottom.errorbar(BUDGETS + 0.008 * (place - 2), gain, error, linestyle=line, linewidth=1, **style)
        top.axhline(of_kind["network"].mean(), color="#999999", linewidth=1, zorder=0)
        top.set_title(title, fontsize=11)
        bottom.set_xlabel("mean cost / cost of the network")
        for ax in (top, bottom):
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("gain over maximum probability\nin points of accuracy")
    axes[0, 0].text(0.3, results["network"].mean() + 0.004, "the network", color="#777777", fontsize=9)
    axes[0, 2].legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.set_defaults(pool=["avg", "max", "grid4", "cov"])
    parser.add_argument("--caches", type=Path, required=True, help="folder for the features")
    parser.add_argument("--figure", type=Path, help="image file to draw accuracy against cost in")
    options = parser.parse_args()
    training, test = extract_caches(options.data_root, options.weights, options.pool, options.caches)
    rows = join(training)
    trained = {}
    for kind, distillation in ((TRAINED, "auto"), (TRAINED + LABELS, 0)):
        start = time.perf_counter()
        trained[kind] = recommended_heads(random_state=0).set_params(distillation=distillation).fit(*rows)
        print(f"{kind}: {time.perf_counter() - start:.0f} s to fit on {len(rows[1])} rows")
    X, y = join(test)
    results = pd.DataFrame(
        [
            row
            for seed in range(options.splits)
            for kind in (LINEAR, CASCADE, CASCADE + LABELS, *trained)
            for row in measure(kind, X, y, trained, seed)
        ]
    )
    if options.out:
        results.to_csv(options.out, index=False)
    if options.figure:
        draw(results, options.figure)
    print(summarize(results))


if __name__ == "__main__":
    main()
