"""Whether the expected time of a live network is near to its measured time, by batch size.

    python -m benchmarks.live.expected --data-root DIR --weights resnet56.th [--exits 9] [--clock cpu]

CIFAR-10 through a ResNet-56; `--data-root` and `--weights` are those of ``papers/em_routing.py``. Policies are fitted
on 1,000 test images, for a mean cost of `--budget` in operations, and 1,000 others are run. `expected` is from
`measure_latency` and the exits of these images on the cache. `measured` is the mean over batches of these images, on
which the plain and the live network take turns. All times are milliseconds per image.

With `--clock cpu`, all times are by the clock of their thread, which other programs lengthen less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.shared.live import (
    CLOCKS,
    LATENCY_CLOCKS,
    MAXIMUM_PROBABILITY,
    RECOMMENDED,
    Case,
    policies,
    resnet56,
    resnet56_parser,
    timed,
)
from skexit.runtime import EarlyExitModel, measure_latency
from skexit.utils._warnings import silenced

N_FITTING, N_RUN = 1000, 1000
#: Images that are timed at each batch size, but no fewer than four batches.
N_TIMED = 400


@torch.inference_mode()
def measured_ms(case: Case, live: EarlyExitModel, size: int, clock: Any) -> tuple[float, float]:
    """Mean milliseconds per image of the plain network and of the live network, in batches of one size."""
    rng, times = np.random.default_rng(size), []
    for number in range(-2, max(N_TIMED // size, 4)):
        images = case.draw(size, rng)
        own = [timed(network, images, clock=clock)[0] / size for network in (case.network, live)]
        if number >= 0:  # the first ones warm up
            times.append(own)
    plain, early = np.mean(times, axis=0)
    return float(plain), float(early)


def compare(case: Case, live: EarlyExitModel, policy: Any, X: Any, sizes: list[int], clock: str) -> Iterator[Any]:
    latency = measure_latency(
        live, batch_sizes=sorted({*sizes, 1, 2, 4}), example_input=case.rows(slice(1)), clock=LATENCY_CLOCKS[clock]
    )
    expected = latency.expected(policy, X)
    for size in sizes:
        plain, early = measured_ms(case, live, size, CLOCKS[clock])
        row = expected.loc[size]
        yield {
            "batch size": size,
            "plain, expected": row["network_ms"],
            "plain, measured": plain,
            "live, expected": row["live_ms"],
            "live, measured": early,
            "saved, expected": row["saved"],
            "saved, measured": 1 - early / plain,
        }


def main() -> None:
    arguments = resnet56_parser(__doc__, batch_sizes=[1, 8, 64]).parse_args()
    torch.set_num_threads(arguments.threads)
    case = resnet56(arguments.data_root, arguments.weights, arguments.exits, N_FITTING, N_FITTING + N_RUN)
    X, y = replace(case, n_fitting=N_FITTING + N_RUN).extract()
    rows = []
    for name in (MAXIMUM_PROBABILITY, RECOMMENDED):
        with silenced():
            policy = policies(arguments.budget)[name].fit(X[:N_FITTING], y[:N_FITTING])
        found = compare(case, case.live(policy), policy, X[N_FITTING:], arguments.batch_sizes, arguments.clock)
        for row in found:
            rows.append({"policy": name, **row})
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
