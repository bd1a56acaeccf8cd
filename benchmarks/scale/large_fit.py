"""Time and peak memory of fits and predictions on a cache that may be larger than memory.

    python -m benchmarks.scale.large_cache FOLDER
    python -m benchmarks.scale.large_fit FOLDER [--rows 10000 100000 1000000] [--predict 100000] [--only NAME ...]
        [--how fit|partial_fit|fit_transform] [--results FILE]

Each fit and its predictions run in a process of their own, on the first rows of the cache. Another process
reads its memory 50 times a second. What is counted is what the process has in memory beyond what it had
after all imports, in MB: `anonymous` is its own memory; `resident` has the pages of the mapped files of the
cache, too, which the system drops when another process asks for memory. Time is that on the clock and that
of the processor (user and system, of one thread). The aims are 1,500 MB and an exponent of 1.1 in the rows.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import csv
import multiprocessing
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401  (imports are no part of what is measured)
from sklearn.frozen import FrozenEstimator  # noqa: F401

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitArray,
    ExitEnsemble,
    ExitHeads,
    FeatureCache,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    RiskControlledPolicy,
    ThresholdPolicy,
)

#: Rows of a call of partial_fit.
PARTIAL_ROWS = 2048

ESTIMATORS: dict[str, Callable[[], Any]] = {
    "thresholds": lambda: ThresholdPolicy(),
    "thresholds, entropy": lambda: ThresholdPolicy("entropy"),
    "thresholds, margin": lambda: ThresholdPolicy("margin"),
    "thresholds, vote": lambda: ThresholdPolicy("vote"),
    "thresholds, shared": lambda: ThresholdPolicy(schedule="shared"),
    "optimal stopping": lambda: OptimalStoppingPolicy(random_state=0),
    "EM": lambda: EMExitAssigner(random_state=0),
    "EM, budget": lambda: EMExitAssigner(budget=0.5, random_state=0),
    "EENet": lambda: EENetPolicy(random_state=0),
    "JEI": lambda: JEIGatedEnsemble(random_state=0),
    "risk": lambda: RiskControlledPolicy(alpha=0.1, random_state=0),
    "random": lambda: RandomExit(random_state=0),
    "ensemble": lambda: ExitEnsemble(),
    "heads": lambda: ExitHeads(solver="adam", random_state=0),
    "heads, cascade": lambda: ExitHeads((64,), cascade=True, random_state=0),
}


def measure(folder: Path, n_rows: int, n_predicted: int, name: str, how: str, pipe: Any) -> None:
    """Fit and predict, and say when measuring begins and ends."""
    warnings.simplefilter("ignore")
    cache = FeatureCache(folder)
    X, y = cache.X[:n_rows], cache.y[:n_rows]
    if name.startswith("heads"):
        X = without_logits(X)
    estimator = ESTIMATORS[name]()
    pipe.send("start")
    pipe.recv()
    results: dict[str, Any] = {}
    with Timer(results, "fit"):
        if how == "fit_transform":
            transformed = estimator.fit_transform(X, y)
            for batch in transformed.batches(PARTIAL_ROWS):
                transformed.logits(X.layout.n_exits - 1, batch)
        elif how == "partial_fit":
            for batch in X.batches(PARTIAL_ROWS):
                estimator.partial_fit(X[batch], y[batch], classes=cache.layout.classes)
        else:
            estimator.fit(X, y)
    with Timer(results, "predict"):
        if hasattr(estimator, "predict_exit"):
            exits = estimator.predict_exit(X[:n_predicted])
            results["cost"] = float(estimator.costs_[exits].mean())
        elif how != "fit_transform":
            transformed = estimator.transform(X[:n_predicted])
            for batch in transformed.batches(PARTIAL_ROWS):
                transformed.logits(X.layout.n_exits - 1, batch)
    pipe.send(results)


def without_logits(X: ExitArray) -> ExitArray:
    """The same rows, with features only."""

    class FeaturesOnly:
        n_rows, dtype = len(X), X.dtype

        @staticmethod
        def read(layout: Any, k: int, part: str, rows: Any) -> Any:
            return X.features(k, rows)

    layout = X.layout
    return ExitArray(FeaturesOnly(), layout.replace(n_logits=[0] * layout.n_exits))


class Timer:
    """Seconds of a block, on the clock and of the processor."""

    def __init__(self, results: dict[str, Any], what: str) -> None:
        self.results, self.what = results, what

    def __enter__(self) -> None:
        self.start, self.busy = time.perf_counter(), time.process_time()

    def __exit__(self, *_: Any) -> None:
        self.results[f"{self.what}_seconds"] = time.perf_counter() - self.start
        self.results[f"{self.what}_processor_seconds"] = time.process_time() - self.busy


def memory_of(process: int) -> tuple[float, float]:
    """Anonymous and resident memory of a process, in MB (Linux)."""
    status = Path(f"/proc/{process}/status").read_text()
    sizes = {name: int(size) for name, size in re.findall(r"(RssAnon|VmRSS):\s+(\d+) kB", status)}
    return sizes["RssAnon"] * 1.024e-3, sizes["VmRSS"] * 1.024e-3


def run(folder: Path, n_rows: int, n_predicted: int, name: str, how: str) -> dict[str, Any]:
    """Results of one process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measure, args=(folder, n_rows, n_predicted, name, how, theirs))
    process.start()
    theirs.close()
    ours.recv()
    before = peak = np.array(memory_of(process.pid))
    ours.send("go")
    while not ours.poll(0.02):
        peak = np.maximum(peak, memory_of(process.pid))
    results = ours.recv()
    process.join()
    anonymous, resident = peak - before
    return results | {"anonymous_MB": anonymous, "resident_MB": resident}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", help="by default all")
    parser.add_argument("--predict", type=int, default=100_000, help="answers are predicted for so many rows at most")
    parser.add_argument("--only", nargs="+", default=list(ESTIMATORS), choices=list(ESTIMATORS))
    parser.add_argument("--how", default="fit", choices=["fit", "partial_fit", "fit_transform"])
    parser.add_argument("--results", type=Path, help="CSV file to which a line is added for each process")
    args = parser.parse_args()

    cache = FeatureCache(args.folder)
    columns = [f"{what}{unit}" for what in ("fit", "predict") for unit in ("_seconds", "_processor_seconds")]
    columns += ["anonymous_MB", "resident_MB", "cost"]
    for name in args.only:
        times = []
        for n_rows in args.rows or [cache.n_rows]:
            n_predicted = min(n_rows, args.predict)
            results = run(args.folder, n_rows, n_predicted, name, args.how)
            times.append(results["fit_processor_seconds"])
            line = {
                "estimator": name,
                "how": args.how,
                "rows": n_rows,
                "predicted_rows": n_predicted,
                "exits": cache.layout.n_exits,
                "classes": cache.layout.n_classes,
                "features": cache.layout.n_features[0],
            } | {column: round(results[column], 3) for column in columns if column in results}
            print("  ".join(f"{name}={value}" for name, value in line.items()), flush=True)
            if args.results:
                add_line(args.results, line, [*line, *(column for column in columns if column not in line)])
        if len(times) > 1:
            print(f"{name}: exponent {np.polyfit(np.log(args.rows), np.log(times), 1)[0]:.2f}", flush=True)


def add_line(path: Path, line: dict[str, Any], columns: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerow(line)


if __name__ == "__main__":
    main()
