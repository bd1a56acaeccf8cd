"""How often 95 % intervals hold the true value, of accuracy and of numbers that are read off the hull.

A network with five exits is right for a share p of the samples at its last exit, and for the same share or less at
earlier ones. A policy stops where a score, which says more or less about whether the answer is right, is above one of
six or twenty thresholds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from skexit.metrics import accuracy_at_budget, area_under_accuracy_cost, bootstrap_interval

_COSTS = np.linspace(0.2, 1, 5)
Answers = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def draw(
    n_samples: int, p: float, rng: np.random.Generator, *, n_settings: int, information: float, rising: bool
) -> Answers:
    """True labels, answers and costs under each setting; answer 1 is right."""
    accuracies = np.linspace(p - 0.4 * (1 - p), p, 5) if rising else np.full(5, p)
    difficulty = 0.8 * rng.normal(size=(n_samples, 1)) + 0.6 * rng.normal(size=(n_samples, 5))
    right = norm.cdf(difficulty) < accuracies
    scores = rng.random((n_samples, 5)) + information * right
    scores[:, -1] = np.inf
    exits = np.argmax(scores[:, None] >= np.linspace(0.02, 1 + information, n_settings)[:, None], axis=2)
    return np.ones(n_samples), np.take_along_axis(right, exits, axis=1).astype(float), _COSTS[exits]


def coverage(
    measure: Callable[..., float], p: float, n_samples: int, n_sets: int, n_resamples: int, method: str, **kind: Any
) -> float:
    """Share of the sets whose interval holds what 200,000 samples give."""
    truth = measure(*draw(200_000, p, np.random.default_rng(1), **kind))
    rng, n_held = np.random.default_rng(2), 0
    for seed in range(n_sets):
        low, high = bootstrap_interval(
            measure, *draw(n_samples, p, rng, **kind), n_resamples=n_resamples, method=method, random_state=seed
        )
        n_held += low <= truth <= high
    return n_held / n_sets


def accuracy(y_true: NDArray[Any], y_pred: NDArray[Any], costs: NDArray[Any]) -> float:
    return float((y_true == y_pred[:, -1]).mean())


def at_budget(y_true: NDArray[Any], y_pred: NDArray[Any], costs: NDArray[Any]) -> float:
    return accuracy_at_budget(y_true, y_pred, costs, budget=0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--samples", type=int, nargs="+", default=[30, 200, 1000])
    arguments = parser.parse_args()
    useful = {"n_settings": 6, "information": 0.7, "rising": True}
    alike = {"n_settings": 20, "information": 0.1, "rising": False}  # the hull is drawn through the luckiest points
    metrics: list[tuple[str, Callable[..., float], dict[str, Any]]] = [
        ("accuracy", accuracy, useful),
        ("area under the hull", area_under_accuracy_cost, useful),
        ("area under the hull, settings alike", area_under_accuracy_cost, alike),
        ("accuracy at a budget", at_budget, useful),
        ("accuracy at a budget, settings alike", at_budget, alike),
    ]
    for (name, measure, kind), p, n_samples in product(metrics, (0.5, 0.8, 0.97, 1.0), arguments.samples):
        held = coverage(measure, p, n_samples, arguments.sets, arguments.resamples, arguments.method, **kind)
        print(f"{name:<38}p = {p:<5}n = {n_samples:<6}{held:.3f}", flush=True)


if __name__ == "__main__":
    main()
