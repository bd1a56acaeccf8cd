"""Budgets and alarms while inputs change, on simulated streams.

    python -m benchmarks.statistics.drift [--streams 200]

Rows are the packaged outputs of a ResNet-56 on CIFAR-10: a fifth of them trains linear heads and a policy, the others
make streams of 5,000 samples, drawn with replacement. Harder inputs are the half of the samples with the lower
confidence at an exit in the middle.

stationary
    rows as they come;
abrupt
    the first half as it comes, the second from the harder half;
gradual
    the share of the harder half grows from 0 to 1;
adversarial
    all rows, hardest first.

It prints, for each kind of stream, the mean cost of fixed thresholds and of a controller, the largest distance of the
controller to its budget beside its bound, and the accuracy of the controller less that of thresholds that are set with
hindsight on each of five phases, at the cost that the controller had there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from skexit import ExitHeads, OptimalStoppingPolicy, ThresholdPolicy
from skexit.datasets import load_cifar10_resnet56
from skexit.monitoring import BudgetController
from skexit.policies import BudgetedPolicy
from skexit.utils._warnings import silenced

N_SAMPLES = 5000
BUDGET = 0.6
N_PHASES = 5


def streams(hardness: np.ndarray) -> dict[str, Callable[[np.random.Generator], np.ndarray]]:
    """For each kind of stream a function that draws row numbers."""
    all_rows, hard = np.arange(len(hardness)), np.flatnonzero(hardness > np.median(hardness))

    def mixed(rng: np.random.Generator, share: np.ndarray) -> np.ndarray:
        return np.where(rng.random(N_SAMPLES) < share, rng.choice(hard, N_SAMPLES), rng.choice(all_rows, N_SAMPLES))

    def adversarial(rng: np.random.Generator) -> np.ndarray:
        rows = rng.choice(all_rows, N_SAMPLES)
        return rows[np.argsort(-hardness[rows])]

    return {
        "stationary": lambda rng: rng.choice(all_rows, N_SAMPLES),
        "abrupt": lambda rng: mixed(rng, (np.arange(N_SAMPLES) >= N_SAMPLES // 2).astype(float)),
        "gradual": lambda rng: mixed(rng, np.linspace(0, 1, N_SAMPLES)),
        "adversarial": adversarial,
    }


def hindsight(policy: BudgetedPolicy, X: object, correct: np.ndarray, rows: np.ndarray, exits: np.ndarray) -> float:
    """Accuracy of thresholds set on each phase, at the cost that the controller had there."""
    right = []
    for phase in np.array_split(np.arange(len(rows)), N_PHASES):
        spent = float(policy.costs_[exits[phase]].mean())
        with silenced():
            own = policy.with_budget(min(max(spent, policy.costs_[0]), 1.0)).meet_budget(X[rows[phase]])
        right.append(correct[rows[phase], own.predict_exit(X[rows[phase]])])
    return float(np.concatenate(right).mean())


def measure(n_streams: int) -> pd.DataFrame:
    X, y = load_cifar10_resnet56(return_X_y=True)
    X_fit, X_new, y_fit, y_new = train_test_split(X, y, train_size=1000, stratify=y, random_state=0)
    heads = ExitHeads(random_state=0)
    logits, X_new = heads.fit_transform(X_fit, y_fit), heads.transform(X_new)
    rows = []
    for name, policy in (
        ("maximum probability", ThresholdPolicy(budget=BUDGET)),
        ("optimal stopping", OptimalStoppingPolicy(budget=BUDGET, random_state=0)),
    ):
        policy.fit(logits, y_fit)
        scores = policy.exit_scores(X_new)
        correct = policy.predict_at_exits(X_new) == y_new[:, None]
        fixed_exits = policy.predict_exit(X_new)
        for kind, draw in streams(-scores[:, len(policy.costs_) // 2]).items():
            for seed in range(n_streams):
                stream = draw(np.random.default_rng(seed))
                controller = BudgetController(policy)
                exits = controller.predict_exit(X_new[stream])
                distance = abs(controller.mean_cost - BUDGET)
                # Hindsight takes long: on every tenth stream.
                regret = np.nan
                if seed % 10 == 0:
                    accuracy = correct[stream, exits].mean()
                    regret = hindsight(policy, X_new, correct, stream, exits) - accuracy
                rows.append(
                    {
                        "policy": name,
                        "stream": kind,
                        "fixed": policy.costs_[fixed_exits[stream]].mean(),
                        "controller": controller.mean_cost,
                        "distance": distance,
                        "in bound": distance <= controller.bound,
                        "bound": controller.bound,
                        "hindsight": regret,
                    }
                )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200, help="streams of each kind")
    results = measure(parser.parse_args().streams)
    table = results.groupby(["policy", "stream"], sort=False).agg(
        fixed=("fixed", "mean"),
        controller=("controller", "mean"),
        largest_distance=("distance", "max"),
        bound=("bound", "max"),
        in_bound=("in bound", "mean"),
        hindsight_gains=("hindsight", "mean"),
        at_most=("hindsight", "max"),
    )
    print(f"budget {BUDGET}, {N_SAMPLES} samples\n{table.round(4).to_string()}")


if __name__ == "__main__":
    main()
