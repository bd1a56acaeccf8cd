"""Expectation-maximisation on a million rows, against one pass that computes which exits are right.

    python -m benchmarks.speed.em_speed [--rows 1000000] [--exits 9] [--classes 10]

Prints the median time of each and their ratio. The project's aim is a ratio of at most 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from skexit import stack_exits
from skexit.data._walk import correct_exits
from skexit.policies.em._assignment import fit_exit_prior, group_patterns


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--exits", type=int, default=9)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((options.rows, options.exits, options.classes), dtype=np.float32)
    labels = rng.integers(options.classes, size=options.rows)
    X = stack_exits(logits)
    del logits
    correct = correct_exits(X, labels)
    weight = np.ones(options.rows)

    def ten_iterations() -> None:
        patterns, pattern_weight, _ = group_patterns(correct, weight)
        fit_exit_prior(patterns, pattern_weight, 1.0, X.layout.cost_fractions, 1e-3, max_iter=10)

    one_pass = median_seconds(lambda: correct_exits(X, labels), options.repeats)
    iterations = median_seconds(ten_iterations, options.repeats)
    print(f"{options.rows:,} rows, {options.exits} exits, {options.classes} classes, {options.repeats} repeats")
    print(f"which exits are right:        {one_pass:8.4f} s")
    print(f"grouping and ten iterations:  {iterations:8.4f} s")
    print(f"ratio:                        {iterations / one_pass:8.3f}")


if __name__ == "__main__":
    main()
