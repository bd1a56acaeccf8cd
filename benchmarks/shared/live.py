"""Live networks of several policies, their ideals and floors, and clocks, for benchmarks of the live network."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from benchmarks.shared.data import load_images
from benchmarks.shared.networks import ResNetCIFAR, load_network
from benchmarks.shared.routing import EXITS
from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitArray,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    ThresholdPolicy,
    make_exit_pipeline,
    recommended_pipeline,
)
from skexit.backbone._inputs import map_tensors, tensors_of
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel
from skexit.runtime._batch import Batch
from skexit.runtime._prepared import start
from skexit.runtime._runner import StageRunner

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: Seconds; "cpu" is the time of the calling thread alone, which other programs lengthen less.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
#: The same clocks, as `measure_latency` calls them.
LATENCY_CLOCKS = {"wall": "wall", "cpu": "processor"}
MAXIMUM_PROBABILITY, RECOMMENDED = "maximum probability", "recommended"


def policies(budget: float) -> dict[str, Any]:
    """Pipelines of linear heads and a policy, and the recommended one, by name."""
    by_name = {
        MAXIMUM_PROBABILITY: ThresholdPolicy(budget=budget),
        "EENet": EENetPolicy(budget, random_state=0),
        "EM": EMExitAssigner(budget=budget, random_state=0),
        "JEI": JEIGatedEnsemble(budget=budget, random_state=0),
        "optimal stopping": OptimalStoppingPolicy(budget, random_state=0),
    }
    pipelines = {name: make_exit_pipeline(ExitHeads(random_state=0), policy) for name, policy in by_name.items()}
    return pipelines | {RECOMMENDED: recommended_pipeline(budget, random_state=0)}


@dataclass
class Case:
    """A network with rows for it, on a device: the first `n_fitting` to fit on, the others to run."""

    network: nn.Module
    exits: list[str]
    head: str | None
    inputs: Any
    y: np.ndarray
    n_fitting: int
    static: nn.Module | None = None
    pool: str = "avg"

    def rows(self, rows: Any) -> Any:
        return map_tensors(lambda tensor: tensor[rows], self.inputs)

    def draw(self, size: int, rng: np.random.Generator) -> Any:
        """Some of the rows to run."""
        return self.rows(torch.from_numpy(self.n_fitting + rng.choice(len(self.y) - self.n_fitting, size, False)))

    def live(self, policy: Any) -> EarlyExitModel:
        example = self.rows(slice(1))
        return EarlyExitModel(self.network, self.exits, policy, pool=self.pool, head=self.head, example_input=example)

    def extract(self) -> tuple[Any, np.ndarray]:
        """Features of the rows to fit on, and their labels."""
        rows = range(0, self.n_fitting, 100)
        loader = [(self.rows(slice(k, k + 100)), torch.from_numpy(self.y[k : k + 100])) for k in rows]
        extractor = ExitExtractor(self.network, self.exits, pool=self.pool, head=self.head)
        with TemporaryDirectory() as folder:
            cache = extractor.extract(loader, Path(folder, "cache"), progress=False)
            return ExitArray.from_array(np.asarray(cache.X), cache.layout), cache.y


def resnet56_parser(description: str | None, batch_sizes: Sequence[int]) -> argparse.ArgumentParser:
    """The arguments of scripts that run the ResNet-56; `batch_sizes` are the default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--exits", type=int, choices=[3, 9], default=9)
    parser.add_argument("--budget", type=float, default=0.65)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=batch_sizes)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    return parser


def resnet56(data_root: Path, weights: Path, n_exits: int, n_fitting: int, n_images: int | None = None) -> Case:
    """CIFAR-10 through a ResNet-56, beside a ResNet-38, which is not trained, with two thirds of its operations."""
    images, y = load_images(data_root, "test", n_images).tensors
    step = 9 // n_exits
    network, static = load_network(weights).eval().to(DEVICE), ResNetCIFAR(n_blocks=6).eval().to(DEVICE)
    return Case(network, EXITS[step - 1 :: step], "output", images.to(DEVICE), y.numpy(), n_fitting, static)


