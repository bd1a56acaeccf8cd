"""Live networks of all policies beside the plain one, a static one of about the same cost, and earlyon.

    python -m benchmarks.live.side_by_side --data-root DIR --weights resnet56.th [--only NAME ...] [--out CSV]

Networks, for `--only`: ``resnet56-9`` and ``resnet56-3`` (CIFAR-10, nine and three exits), ``efficientnet`` (Lite0,
CIFAR-100 at 112 x 112 pixels, six exits) and ``minilm`` (AG News, 32 tokens, six exits). `--data-root` and `--weights`
are those of ``benchmarks/README.md``.

Policies are fitted on 1,000 test rows. Then each gets the budget with which its mean cost on 1,000 further rows is
`--cost`, in milliseconds of the plain network's stages in torch at 64 rows. In a run, all take turns on the same rows;
times are medians of batches, and means of single rows, which leave at exits that lie far apart. The CSV has a row for
each network, runtime, batch size and method:

ms, time / plain
    of the method;
time / ideal
    over the plain network's stages in the same runtime, each for as many rows as reach it, without exits;
cost
    mean cost of the rows that were run;
accuracy
    on the 1,000 further rows.

`recommended, fitted for ms` is the recommended pipeline on costs in milliseconds of the runtime and batch size, without
the exits that do not pay, with a mean of `--cost` of the plain network's time. In `floor (no decisions)`, rows leave at
the same exits as with maximum probability, but nothing is pooled or scored. `static` is a ResNet-38 for ResNet-56 (its
time only: it is not trained), and for other networks the network that ends at the exit nearest to the cost. `earlyon`
is that package, if it is installed, with heads and thresholds of maximum probability.

By `--clock cpu`, time is that of the thread alone, which other programs lengthen less; for one thread. Costs in
milliseconds are measured by the same clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.shared.data import load_ag_news, load_cifar100
from benchmarks.shared.live import (
    CLOCKS,
    LATENCY_CLOCKS,
    MAXIMUM_PROBABILITY,
    RECOMMENDED,
    Case,
    EmptyDecisions,
    ideal_ms,
    policies,
    resnet56,
    timed,
    with_earlyon,
)
from benchmarks.shared.live_onnx import OnnxRuntime
from benchmarks.shared.networks import (
    EFFICIENTNET_BLOCKS,
    TokenBatches,
    efficientnet_inputs,
    load_efficientnet,
    load_minilm,
    minilm_layers,
)
from skexit import ExitArray, ExitPipeline, StaticExit
from skexit.backbone._inputs import call
from skexit.runtime import EarlyExitModel, ExitLatency, measure_latency, measure_onnx_latency, pruned
from skexit.utils._warnings import silenced

N_FITTING, N_EXTRACTED, N_ROWS = 1000, 2000, 3000
TARGET_BATCH = 64
N_TOKENS = 32
#: Batches of each size.
N_RUNS = {1: 100, 8: 10, 64: 5, 256: 3}
FLOOR, FOR_MS = "floor (no decisions)", "recommended, fitted for ms"

#: Answers some inputs; a live network gives the exits, too.
Network = Callable[[Any], Any]
#: Milliseconds of the ideal for inputs that leave at some exits.
Ideal = Callable[[Any, torch.Tensor, Callable[[], float]], float]


def efficientnet(arguments: argparse.Namespace) -> Case:
    images, y = (array[:N_ROWS] for array in load_cifar100(arguments.data_root, "test"))
    inputs = efficientnet_inputs(torch.from_numpy(images), 112)
    exits = [EFFICIENTNET_BLOCKS[k] for k in (2, 4, 7, 10, 13, 15)]
    return Case(load_efficientnet(), exits, None, inputs, y, N_EXTRACTED)


def minilm(arguments: argparse.Namespace) -> Case:
    network, tokenizer = load_minilm()
    texts, y = load_ag_news(arguments.data_root, "train")
    batch = TokenBatches(_padded(tokenizer), texts[:N_ROWS], y[:N_ROWS], N_TOKENS).batch(range(N_ROWS))
    return Case(network, minilm_layers(network), None, batch, batch.pop("labels").numpy(), N_EXTRACTED, pool="mean")


def _padded(tokenizer: Any) -> Callable[..., Any]:
    """A tokenizer that gives as many tokens for each text."""
    return lambda texts, **options: tokenizer(texts, **options | {"padding": "max_length"})


CASES: dict[str, Callable[[argparse.Namespace], Case]] = {
    "resnet56-9": lambda arguments: resnet56(arguments.data_root, arguments.weights, 9, N_EXTRACTED, N_ROWS),
    "resnet56-3": lambda arguments: resnet56(arguments.data_root, arguments.weights, 3, N_EXTRACTED, N_ROWS),
    "efficientnet": efficientnet,
    "minilm": minilm,
}


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


def live_for_ms(
    case: Case, rows: tuple[Any, np.ndarray], latency: ExitLatency, cost: float
) -> dict[int, tuple[EarlyExitModel, float]]:
    """Live networks that are fitted for milliseconds, and their accuracies, by batch size."""
    X, y = rows
    found = {}
    for size in latency.batch_sizes.tolist():
        pipeline = fitted_for_ms(case, X[:N_FITTING], y[:N_FITTING], latency, size, cost)
        found[size] = case.live(pipeline), pipeline.score(X[N_FITTING:], y[N_FITTING:])
    return found


def fit_live(
    case: Case, rows: tuple[Any, np.ndarray], cost: float, clock: str
) -> tuple[dict[str, EarlyExitModel], np.ndarray, dict[str, float]]:
    """Live networks by policy, milliseconds of the stages up to each exit over those of all, and accuracies."""
    X, y = rows
    fitted = {name: pipeline.fit(X[:N_FITTING], y[:N_FITTING]) for name, pipeline in policies(cost).items()}
    latency = measure_latency(
        case.live(fitted[MAXIMUM_PROBABILITY]),
        batch_sizes=[TARGET_BATCH],
        example_input=case.rows(slice(TARGET_BATCH)),
        n_repeats=5,
        clock=LATENCY_CLOCKS[clock],
    )
    fractions = latency.stage_ms[0].cumsum() / latency.stage_ms[0].sum()
    X, y = X[N_FITTING:], y[N_FITTING:]
    at_cost = {name: with_cost(pipeline, X, fractions, cost) for name, pipeline in fitted.items()}
    live = {name: case.live(pipeline) for name, pipeline in at_cost.items()}
    return live, fractions, {name: pipeline.score(X, y) for name, pipeline in at_cost.items()}


def fitted_for_ms(case: Case, X: Any, y: np.ndarray, latency: ExitLatency, size: int, cost: float) -> Any:
    """The recommended pipeline without exits that do not pay, with a mean cost of so much of the plain network's ms."""
    in_ms = ExitArray.from_array(np.asarray(X), latency.layout(X.layout, size))
    pipeline = policies(cost)[RECOMMENDED].fit(in_ms, y)
    low, high, found = 0.0, 1.0, pipeline
    for _ in range(8):
        budget = (low + high) / 2
        try:
            with silenced():
                other = pruned(pipeline.with_budget(budget), latency, size)
        except ValueError:  # below the first exit
            low = budget
            continue
        if latency.expected(other)["saved"][size] < 1 - cost:
            high = budget
        else:
            low, found = budget, other
    return found


