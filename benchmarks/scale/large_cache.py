"""Write a cache of synthetic exits that is larger than memory, beside plain sequential writing on the same disk.

    python -m benchmarks.scale.large_cache FOLDER [--rows 1300000] [--exits 5] [--classes 1000] [--features 0]
        [--results FILE]

Batches are made, appended to the cache and forgotten, as in an extraction, so that memory is bounded by
the batch. The time of appending is taken without that of making the batches. A plain file of as many
bytes, up to 4 GiB, is written to the same disk before, in pieces of the same size; both times end when
the disk has what was written (fsync and sync). The project's aim is no less than 70 % of plain writing.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch  # noqa: F401  (an extraction has imported it; that is no part of writing)

from benchmarks.shared.peak_memory import peak_memory, reset_peak_memory
from skexit import ExitLayout
from skexit.cache import CacheWriter

#: Rows that are made and appended at a time.
BATCH_ROWS = 2048
#: No more than this is written for the speed of the disk alone.
PLAIN_BYTES = 2**32


def make_batches(layout: ExitLayout, n_rows: int, seed: int = 0) -> Iterator[tuple[list, list, np.ndarray]]:
    """Logits, features and labels of some rows after another.

    The logit of the right class grows from exit to exit, by noise that all exits share in part and that
    is larger for some samples than for others. Features are a random projection of the logits, with noise.
    """
    n_exits, n_classes, n_features = layout.n_exits, layout.n_logits[-1], layout.n_features[0]
    projection = np.random.default_rng(seed).standard_normal((n_classes, n_features), dtype=np.float32)
    projection /= np.sqrt(n_classes)
    for batch, start in enumerate(range(0, n_rows, BATCH_ROWS)):
        rng = np.random.default_rng([seed, batch])
        size = min(BATCH_ROWS, n_rows - start)
        y = rng.integers(n_classes, size=size)
        difficulty = rng.exponential(size=(size, 1)).astype(np.float32)
        common = rng.standard_normal((size, n_classes), dtype=np.float32)
        logits: list[np.ndarray] = []
        features: list[np.ndarray] = []
        for k in range(n_exits):
            noise = 0.8 * common + 0.6 * rng.standard_normal((size, n_classes), dtype=np.float32)
            noise *= 0.4 + 0.6 * difficulty
            noise[np.arange(size), y] += (2 + np.log(n_classes)) * (k + 1) / n_exits
            logits.append(noise)
            features.append(noise @ projection + rng.standard_normal((size, n_features), dtype=np.float32))
        yield logits, features, y


def write_cache(folder: Path, layout: ExitLayout, n_rows: int) -> tuple[float, float]:
    """Seconds of appending and closing, on the clock and of the processor."""
    elapsed = busy = 0.0
    writer = CacheWriter(folder, layout, origin={"model": "synthetic"}, dtype="float16")
    with writer:
        for logits, features, y in make_batches(layout, n_rows):
            start, start_busy = time.perf_counter(), time.process_time()
            writer.append(logits if layout.n_logits[0] else [None] * layout.n_exits, features, y)
            elapsed, busy = elapsed + time.perf_counter() - start, busy + time.process_time() - start_busy
    start = time.perf_counter()
    os.sync()
    return elapsed + time.perf_counter() - start, busy


def write_plain_file(path: Path, n_bytes: int, n_piece: int) -> float:
    """Seconds of writing a file in pieces, until the disk has it."""
    piece = np.random.default_rng(0).bytes(n_piece)
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(max(1, n_bytes // n_piece)):
            file.write(piece)
        os.fsync(file.fileno())
    os.sync()
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_300_000)
    parser.add_argument("--exits", type=int, default=5)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--features", type=int, default=0, help="of each exit, beside its logits")
    parser.add_argument("--results", type=Path, help="CSV file to which a line is added")
    args = parser.parse_args()

    layout = ExitLayout(
        [args.classes] * args.exits, [args.features] * args.exits, classes=range(args.classes), cost_unit="MACs"
    )
    n_bytes = 2 * args.rows * layout.n_columns
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    os.sync()
    plain_bytes = min(n_bytes, PLAIN_BYTES)
    plain = plain_bytes / write_plain_file(
        args.folder.with_suffix(".plain"), plain_bytes, 2 * BATCH_ROWS * args.classes
    )
    before = reset_peak_memory()
    elapsed, busy = write_cache(args.folder, layout, args.rows)
    line = {
        "rows": args.rows,
        "exits": args.exits,
        "classes": args.classes,
        "features": args.features,
        "gigabytes": round(n_bytes / 1e9, 2),
        "plain_MB_per_second": round(plain / 1e6),
        "cache_MB_per_second": round(n_bytes / elapsed / 1e6),
        "share_of_plain": round(n_bytes / elapsed / plain, 2),
        "cache_MB_per_processor_second": round(n_bytes / busy / 1e6),
        "peak_MB": round((peak_memory() - before) / 1024),
    }
    for name, value in line.items():
        print(f"{name:30} {value}")
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        is_new = not args.results.exists()
        with args.results.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(line))
            if is_new:
                writer.writeheader()
            writer.writerow(line)


if __name__ == "__main__":
    main()
