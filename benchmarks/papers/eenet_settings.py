"""What the EENet paper's tables are measured on again: networks with exits, and the policies that are compared."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import nn

from benchmarks.papers.fine_tune import (
    LOADERS,
    MAX_LENGTH,
    N_CLASSES,
    MultiExitEncoder,
    exits_of,
    heads_of,
    load_fine_tuned,
)
from benchmarks.papers.which_policy import extract_caches, join
from benchmarks.shared.data import load_cifar100
from benchmarks.shared.networks import (
    EFFICIENTNET_BLOCKS,
    N_PIXELS,
    TokenBatches,
    extract_cifar100,
    load_efficientnet,
    load_minilm,
    load_network,
)
from benchmarks.shared.routing import EXITS
from skexit import (
    EENetPolicy,
    ExitArray,
    ExitEnsemble,
    ExitHeads,
    FeatureCache,
    OptimalStoppingPolicy,
    ThresholdPolicy,
    stack_exits,
)
from skexit.extraction import ExitExtractor
from skexit.policies import BudgetedPolicy

CIFAR10_POOL = ("avg", "max", "grid4")
CIFAR10_EXITS = (2, 5, 8)  # of the nine that are kept: after blocks 9, 18 and 27
CIFAR100_EXITS = (3, 7, 11, 15)


@dataclass
class Backbone:
    """A network and its exits.

    Parameters
    ----------
    network : torch.nn.Module
    exits : list of str
        Names of the modules after which it can stop.
    head : "output", None or list of str
        What has logits of its own, as in :class:`ExitExtractor`.
    pool : str or tuple of str
    example_input : tensor or dict of tensors
        One row, of a typical length.
    """

    network: nn.Module
    exits: list[str]
    head: str | list[str] | None
    pool: str | tuple[str, ...]
    example_input: Any


@dataclass
class Setting:
    """A network with exits, and what these say of held-out rows.

    Parameters
    ----------
    backbone : Backbone
    heads : ExitHeads or None
        Heads of the exits that have no logits of their own.
    X : ExitArray
        Features and logits of held-out rows, with costs in FLOPs, heads included.
    y : ndarray of shape (n_rows,)
    plain_flops : float
        FLOPs of the network without early exits.
    """

    backbone: Backbone
    heads: ExitHeads | None
    X: ExitArray
    y: np.ndarray
    plain_flops: float

    @cached_property
    def logits(self) -> ExitArray:
        """`X` without the features, in memory."""
        layout = self.X.layout
        logits = stack_exits([self.X.logits(k) for k in range(layout.n_exits)])
        return logits.with_layout(layout.replace(n_features=[0] * layout.n_exits, network_cost=self.plain_flops))


def resnet(arguments: argparse.Namespace) -> Backbone:
    network, exits = load_network(arguments.weights).eval(), [EXITS[k] for k in CIFAR10_EXITS]
    return Backbone(network, exits, "output", CIFAR10_POOL, torch.zeros(1, 3, 32, 32))


def efficientnet(arguments: argparse.Namespace) -> Backbone:
    exits = [EFFICIENTNET_BLOCKS[k] for k in CIFAR100_EXITS]
    return Backbone(load_efficientnet(), exits, None, "auto", torch.zeros(1, 3, N_PIXELS, N_PIXELS))


def minilm(task: str, arguments: argparse.Namespace) -> Backbone:
    """As it is before `fine_tune.py`, which changes no time and no size."""
    encoder, tokenizer = load_minilm(arguments.minilm)
    network = MultiExitEncoder(encoder, N_CLASSES[task]).eval()
    texts, y = LOADERS[task](arguments.data_root, "test")
    example = TokenBatches(tokenizer, texts, y, MAX_LENGTH[task]).batch([median_row(texts)])
    del example["labels"]
    return Backbone(network, exits_of(network), heads_of(network), "mean", example)


BACKBONES: dict[str, Callable[[argparse.Namespace], Backbone]] = {
    "CIFAR-10": resnet,
    "CIFAR-100": efficientnet,
    "SST-2": partial(minilm, "sst2"),
    "AG News": partial(minilm, "ag_news"),
}


def cifar10(arguments: argparse.Namespace) -> Setting:
    """A frozen ResNet-56 with heads that are trained on training images, as they are and augmented twice."""
    caches = extract_caches(arguments.data_root, arguments.weights, list(CIFAR10_POOL), arguments.caches)
    heads = kept(
        arguments.caches / "cifar10-heads.joblib", lambda: train_heads(*keep_exits(*join(caches[0]), CIFAR10_EXITS))
    )
    X, y = keep_exits(*join(caches[1]), CIFAR10_EXITS)
    return Setting(resnet(arguments), heads, heads.transform(X), y, X.layout.costs[-1])


def cifar100(arguments: argparse.Namespace) -> Setting:
    """A frozen EfficientNet-Lite0 of ImageNet with four heads that are trained on all training images."""

    def features(part: str) -> tuple[ExitArray, np.ndarray]:
        cache = extract_cifar100(*load_cifar100(arguments.data_root, part), arguments.caches / f"cifar100-{part}")
        return keep_exits(cache.X, cache.y, CIFAR100_EXITS)

    heads = kept(arguments.caches / "cifar100-heads.joblib", lambda: train_heads(*features("train")))
    X, y = features("test")
    return Setting(efficientnet(arguments), heads, heads.transform(X), y, X.layout.costs[-1])


def text(task: str, parts: Iterable[str], arguments: argparse.Namespace) -> Setting:
    """A MiniLM that `fine_tune.py` fine-tuned with an exit after each layer."""
    network, tokenizer = load_fine_tuned(task, arguments.fine_tuned / f"{task}.pt", arguments.minilm)
    texts, labels = zip(*(LOADERS[task](arguments.data_root, part) for part in parts), strict=True)
    texts, y = [text for part in texts for text in part], np.concatenate(labels)
    extractor = ExitExtractor(network, exits_of(network), head=heads_of(network), pool="mean")
    cache = extractor.extract(TokenBatches(tokenizer, texts, y, MAX_LENGTH[task]), arguments.caches / task)
    return Setting(minilm(task, arguments), None, cache.X, y, plain_flops_of_text(cache))


def sst2(arguments: argparse.Namespace) -> Setting:
    return text("sst2", ("dev", "test"), arguments)


def ag_news(arguments: argparse.Namespace) -> Setting:
    return text("ag_news", ("test",), arguments)


SETTINGS: dict[str, Callable[[argparse.Namespace], Setting]] = {
    "CIFAR-10": cifar10,
    "CIFAR-100": cifar100,
    "SST-2": sst2,
    "AG News": ag_news,
}


def plain_flops_of_text(cache: FeatureCache) -> float:
    """Cost of the last exit without the heads of the earlier ones."""
    n_exits, n_classes, width = cache.layout.n_exits, cache.layout.n_classes, cache.layout.n_features[0]
    return float(cache.layout.costs[-1] - (n_exits - 1) * 2 * width * n_classes)


def median_row(texts: list[str]) -> int:
    """Row of a text of median length."""
    return int(np.argsort([len(text) for text in texts], kind="stable")[len(texts) // 2])


def train_heads(X: ExitArray, y: np.ndarray) -> ExitHeads:
    """Heads with a hidden layer, at the exits that have no logits."""
    return ExitHeads((256,), dropout=0.2, learning_rate=0.005, batch_size=512, random_state=0).fit(X, y)


def kept(path: Path, train: Callable[[], ExitHeads]) -> ExitHeads:
    """What `train` gives, from a file if an earlier run left it there."""
    if not path.exists():
        joblib.dump(train(), path)
    return joblib.load(path)


def keep_exits(X: ExitArray, y: np.ndarray, exits: Iterable[int]) -> tuple[ExitArray, np.ndarray]:
    """Some exits of an array, and the labels."""
    exits, layout = list(exits), X.layout
    features = [X.features(k) for k in exits]
    return stack_exits([X.logits(k) for k in exits], features, costs=layout.costs[exits], cost_unit="FLOPs"), y


def policies(setting: str, seed: int) -> dict[str, BudgetedPolicy]:
    """What is compared, by name, not fitted."""
    published = {"init": "random", "confidence_weight": 0, "l2": 0.01, "patience": 50}
    return {
        "BranchyNet": ThresholdPolicy("entropy"),
        "MSDNet": ThresholdPolicy("max_prob"),
        "PABEE": ThresholdPolicy("vote"),
        "EENet": eenet(setting, seed),
        "EENet, as published": eenet(setting, seed, **published, learning_rate=1e-3, max_epochs=100),
        "optimal stopping": OptimalStoppingPolicy(random_state=seed),
        "recommended": OptimalStoppingPolicy(heads=ExitEnsemble(), random_state=seed),
    }


def eenet(setting: str, seed: int, **parameters: Any) -> EENetPolicy:
    """With the paper's loss weights and hidden sizes, which differ between images and texts."""
    if setting in ("SST-2", "AG News"):
        parameters = {"hidden_ratio": 2.0, "budget_loss_weight": 1e-2, "assignment_loss_weight": 1e-4} | parameters
    return EENetPolicy(random_state=seed, **parameters)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="of the ResNet-56")
    parser.add_argument("--minilm", type=Path, help="folder of the encoder that was fine-tuned")
    parser.add_argument("--fine-tuned", type=Path, help="folder of sst2.pt and ag_news.pt")
    parser.add_argument("--caches", type=Path, help="folder for the features")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and figures")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    return parser
