"""Negative log-likelihood of new rows before and after ``calibrate``, on the packaged data set.

The mean over splits, for heads on 1,000 rows and for an ensemble of them, whose probabilities are better.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import numpy as np
from sklearn.metrics import log_loss

from skexit import ExitEnsemble, ExitHeads, OptimalStoppingPolicy, ThresholdPolicy
from skexit.datasets import load_cifar10_resnet56

_SIZES = (100, 300, 1000)
_N_FIT, _N_NEW = 1000, 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=20)
    n_splits = parser.parse_args().splits
    X, y = load_cifar10_resnet56(return_X_y=True)
    losses: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for seed in range(n_splits):
        rows = np.random.default_rng(seed).permutation(len(y))
        fitting, rest = rows[:_N_FIT], rows[_N_FIT:]
        for kind, step in (
            ("heads", ExitHeads(random_state=seed)),
            ("ensemble", ExitEnsemble(ExitHeads(random_state=seed))),
        ):
            X_fit, X_rest = step.fit_transform(X[fitting], y[fitting]), step.transform(X[rest])
            policies = {f"{kind}, thresholds at {budget}": ThresholdPolicy(budget=budget) for budget in (0.5, 0.6, 0.7)}
            policies[f"{kind}, optimal stopping at 0.6"] = OptimalStoppingPolicy(budget=0.6, random_state=seed)
            for name, policy in policies.items():
                _measure(losses, name, policy.fit(X_fit, y[fitting]), X_rest, y[rest])
    for (name, size), pairs in sorted(losses.items()):
        before, after = np.mean(pairs, axis=0)
        print(f"{name:<34}{size:>6} rows: {before:.4f} before, {after:.4f} after")


def _measure(losses: Any, name: str, policy: Any, X: Any, y: Any) -> None:
    new, calibration = slice(0, _N_NEW), np.arange(_N_NEW, len(y))

    def loss(policy: Any) -> float:
        return log_loss(y[new], policy.predict_proba(X[new]), labels=policy.classes_)

    before = loss(policy)
    for size in _SIZES:
        losses[name, size].append((before, loss(policy.calibrate(X[calibration[:size]], y[calibration[:size]]))))


if __name__ == "__main__":
    main()
