"""Exits that are chosen by their accuracy against exits at even steps.

    python -m benchmarks.choosing_exits --data-root DIR --weights resnet56.th [--splits 3] [--out FILE]

CIFAR-10 through a frozen ResNet-56 with an exit after each of its 27 blocks, linear heads on averages and maxima.
:func:`skexit.model_selection.choose_exits` sees half of the test images, on which heads and policies are fitted too;
accuracy and cost are those of the other half. Exits at even steps are as many blocks, evenly spaced, as the chosen
ones; the first of them is the block after the first of the steps. Blocks of this network cost about the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.shared.intervals import write
from benchmarks.shared.routing import argument_parser, extract, half_rows
from skexit import ExitArray, ExitHeads, OptimalStoppingPolicy, ThresholdPolicy
from skexit.model_selection import choose_exits

BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(9)]
BUDGETS = (0.3, 0.5, 0.7)
SIZES = (3, 5, 9)
POLICIES = {"maximum probability": ThresholdPolicy(), "optimal stopping": OptimalStoppingPolicy(random_state=0)}


def even_exits(n_exits: int, n_all: int) -> tuple[int, ...]:
    """So many of all exits, evenly spaced, the last one among them."""
    return tuple(np.round(np.linspace(n_all / n_exits - 1, n_all - 1, n_exits)).astype(int).tolist())


def sets_of_exits(X: ExitArray, y: np.ndarray, budget: float) -> Iterator[tuple[str, str, tuple[int, ...], float]]:
    """Number of exits as it was asked for, how they were found, the exits, and the seconds that this took."""
    n_all = X.layout.n_exits
    start = time.perf_counter()
    choice = choose_exits(X, y, budget=budget, random_state=0)
    seconds = time.perf_counter() - start
    chosen = {str(n_exits): choice.table.loc[n_exits, "exits"] for n_exits in SIZES}
    for asked, exits in (chosen | {"auto": tuple(choice.exits.tolist())}).items():
        yield asked, "chosen", exits, seconds
        yield asked, "even", even_exits(len(exits), n_all), 0.0
    yield "all", "all", tuple(range(n_all)), 0.0


def measure(X: ExitArray, y: np.ndarray, seed: int) -> Iterator[dict[str, object]]:
    """Accuracy and cost of each set of exits on new rows, of one split."""
    fit, test = half_rows(len(y), seed)
    heads = ExitHeads(random_state=0)
    X_fit, X_test = heads.fit_transform(X[fit], y[fit]), heads.transform(X[test])
    for budget in BUDGETS:
        for asked, how, exits, seconds in sets_of_exits(X_fit, y[fit], budget):
            row = {"split": seed, "budget": budget, "asked": asked, "exits": how, "n_exits": len(exits)}
            if X_fit.select_exits(exits).layout.cost_fractions[0] > budget:
                continue
            for name, policy in POLICIES.items():
                fitted = policy.set_params(budget=budget).fit(X_fit.select_exits(exits), y[fit])
                new = X_test.select_exits(exits)
                measured = {"accuracy": fitted.score(new, y[test]), "cost": fitted.mean_cost(new)}
                yield row | {"which": str(exits), "policy": name, "seconds": seconds} | measured


def main() -> None:
    parser = argument_parser(__doc__)
    parser.set_defaults(pool=["avg", "max"], splits=3)
    options = parser.parse_args()
    X, y = extract(options.data_root, options.weights, options.pool, exits=BLOCKS)
    results = pd.DataFrame([row for seed in range(options.splits) for row in measure(X, y, seed)])
    if options.out:
        results.to_csv(options.out, index=False)
    keys = ["policy", "budget", "asked", "exits"]
    groups = results.groupby(keys, sort=False)
    means = groups[["n_exits", "cost", "seconds"]].mean().round(4)
    print(pd.concat([write(groups[["accuracy"]]), means], axis=1).to_string())
    accuracies = results.pivot_table(index=["policy", "budget", "asked", "split"], columns="exits", values="accuracy")
    gains = (accuracies["chosen"] - accuracies["even"]).dropna().rename("gain").to_frame()
    print("\nchosen - even\n" + write(gains.groupby(["policy", "budget", "asked"])).to_string())


if __name__ == "__main__":
    main()
