"""The live network on a GPU: what numbers of samples that were not seen before cost, and what compiling gains.

    python -m benchmarks.live.gpu_latency --data-root DIR --weights resnet56.th [--batch-sizes 1 32 ...]

ResNet-56 with three exits on CIFAR-10, with linear heads and maximum probability, for a mean cost of .65. Milliseconds
of a batch are medians. Each batch size sees 20 batches of random images, of which the last eight count. The columns:

live
    :class:`EarlyExitModel`, which rounds the number of samples that go on up.
exact
    The same without rounding.
ideal
    The stages of the plain network, each for as many images as reach it, for shapes that were seen before.
plain
    The network itself.

Then throughput mode against the plain network, and both compiled with CUDA graphs. Without a GPU it runs, and says
nothing of interest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from benchmarks.shared.live import DEVICE, MAXIMUM_PROBABILITY, Case, ideal_ms, policies, resnet56, timed
from skexit.runtime import EarlyExitModel, _runner

N_FITTING_IMAGES = 2000
N_BATCHES, N_COUNTED = 20, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--n-images", type=int, default=8192)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32, 100, 256, 1000, 4096])
    parser.add_argument("--loader-batch-sizes", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--compiled-sizes", type=int, nargs="*", default=[1, 64])
    options = parser.parse_args()
    case = resnet56(options.data_root, options.weights, 3, N_FITTING_IMAGES)
    policy = policies(0.65)[MAXIMUM_PROBABILITY].fit(*case.extract())
    others = case.inputs[N_FITTING_IMAGES:]
    images = others[torch.arange(options.n_images, device=DEVICE) % len(others)]
    live = case.live(policy)
    rng = np.random.default_rng(0)

    def draw(size: int) -> torch.Tensor:
        return images[rng.choice(len(images), size, replace=False)]

    with torch.inference_mode():
        rows = [measure(case, live, draw, size) for size in options.batch_sizes]
        print(pd.DataFrame(rows).set_index("batch size").round(2).to_string(), flush=True)
        for size in options.loader_batch_sizes:
            measure_loader(case, live, list(images.split(size)), size)
        if options.compiled_sizes:
            measure_compiled(case, policy, draw, options.compiled_sizes)


def measure(case: Case, live: EarlyExitModel, draw: Callable[[int], torch.Tensor], size: int) -> dict[str, float]:
    times = {"batch size": size, "live": median_ms(live, draw, size)}
    with exact_sizes():
        times["exact"] = median_ms(live, draw, size)
        images = draw(size)
        exits = live(images).exits
        times["ideal"] = float(np.median([ideal_ms(live, images, exits) for _ in range(N_COUNTED)]))
    return times | {"plain": median_ms(case.network, draw, size)}


def exact_sizes() -> AbstractContextManager[object]:
    return patch.object(_runner, "size_to_run", lambda n_rows, device: n_rows)


def median_ms(network: Callable[..., object], draw: Callable[[int], torch.Tensor], size: int) -> float:
    times = [timed(network, draw(size))[0] for _ in range(N_BATCHES)]
    return float(np.median(times[-N_COUNTED:]))


def measure_loader(case: Case, live: EarlyExitModel, batches: list[torch.Tensor], size: int) -> None:
    def run_live() -> object:
        return live.predict_loader(batches, batch_size=size, progress=False)

    def run_plain() -> object:
        return [case.network(batch) for batch in batches]

    run_live(), run_live()
    times = {run.__name__[4:]: [round(timed(run)[0], 1) for _ in range(3)] for run in (run_live, run_plain)}
    print(f"loader, batches of {size}, ms: {times}", flush=True)


def measure_compiled(case: Case, policy: Any, draw: Callable[[int], torch.Tensor], sizes: list[int]) -> None:
    live = case.live(policy).compile_stages(pad_to=(1, 16, 64, 256), mode="reduce-overhead")
    plain = torch.compile(case.network, mode="reduce-overhead", dynamic=False)
    for size in sizes:
        times = {name: round(median_ms(run, draw, size), 2) for name, run in {"live": live, "plain": plain}.items()}
        print(f"compiled, {size} images, ms: {times}", flush=True)


if __name__ == "__main__":
    main()
