"""Extraction by two workers under torchrun, over extraction by one, each with one thread.

    python -m benchmarks.scale.extraction_workers [--images 2048] [--repeats 3]

A ResNet-18 without training, on random images of 64 x 64 pixels, which takes as long as one that is trained. Times
are of `extract` alone, from its first call until the cache is complete; to start the processes and to import
torch takes some seconds more, once.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from skexit.extraction import ExitExtractor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--extract-into", type=Path, help="what the processes that this one starts are told")
    options = parser.parse_args()
    if options.extract_into:
        print(extract(options.extract_into, options.images))
        return
    ratios = []
    for _ in range(options.repeats):
        alone, together = (time_workers(n_workers, options.images) for n_workers in (1, 2))
        ratios.append(alone / together)
        print(f"one worker {alone:.1f} s, two {together:.1f} s: {ratios[-1]:.2f} times as fast", flush=True)
    print(f"median: {statistics.median(ratios):.2f}")


def time_workers(n_workers: int, n_images: int) -> float:
    """Seconds that the slowest of so many workers takes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_workers}"]
        command += ["--module", "benchmarks.scale.extraction_workers"]
        command += [f"--images={n_images}", f"--extract-into={Path(folder, 'cache')}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return max(float(line) for line in done.stdout.split())


def extract(folder: Path, n_images: int) -> float:
    """Seconds of this worker."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(n_images, 3, 64, 64), torch.arange(n_images) % 1000)
    extractor = ExitExtractor(resnet18().to(memory_format=torch.channels_last))
    start = time.perf_counter()
    extractor.extract(DataLoader(data, batch_size=32), folder, worker="torchrun", progress=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