def timed(
    function: Callable[..., Any], *arguments: Any, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Any]:
    """Milliseconds, and the result."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    result = function(*arguments)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (clock() - begin), result


def ideal_ms(
    live: EarlyExitModel, inputs: Any, exits: torch.Tensor, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Sum over the stages of the plain stage's time for as many samples as reach it.

    Stages end at the exits that the live network uses. If they are compiled, their batches are padded, as those of the
    live network are.
    """
    first, *side = tensors_of(inputs)
    total, tensors = 0.0, [first]
    stages = live._cut_before().used_exits.stages
    for k, stage in stages.items():
        n_rows = int((exits >= k).sum())
        if n_rows == 0:
            break
        tensors = [tensor[:n_rows].clone() for tensor in tensors]
        side = [tensor[:n_rows] for tensor in side]
        duration, given = timed(stage.network, *tensors, *side, clock=clock)
        total, tensors = total + duration, list(given)
        if k == len(live.exits) - 1 and stage.logits is not None:
            total += timed(stage.logits, *tensors, *side, clock=clock)[0]
    return total


class EmptyDecisions:
    """Runs the stages of a live network, with samples that leave at exits that are known before.

    Nothing is pooled or scored. What it takes over the ideal is the floor of what any policy takes.
    """

    def __init__(self, live: EarlyExitModel) -> None:
        self._network, self._n_classes = live._cut_before(), len(live.classes)
        self._runner: StageRunner = self._network.used_exits
        steps: Mapping[int, Any] = {k: self._step(k) for k in self._runner.stages}
        self._empty = replace(self._runner, compiled=steps)

    def set_exits(self, exits: torch.Tensor) -> None:
        """Exits of the rows of the next call."""
        self._leaves = [exits == k for k in range(self._runner.decisions.n_exits)]
        self._logits = torch.zeros(len(exits), self._n_classes, dtype=torch.float64)

    @torch.inference_mode()
    def __call__(self, inputs: Any) -> Any:
        batch: Batch | None = start(self._network, inputs)
        answers = self._empty.answers()
        for k in self._empty.stages:
            if batch is None:
                break
            batch = self._empty.run(k, batch, answers)
        return answers.output()[1]

    def _step(self, k: int) -> Callable[[Batch], tuple[Batch, Any, Any]]:
        def step(batch: Batch) -> tuple[Batch, Any, Any]:
            batch = self._runner.compute(k, batch)
            one = len(self._logits) == 1
            leaves = self._leaves[k] if one else self._leaves[k][batch.rows]
            return batch, self._logits[: len(batch)], leaves

        return step


def with_earlyon(case: Case, live: EarlyExitModel) -> dict[str, Callable[[torch.Tensor], object]]:
    """The same network, heads and thresholds of maximum probability in the package earlyon.

    Only where it is installed, and the network's output is an exit. From two rows on, it stops where all rows of
    a batch may.
    """
    try:
        from earlyon.models.custom import custom_ee
    except ImportError:
        return {}
    if case.head is None:
        return {}
    *early, _ = case.exits
    heads: ExitHeads = live._decisions.steps[0]
    wrapper = custom_ee(
        case.network, early, len(live.classes), example_args=(case.rows(slice(1)),),
        confidence_thresholds=expit(live.policy.thresholds_[:-1]).tolist(),
    )  # fmt: skip
    for module, head in zip(wrapper.exit_heads.values(), heads.networks_, strict=False):
        linear = nn.Linear(*head.weights[0].shape)
        linear.weight.data = torch.as_tensor(head.weights[0].T, dtype=torch.float32).contiguous()
        linear.bias.data = torch.as_tensor(head.biases[0], dtype=torch.float32)
        module.classifier = linear.to(DEVICE)
    wrapper.eval()

    def run(inputs: torch.Tensor) -> object:
        return wrapper(inputs) if len(inputs) == 1 else wrapper.forward_inference_batched(inputs)

    run(case.rows(slice(1)))
    return {"earlyon": run}
