"""Live networks of all policies beside the plain one, a static one of about the same cost, and earlyon.

    python -m benchmarks.live.side_by_side --data-root DIR --weights resnet56.th [--only NAME ...] [--out CSV]

Networks, for `--only`: ``resnet56-3`` and ``resnet56-9`` (CIFAR-10, three and nine exits), ``efficientnet`` (Lite0,
CIFAR-100 at 112 x 112 pixels, six exits) and ``minilm`` (SST-2, 32 tokens, six exits). `--data-root` and `--weights`
are those of ``benchmarks/README.md``.

Policies are fitted on 1,000 test rows. Then each gets the budget with which its mean cost on 1,000 further rows is
`--cost` of the plain network's milliseconds, in torch, at 64 rows. In a run, all take turns on the same rows; times
are medians, of a batch. The CSV has a row for each network, runtime, number of threads, batch size and method:

ms, time / plain
    of the method;
time / ideal
    over the stages of the plain network, each for as many rows as reach it, in torch;
cost
    mean cost of the rows that were run, in the plain network's milliseconds at 64 rows.

`static` is a ResNet-38 for ResNet-56 (its time only: it is not trained) and else the network that ends at the exit
nearest to the cost. `earlyon` is that package, if it is installed, with heads and thresholds of maximum probability.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.live.latency import EFFICIENTNET_EXITS, load_images_of_cifar100
from benchmarks.shared.data import load_images, load_sst2
from benchmarks.shared.live import ideal_ms, timed
from benchmarks.shared.networks import (
    ResNetCIFAR,
    TokenBatches,
    load_efficientnet,
    load_minilm,
    load_network,
    minilm_layers,
)
from benchmarks.shared.routing import EXITS
from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    StaticExit,
    ThresholdPolicy,
    make_exit_pipeline,
    recommended_pipeline,
)
from skexit.backbone._inputs import call, map_tensors
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx, measure_latency
from skexit.utils._warnings import silenced

N_FITTING, N_ROWS = 1000, 2000
TARGET_BATCH = 64
N_TOKENS = 32
#: Runs of each batch size, of which the median counts.
N_RUNS = {1: 40, 8: 15, 64: 5, 256: 3}

#: Answers some inputs; a live network gives the exits, too.
Network = Callable[[Any], Any]


@dataclass
class Case:
    """A network with rows for it: the first to fit on, the others to run."""

    network: nn.Module
    exits: list[str]
    head: str | None
    inputs: Any
    y: np.ndarray
    static: nn.Module | None = None

    def rows(self, rows: Any) -> Any:
        return map_tensors(lambda tensor: tensor[rows], self.inputs)

    def live(self, policy: Any) -> EarlyExitModel:
        example = self.rows(slice(1))
        return EarlyExitModel(self.network, self.exits, policy, pool="avg", head=self.head, example_input=example)


def resnet56(arguments: argparse.Namespace, n_exits: int) -> Case:
    images, y = load_images(arguments.data_root, "test", N_ROWS + 1000).tensors
    step = 9 // n_exits
    network = load_network(arguments.weights).eval()
    return Case(network, EXITS[step - 1 :: step], "output", images, y.numpy(), ResNetCIFAR(n_blocks=6).eval())


def efficientnet(arguments: argparse.Namespace) -> Case:
    images, y = load_images_of_cifar100(arguments.data_root)
    return Case(load_efficientnet(), EFFICIENTNET_EXITS, None, images[: N_ROWS + 1000], y.numpy()[: N_ROWS + 1000])


def minilm(arguments: argparse.Namespace) -> Case:
    network, tokenizer = load_minilm()
    texts, y = load_sst2(arguments.data_root, "train")
    rows = slice(N_ROWS + 1000)
    batch = TokenBatches(_padded(tokenizer), texts[rows], y[rows], N_TOKENS).batch(range(rows.stop))
    return Case(network, minilm_layers(network), None, batch, batch.pop("labels").numpy())


def _padded(tokenizer: Any) -> Callable[..., Any]:
    """A tokenizer that gives as many tokens for each text."""
    return lambda texts, **options: tokenizer(texts, **options | {"padding": "max_length"})


CASES: dict[str, Callable[[argparse.Namespace], Case]] = {
    "resnet56-3": lambda arguments: resnet56(arguments, 3),
    "resnet56-9": lambda arguments: resnet56(arguments, 9),
    "efficientnet": efficientnet,
    "minilm": minilm,
}


def policies(budget: float) -> dict[str, Any]:
    by_name = {
        "maximum probability": ThresholdPolicy(budget=budget),
        "EENet": EENetPolicy(budget, random_state=0),
        "EM": EMExitAssigner(budget=budget, random_state=0),
        "JEI": JEIGatedEnsemble(budget=budget, random_state=0),
        "optimal stopping": OptimalStoppingPolicy(budget, random_state=0),
    }
    pipelines = {name: make_exit_pipeline(ExitHeads(random_state=0), policy) for name, policy in by_name.items()}
    return pipelines | {"recommended": recommended_pipeline(budget, random_state=0)}


def extract(case: Case, folder: Path) -> Any:
    rows = range(0, N_ROWS, 100)
    loader = [(case.rows(slice(k, k + 100)), torch.from_numpy(case.y[k : k + 100])) for k in rows]
    extractor = ExitExtractor(case.network, case.exits, pool="avg", head=case.head)
    return extractor.extract(loader, folder, progress=False)


def with_cost(pipeline: Any, X: Any, fractions: np.ndarray, cost: float) -> Any:
    """A fitted pipeline with the budget that gives a mean cost on X, where exits cost `fractions`."""
    low, high = float(pipeline.costs_[0]), 1.0
    found = pipeline
    for _ in range(10):
        budget = (low + high) / 2
        with silenced():
            found = pipeline.with_budget(budget)
        if fractions[found.predict_exit(X)].mean() > cost:
            high = budget
        else:
            low = budget
    return found


def fit_live(case: Case, cost: float, only: Sequence[str] | None) -> tuple[dict[str, EarlyExitModel], np.ndarray]:
    """Live networks by policy, and the milliseconds to each exit over the plain network's."""
    live, fractions = {}, np.empty(0)
    with TemporaryDirectory() as folder:
        cache = extract(case, Path(folder, "cache"))
        X, y = cache.X, cache.y
        for name, pipeline in policies(cost).items():
            if only is not None and name not in only:
                continue
            with silenced():
                pipeline.fit(X[:N_FITTING], y[:N_FITTING])
            latency = measure_latency(
                case.live(pipeline),
                batch_sizes=[TARGET_BATCH],
                example_input=case.rows(slice(TARGET_BATCH)),
                n_repeats=5,
            )
            fractions = latency.layout(pipeline[-1].layout_, TARGET_BATCH).cost_fractions
            live[name] = case.live(with_cost(pipeline, X[N_FITTING:], fractions, cost))
    return live, fractions


