"""Time of a path of thresholds, and of optimal stopping, against the number of rows.

    python benchmarks/lagrangian_speed.py [--largest 1000000]

Prints seconds for each number of rows on one thread, and the exponents of their growth.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from threadpoolctl import threadpool_limits

from skexit import OptimalStoppingPolicy, ThresholdPolicy, stack_exits
from skexit.policies.lagrangian import ThresholdSearch
from skexit.policies.rewards import expected_rewards
from skexit.uncertainty import max_probability, softmax

N_EXITS, N_CLASSES = 9, 10


def make_exits(n_rows: int) -> tuple:
    rng = np.random.default_rng(0)
    y = rng.integers(N_CLASSES, size=n_rows)
    difficulty = rng.exponential(size=(n_rows, 1, 1))
    logits = rng.normal(size=(n_rows, N_EXITS, N_CLASSES)) * (0.3 + difficulty)
    logits[np.arange(n_rows), :, y] += 1 + np.arange(N_EXITS) / 3
    return stack_exits(logits, costs=np.arange(1, N_EXITS + 1) / N_EXITS), y


def seconds_to_fit(n_rows: int) -> list[float]:
    """Of the path alone, of ThresholdPolicy with it, and of OptimalStoppingPolicy."""
    X, y = make_exits(n_rows)
    weight = np.ones(n_rows)
    scores = np.stack([max_probability(softmax(X.logits(k))) for k in range(N_EXITS)], axis=1)
    search = ThresholdSearch(scores, expected_rewards(X, y, weight), X.layout.cost_fractions, weight)
    times = []
    for fit in (
        search.path,
        lambda: ThresholdPolicy(schedule="lagrangian").fit(X, y),
        lambda: OptimalStoppingPolicy(random_state=0).fit(X, y),
    ):
        start = time.perf_counter()
        fit()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=1_000_000)
    numbers = [n for n in (5_000, 10_000, 100_000, 1_000_000) if n <= parser.parse_args().largest]
    print("seconds to fit")
    print(f"{'rows':>9} {'path of 60 prices':>18} {'ThresholdPolicy':>16} {'OptimalStoppingPolicy':>22}")
    times = []
    for n_rows in numbers:
        with threadpool_limits(1):
            times.append(seconds_to_fit(n_rows))
        print(f"{n_rows:9d} {times[-1][0]:18.2f} {times[-1][1]:16.2f} {times[-1][2]:22.2f}", flush=True)
    if len(numbers) > 2:
        exponents = np.polyfit(np.log(numbers[1:]), np.log(times[1:]), 1)[0]
        print("exponents of growth from 10,000 rows on:", exponents.round(2))


if __name__ == "__main__":
    main()