def static_network(case: Case, fractions: np.ndarray, cost: float, live: EarlyExitModel) -> Any:
    if case.static is not None:
        return case.static
    heads, layout = live._decisions.steps[0], live.policy.layout_
    nearest = int(np.abs(fractions - cost).argmin())
    policy = StaticExit(nearest, layout=layout).fit(np.zeros((len(live.classes), layout.n_columns)), live.classes)
    return case.live(ExitPipeline([("heads", heads), ("policy", policy)]))


@torch.inference_mode()
def measure(
    case: Case, networks: dict[str, Network], ideal: Ideal, size: int, fractions: np.ndarray, clock: Any
) -> Iterator[dict[str, Any]]:
    """A row for each network: medians over batches on which they take turns."""
    rng, times, ideals, costs = np.random.default_rng(size), [], [], []
    for number in range(-1, N_RUNS[size]):
        inputs = case.draw(size, rng)
        networks[FLOOR].set_exits(torch.as_tensor(networks[MAXIMUM_PROBABILITY](inputs).exits))
        own, ideal_times, cost = {}, {}, {}
        for name in rng.permutation(list(networks)):
            own[name], answer = timed(networks[name], inputs, clock=clock)
            if hasattr(answer, "exits"):
                exits = torch.as_tensor(answer.exits)
                cost[name] = fractions[exits.numpy()].mean()
                ideal_times[name] = ideal(inputs, exits, clock)
        ideal_times[FLOOR] = ideal_times[MAXIMUM_PROBABILITY]
        if number >= 0:  # the first warms up
            times.append(own)
            ideals.append(ideal_times)
            costs.append(cost)
    ms = pd.DataFrame(times)
    ideal_ms_of, mean_cost = pd.DataFrame(ideals), pd.DataFrame(costs).mean()
    for name in networks:
        yield {
            "batch size": size,
            "method": name,
            "ms": ms[name].mean() if size == 1 else ms[name].median(),
            "time / plain": _ratio(ms[name], ms["plain"], size),
            "time / ideal": _ratio(ms[name], ideal_ms_of[name], size) if name in ideal_ms_of else None,
            "cost": mean_cost.get(name),
        }