def static_network(case: Case, fractions: np.ndarray, cost: float, live: EarlyExitModel) -> Network:
    if case.static is not None:
        return case.static
    nearest = int(np.abs(fractions - cost).argmin())
    X = np.zeros((len(live.classes), live.policy.layout_.n_columns))
    policy = StaticExit(nearest, layout=live.policy.layout_).fit(X, live.classes)
    return case.live(policy)


def in_onnx(live: EarlyExitModel, path: Path) -> Network:
    """The live network, run by onnxruntime."""
    export_onnx(live, path)
    exported = OnnxEarlyExit(path)
    return lambda inputs: exported.predict(map_tensors(lambda tensor: tensor.numpy(), inputs))


def plain_in_onnx(network: nn.Module, example: Any, path: Path) -> Network:
    import onnxruntime

    named = isinstance(example, dict)
    dynamic = {name: {0: "rows"} for name in example} if named else ({0: "rows"},)
    torch.onnx.export(
        network, () if named else (example,), path, kwargs=dict(example) if named else None, dynamo=True, verbose=False,
        dynamic_shapes=dynamic,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Any) -> Any:
        arrays = [inputs[name] for name in names] if named else [inputs]
        return session.run(None, dict(zip(names, [array.numpy() for array in arrays], strict=True)))

    return run


