"""Throughput of an extraction against a bare forward loop over the same loader.

    python -m benchmarks.speed.extraction_throughput

ResNet-18 on 2,000 random images of 64 x 64 pixels. Loop and extraction take turns, so that whatever
else the machine does meets both; what counts is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from benchmarks.shared.peak_memory import peak_memory, reset_peak_memory
from skexit.extraction import ExitExtractor

N_IMAGES = 2_000
N_ROUNDS = 7
TARGET = 0.95


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    model = resnet18(weights=None)
    images = TensorDataset(torch.randn(N_IMAGES, 3, 64, 64), torch.randint(1000, (N_IMAGES,)))
    loader = DataLoader(images, batch_size=64)
    forward_only(model, loader)
    extract(model, loader)
    bare, extracting = Runs(), Runs()
    for _ in range(N_ROUNDS):
        bare.add(lambda: forward_only(model, loader))
        extracting.add(lambda: extract(model, loader))
    print(f"bare forward loop  {bare}")
    print(f"extraction         {extracting}")
    ratios = [without / with_exits for without, with_exits in zip(bare.seconds, extracting.seconds, strict=True)]
    print(f"ratio              {statistics.median(ratios):8.3f} (target {TARGET})")


@torch.inference_mode()
def forward_only(model: torch.nn.Module, loader: Iterable[Any]) -> None:
    model.eval()
    for images, _ in loader:
        model(images)


def extract(model: torch.nn.Module, loader: Iterable[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ExitExtractor(model).extract(loader, folder, progress=False)


class Runs:
    """Time and growth of the memory of repeated runs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.mebibytes: list[float] = []

    def add(self, run: Callable[[], None]) -> None:
        before = reset_peak_memory()
        start = time.perf_counter()
        run()
        self.seconds.append(time.perf_counter() - start)
        self.mebibytes.append((peak_memory() - before) / 2**10)

    def __str__(self) -> str:
        throughput = N_IMAGES / statistics.median(self.seconds)
        return f"{throughput:8.1f} images/s, memory grows by {statistics.median(self.mebibytes):.0f} MiB at its peak"


if __name__ == "__main__":
    main()