def _ratio(times: pd.Series, others: pd.Series, size: int) -> float:
    """Of means where a batch is one row: such times lie as far apart as the exits."""
    return float(times.mean() / others.mean() if size == 1 else (times / others).median())


def in_torch(case: Case, live: dict[str, EarlyExitModel], static: Any) -> tuple[dict[str, Network], Ideal]:
    reference = live[MAXIMUM_PROBABILITY]

    def plain(inputs: Any) -> Any:
        return call(case.network, inputs)

    networks = {"plain": plain, "static": static, **live, FLOOR: EmptyDecisions(reference)}
    return networks | with_earlyon(case, reference), lambda *arguments: ideal_ms(reference, *arguments)


def in_onnx(
    case: Case, live: dict[str, EarlyExitModel], static: Any, runtime: OnnxRuntime
) -> tuple[dict[str, Network], Ideal]:
    example, reference = case.rows(slice(2)), live[MAXIMUM_PROBABILITY]
    networks = {
        "plain": runtime.plain(case.network, example),
        "static": runtime.live(static) if isinstance(static, EarlyExitModel) else runtime.plain(static, example),
        **{name: runtime.live(network) for name, network in live.items()},
        FLOOR: runtime.empty_decisions(reference),
    }
    return networks, runtime.stages(reference).ideal_ms


def run_case(name: str, cost: float, batch_sizes: Sequence[int], arguments: Any) -> pd.DataFrame:
    case = CASES[name](arguments)
    extracted = case.extract()
    live, fractions, accuracies = fit_live(case, extracted, cost, arguments.clock)
    static = static_network(case, fractions, cost, live[MAXIMUM_PROBABILITY])
    rows = []
    with TemporaryDirectory() as folder:
        onnx = OnnxRuntime(Path(folder), arguments.threads)
        runtimes = {"torch": in_torch(case, live, static), "onnxruntime": in_onnx(case, live, static, onnx)}
        for runtime, (networks, ideal) in runtimes.items():
            measured: dict[str, Any] = {
                "batch_sizes": batch_sizes,
                "example_input": case.rows(slice(1)),
                "clock": LATENCY_CLOCKS[arguments.clock],
            }
            if runtime == "torch":
                latency = measure_latency(live[RECOMMENDED], **measured)
            else:
                latency = measure_onnx_latency(live[RECOMMENDED], session_options=onnx.options, **measured)
            for size, (network, accuracy) in live_for_ms(case, extracted, latency, cost).items():
                own = networks | {FOR_MS: network if runtime == "torch" else onnx.live(network)}
                of_methods = accuracies | {FOR_MS: accuracy}
                rows += [
                    {"network": name, "runtime": runtime, **row, "accuracy": of_methods.get(row["method"])}
                    for row in measure(case, own, ideal, size, fractions, CLOCKS[arguments.clock])
                ]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="of the ResNet-56")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batch-sizes", type=int, nargs="+", choices=list(N_RUNS), default=list(N_RUNS))
    parser.add_argument("--cost", type=float, default=0.65, help="mean cost, of the plain network's milliseconds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, help="CSV file, written after each network; one that is there is continued")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = [pd.read_csv(arguments.out)] if arguments.out and arguments.out.exists() else []
    for name in arguments.only:
        found.append(run_case(name, arguments.cost, arguments.batch_sizes, arguments))
        print(found[-1].round(3).to_string(index=False), flush=True)
        if arguments.out:
            pd.concat(found).round(4).to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