@torch.inference_mode()
def measure(case: Case, networks: dict[str, Network], size: int, fractions: np.ndarray) -> Iterator[dict[str, Any]]:
    """A row for each network: medians over batches on which they take turns."""
    rng, times, ideals, costs = np.random.default_rng(size), [], [], []
    for number in range(-1, N_RUNS[size]):
        inputs = case.rows(torch.from_numpy(N_ROWS + rng.choice(len(case.y) - N_ROWS, size, replace=False)))
        own, ideal, cost = {}, {}, {}
        for name in rng.permutation(list(networks)):
            own[name], answer = timed(networks[name], inputs)
            if hasattr(answer, "exits"):
                exits = torch.as_tensor(answer.exits)
                cost[name] = fractions[exits.numpy()].mean()
                if isinstance(networks[name], EarlyExitModel):
                    ideal[name] = ideal_ms(networks[name], inputs, exits)
        if number >= 0:  # the first warms up
            times.append(own)
            ideals.append(ideal)
            costs.append(cost)
    ms = pd.DataFrame(times)
    over_ideal = (ms / pd.DataFrame(ideals)).median()
    mean_cost = pd.DataFrame(costs).mean()
    for name in networks:
        yield {
            "batch size": size,
            "method": name,
            "ms": ms[name].median(),
            "time / plain": (ms[name] / ms["plain"]).median(),
            "time / ideal": over_ideal.get(name),
            "cost": mean_cost.get(name),
        }


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    found = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(found)


def with_earlyon(case: Case, live: EarlyExitModel | None) -> dict[str, Network]:
    """The same network, heads and thresholds in earlyon, where it is installed and takes the network."""
    from benchmarks.live.latency import Setup
    from benchmarks.live.latency import with_earlyon as earlyon

    if live is None or case.head is None:
        return {}
    heads = live._decisions.steps[0]
    return earlyon(Setup(case.network, case.exits, case.head, case.inputs, None, heads, live.policy))


def run_case(name: str, arguments: argparse.Namespace) -> pd.DataFrame:
    case = CASES[name](arguments)
    live, fractions = fit_live(case, arguments.cost, arguments.policies)
    static = static_network(case, fractions, arguments.cost, next(iter(live.values())))

    def plain(inputs: Any) -> Any:
        return call(case.network, inputs)

    in_torch = {"plain": plain, "static": static, **live, **with_earlyon(case, live.get("maximum probability"))}
    n_all = torch.get_num_threads()
    rows = []
    for n_threads in sorted({1, n_all}):
        with torch_threads(n_threads):
            for size in arguments.batch_sizes:
                for row in measure(case, in_torch, size, fractions):
                    rows.append({"network": name, "runtime": "torch", "threads": n_threads, **row})
    with TemporaryDirectory() as folder:
        networks = {"plain": plain_in_onnx(case.network, case.rows(slice(2)), Path(folder, "plain.onnx"))}
        for policy, network in live.items():
            networks[policy] = in_onnx(network, Path(folder, f"{policy}.onnx"))
        for size in arguments.batch_sizes:
            for row in measure(case, networks, size, fractions):
                rows.append({"network": name, "runtime": "onnxruntime", "threads": n_all, **row})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="of the ResNet-56")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--policies", nargs="+", choices=list(policies(0.65)))
    parser.add_argument("--batch-sizes", type=int, nargs="+", choices=list(N_RUNS), default=list(N_RUNS))
    parser.add_argument("--cost", type=float, default=0.65, help="mean cost, of the plain network's milliseconds")
    parser.add_argument("--out", type=Path, help="CSV file, written after each network")
    arguments = parser.parse_args()
    tables = []
    for name in arguments.only:
        tables.append(run_case(name, arguments))
        print(tables[-1].round(3).to_string(index=False), flush=True)
        if arguments.out:
            pd.concat(tables).round(4).to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
