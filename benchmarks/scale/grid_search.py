"""One grid search over three methods, with one job, with two, and as two processes that share the work.

    python -m benchmarks.scale.grid_search [--rows 10000] [--budgets 10] [--features 64] [--repeats 1]
        [--quick] [--only-memory]

Writes a cache of synthetic exits with logits and features, so that no heads are fitted, and searches
over 3 methods x 10 budgets x 5 folds on it. Each search is a process of its own, and its time includes
the start. The project's aim is that two jobs are at least 1.6 times as fast as one, or as fast as two
processes with half of the settings each, and that no worker holds its own copy of the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

# The workers are what runs at the same time, not the threads of one of them; before NumPy is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skexit import EENetPolicy, EMExitAssigner, ExitLayout, FeatureCache, JEIGatedEnsemble
from skexit.cache import CacheWriter
from skexit.model_selection import accuracy_and_cost, best_within

MODULE = "benchmarks.scale.grid_search"
MEGABYTE = 2**20
#: Short training: the times of searches are compared, not their results.
METHODS = [
    EMExitAssigner(max_epochs=2, confidence_weight=1.0, random_state=0),
    EENetPolicy(max_epochs=3, random_state=0),
    JEIGatedEnsemble(random_state=0),
]


def write_cache(folder: Path, n_rows: int, n_features: int, n_exits: int = 5, n_classes: int = 10) -> None:
    """Exits whose logits become more often right, with features that tell how hard a sample is."""
    rng = np.random.default_rng(0)
    y = rng.integers(n_classes, size=n_rows)
    difficulty = rng.exponential(size=(n_rows, 1))
    layout = ExitLayout(n_logits=[n_classes] * n_exits, n_features=[n_features] * n_exits, classes=range(n_classes))
    with CacheWriter(folder, layout, origin={"model": "synthetic"}) as writer:
        logits, features = [], []
        for k in range(n_exits):
            noise = rng.standard_normal((n_rows, n_classes))
            logits.append(((1 + k) * np.eye(n_classes)[y] + (0.3 + difficulty) * noise).astype(np.float32))
            feature = rng.standard_normal((n_rows, n_features), dtype=np.float32)
            feature[:, :1] += difficulty
            feature[:, 1 : 1 + n_classes] += (1 + k) * np.eye(n_classes)[y]
            features.append(feature)
        writer.append(logits, features, y)


def memory_of(folder: Path) -> dict[str, float]:
    """Memory of this process in MB: its own, what it has mapped of the cache, and what it has copied of that."""
    totals: dict[str, float] = dict.fromkeys(("own", "mapped", "share", "copied"), 0.0)
    in_cache = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            in_cache = str(folder) in line
        elif name == "Anonymous:":
            totals["own"] += int(values[0]) / 1024
            totals["copied"] += in_cache * int(values[0]) / 1024
        elif in_cache and name in ("Rss:", "Pss:"):
            totals["mapped" if name == "Rss:" else "share"] += int(values[0]) / 1024
    return totals


class MemoryOfWorker:
    """In place of a score, the memory of the worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, estimator: Any, X: Any, y: Any) -> dict[str, float]:
        return accuracy_and_cost()(estimator, X, y) | memory_of(self.folder) | {"process": os.getpid()}


def search(folder: Path, budgets: list[float], n_jobs: int, scoring: Any) -> dict[str, Any]:
    """Results of the search."""
    cache = FeatureCache(folder)
    grid = GridSearchCV(
        Pipeline([("policy", METHODS[0])]),
        {"policy": METHODS, "policy__budget": budgets},
        scoring=scoring,
        refit=best_within(1.0),
        cv=5,
        n_jobs=n_jobs,
        error_score="raise",
    )
    return grid.fit(cache.X, cache.y).cv_results_


def seconds_a_fit(results: dict[str, Any]) -> dict[str, float]:
    seconds = defaultdict(list)
    for params, mean in zip(results["params"], results["mean_fit_time"], strict=True):
        seconds[type(params["policy"]).__name__].append(mean)
    return {name: float(np.mean(values)) for name, values in seconds.items()}


def print_memory(folder: Path, budget: float) -> None:
    """Search with two jobs, and print what their workers had in memory."""
    results = search(folder, [budget], 2, MemoryOfWorker(folder))
    values = {
        name: np.concatenate([results[f"split{fold}_test_{name}"] for fold in range(5)])
        for name in ("own", "mapped", "share", "copied", "process")
    }
    print(f"memory of {len(np.unique(values['process']))} workers, after {values['own'].size} fits:")
    print(f"  its own:           at most {values['own'].max():.1f} MB, {values['own'].min():.1f} MB at the least")
    print(f"  the cache, mapped: at most {values['mapped'].max():.1f} MB")
    print(f"  its share of that: at the median {np.median(values['share']):.1f} MB")
    print(f"  the cache, copied: at most {values['copied'].max():.1f} MB")


def cpu_seconds() -> float:
    """Processor time of the searches that have ended, and of their workers."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(folder: Path, shares: list[list[float]], n_jobs: int) -> tuple[float, float, dict[str, float]]:
    """One search a share of the budgets, all at the same time: seconds, CPU seconds, seconds a fit in the first."""
    start, cpu_start = time.perf_counter(), cpu_seconds()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", MODULE, "--search", str(folder), json.dumps(share), str(n_jobs)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in shares
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("a search failed; see above.")
    return time.perf_counter() - start, cpu_seconds() - cpu_start, json.loads(outputs[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--budgets", type=int, default=10)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two budgets")
    parser.add_argument("--only-memory", action="store_true")
    parser.add_argument("--search", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        folder, share, n_jobs = options.search
        results = search(Path(folder), json.loads(share), int(n_jobs), accuracy_and_cost())
        print(json.dumps(seconds_a_fit(results)))
        return

    budgets = np.linspace(0.3, 0.9, 2 if options.quick else options.budgets).round(3).tolist()
    variants = {
        "one job": ([budgets], 1),
        "two jobs": ([budgets], 2),
        "two processes": ([budgets[::2], budgets[1::2]], 1),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "cache")
        write_cache(folder, options.rows, options.features)
        X = FeatureCache(folder).X
        size = sum(file.stat().st_size for file in folder.rglob("*.npy")) / MEGABYTE
        print(f"{X}, {size:.1f} MB on disk; {len(METHODS)} methods x {len(budgets)} budgets x 5 folds")
        print(f"sent to a worker: X pickles to {len(pickle.dumps(X)) / 1024:.1f} KiB")
        if options.only_memory:
            print_memory(folder, budgets[0])
            return
        # The variants take turns, so that what else runs on the machine disturbs all of them.
        times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
        told = {}
        for _ in range(options.repeats):
            for variant, arguments in variants.items():
                *measured, told[variant] = run(folder, *arguments)
                times[variant].append(measured)
        median = {variant: np.median(values, axis=0) for variant, values in times.items()}
        for variant, (seconds, cpu) in median.items():
            ratio = median["one job"][0] / seconds
            print(f"{variant:14s} {seconds:7.1f} s ({cpu:.1f} s of CPU)   {ratio:5.2f} times as fast as one job")
        fits = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in told["one job"].items())
        print(f"a fit with one job: {fits}")
        print_memory(folder, budgets[0])


if __name__ == "__main__":
    main()
