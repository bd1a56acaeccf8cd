"""What the live network takes over its ideal, for policies, batch sizes, eager and compiled.

    python -m benchmarks.live.ideal --data-root DIR --weights resnet56.th [--exits 9] [--compiled]

CIFAR-10 through a ResNet-56; `--data-root` and `--weights` are those of ``papers/em_routing.py``. Heads and policies
are fitted on 2,000 test images for a mean cost of `--budget`, in operations; others are run.

The ideal is the sum over the stages of the plain stage's time for as many images as reach it, without exits. With
``--compiled`` its stages are compiled, too, for the same batch sizes. `floor` is the time without decisions: nothing is
pooled or scored, and samples leave where the policy says. `decision` is the live network's. Both are medians, over
batches, of the ratio to the ideal of the same batch, as all three run one after the other on each batch.

By `--clock cpu`, time is that of the thread alone, which other programs lengthen less; for one thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.shared.live import CLOCKS, Case, EmptyDecisions, ideal_ms, policies, resnet56, resnet56_parser, timed
from skexit.runtime import EarlyExitModel

N_FITTING_IMAGES = 2000
#: Images that are run at each batch size, but no fewer than four batches.
N_IMAGES = 300
N_WARM_UP = 3


@torch.inference_mode()
def measure(live: EarlyExitModel, case: Case, batch_size: int, clock: Any) -> pd.Series:
    """Time of the ideal in milliseconds, and the ratios to it."""
    empty = EmptyDecisions(live)
    rng, rows = np.random.default_rng(batch_size), []
    for number in range(-N_WARM_UP, max(N_IMAGES // batch_size, 4)):
        images = case.draw(batch_size, rng)
        decided, output = timed(live, images, clock=clock)
        ideal = ideal_ms(live, images, output.exits, clock)
        empty.set_exits(output.exits)
        floor, found = timed(empty, images, clock=clock)
        assert found.exits.equal(output.exits)
        if number >= 0:
            rows.append({"ideal ms": ideal, "floor": floor / ideal, "decision": decided / ideal})
    return pd.DataFrame(rows).median()


def main() -> None:
    parser = resnet56_parser(__doc__, batch_sizes=[1, 8, 64, 256])
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case = resnet56(arguments.data_root, arguments.weights, arguments.exits, N_FITTING_IMAGES, 2 * N_FITTING_IMAGES)
    X, y = case.extract()
    tables = {}
    for name, policy in policies(arguments.budget).items():
        policy.fit(X, y)
        for size in arguments.batch_sizes:
            live = case.live(policy)
            if arguments.compiled:
                live.compile_stages(sorted({1, size // 4 or 1, size // 2 or 1, size}))
            tables[name, size] = measure(live, case, size, CLOCKS[arguments.clock])
            print(name, size, tables[name, size].round(3).to_dict(), flush=True)
    print(pd.DataFrame(tables).T.round(3).to_string())


if __name__ == "__main__":
    main()
