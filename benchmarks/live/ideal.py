"""What the live network takes over its ideal, for policies, batch sizes, eager and compiled.

    python -m benchmarks.live.ideal --data-root DIR --weights resnet56.th [--exits 9] [--compiled]

CIFAR-10 through a ResNet-56; `--data-root` and `--weights` are those of ``papers/em_routing.py``. Heads and policies
are fitted on 2,000 test images for a mean cost of `--budget`; others are run.

The ideal is the sum over the stages of the plain stage's time for as many images as reach it, without exits. With
``--compiled`` its stages are compiled, too, for the batch size alone. `floor` is the time of an empty decision at each
exit: nothing is pooled or scored, and samples leave where the policy says. `decision` is the live network's. Both are
medians, over batches, of the ratio to the ideal of the same batch, as all three run one after the other on each batch.

By `--clock cpu`, time is that of the thread alone, which other programs lengthen less; for one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.shared.data import load_images
from benchmarks.shared.networks import load_network
from benchmarks.shared.routing import EXITS
from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    ThresholdPolicy,
    make_exit_pipeline,
    recommended_pipeline,
)
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel
from skexit.runtime._batch import Batch
from skexit.runtime._prepared import start
from skexit.runtime._runner import StageRunner

N_FITTING_IMAGES = 2000
#: Images that are run at each batch size, but no fewer than four batches.
N_IMAGES = 300
N_WARM_UP = 3
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def fit_policies(X: Any, y: np.ndarray, budget: float) -> Iterator[tuple[str, Any]]:
    """Pipelines of linear heads and a policy, and the recommended one, by name."""
    policies = {
        "maximum probability": ThresholdPolicy(budget=budget),
        "EENet": EENetPolicy(budget, random_state=0),
        "EM": EMExitAssigner(budget=budget, confidence_weight=1, random_state=0),
        "JEI": JEIGatedEnsemble(budget=budget, random_state=0),
        "optimal stopping": OptimalStoppingPolicy(budget, random_state=0),
    }
    for name, policy in policies.items():
        yield name, make_exit_pipeline(ExitHeads(random_state=0), policy).fit(X, y)
    yield "recommended", recommended_pipeline(budget, random_state=0).fit(X, y)


class NoDecision:
    """Runs the stages of a live network with samples that leave where they did before."""

    def __init__(self, runner: StageRunner) -> None:
        self._runner, self._exits = runner, torch.empty(0)
        self.runner = replace(runner, compiled=dict.fromkeys(runner.stages, None))
        self.runner.compiled = {k: self._step(k) for k in runner.stages}

    def set_exits(self, exits: torch.Tensor, n_classes: int) -> None:
        self._leaves = [exits == k for k in range(self._runner.decisions.n_exits)]
        self._logits = torch.zeros(len(exits), n_classes, dtype=torch.float64)

    def _step(self, k: int) -> Callable[[Batch], tuple[Batch, Any, Any]]:
        def step(batch: Batch) -> tuple[Batch, Any, Any]:
            batch = self._runner.compute(k, batch)
            one = len(self._logits) == 1
            leaves = self._leaves[k] if one else self._leaves[k][batch.rows]
            return batch, self._logits[: len(batch)], leaves

        return step


def run(network: Any, runner: StageRunner, images: torch.Tensor) -> torch.Tensor:
    """The exits at which images leave, as by ``EarlyExitModel.forward``, with a runner."""
    batch: Batch | None = start(network, images)
    answers = runner.answers()
    for k in runner.stages:
        if batch is None:
            break
        batch = runner.run(k, batch, answers)
    return answers.output()[1].exits


def ideal_time(stages: dict[int, Any], images: torch.Tensor, exits: torch.Tensor, clock: Callable[[], float]) -> float:
    """Time of the plain stages, each for as many images as reach it."""
    total, tensors = 0.0, [images]
    for k, stage in stages.items():
        n_images = int((exits >= k).sum())
        if n_images == 0:
            break
        tensors = [tensor[:n_images].clone() for tensor in tensors]
        begin = clock()
        tensors = list(stage(*tensors))
        total += clock() - begin
    return total


@torch.inference_mode()
def measure(live: EarlyExitModel, images: torch.Tensor, batch_size: int, clock: Callable[[], float]) -> pd.Series:
    """Time of the ideal in milliseconds, and the ratios to it."""
    network = live._cut_before()
    runner = network.used_exits
    stages = {k: getattr(stage.network, "_compiled", stage.network) for k, stage in runner.stages.items()}
    empty = NoDecision(runner)
    rng, rows = np.random.default_rng(batch_size), []
    for number in range(-N_WARM_UP, max(N_IMAGES // batch_size, 4)):
        batch = images[rng.choice(len(images), batch_size, replace=False)]
        begin = clock()
        exits = run(network, runner, batch)
        decided = clock() - begin
        ideal = ideal_time(stages, batch, exits, clock)
        empty.set_exits(exits, len(live.classes))
        begin = clock()
        found = run(network, empty.runner, batch)
        floor = clock() - begin
        assert found.equal(exits)
        if number >= 0:
            rows.append({"ideal ms": 1000 * ideal, "floor": floor / ideal, "decision": decided / ideal})
    return pd.DataFrame(rows).median()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--exits", type=int, choices=[3, 9], default=9)
    parser.add_argument("--budget", type=float, default=0.65)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = load_network(arguments.weights).eval()
    step = {3: 3, 9: 1}[arguments.exits]
    exits = EXITS[step - 1 :: step]
    images, y = load_images(arguments.data_root, "test", 2 * N_FITTING_IMAGES).tensors
    fitting = TensorDataset(images[:N_FITTING_IMAGES], y[:N_FITTING_IMAGES])
    tables = {}
    with TemporaryDirectory() as folder:
        loader = DataLoader(fitting, batch_size=100)
        cache = ExitExtractor(network, exits, pool="avg").extract(loader, Path(folder, "cache"))
        policies = dict(fit_policies(cache.X, cache.y, arguments.budget))
    for name, policy in policies.items():
        for size in arguments.batch_sizes:
            live = EarlyExitModel(network, exits, policy, pool="avg", example_input=images[:1])
            if arguments.compiled:
                live.compile_stages(sorted({1, size // 4 or 1, size // 2 or 1, size}))
            tables[name, size] = measure(live, images[N_FITTING_IMAGES:], size, CLOCKS[arguments.clock])
            print(name, size, tables[name, size].round(3).to_dict(), flush=True)
    print(pd.DataFrame(tables).T.round(3).to_string())


if __name__ == "__main__":
    main()
