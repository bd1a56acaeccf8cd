"""EENet and what it owes to each of its parts, on CIFAR-10 with nine exits of a frozen ResNet-56.

    python -m benchmarks.papers.eenet_ablation --data-root DIR --weights resnet56.th [--splits 5] [--figure PATH]

`--data-root` and `--weights` are those of ``em_routing.py``. Methods are compared on the same splits
with maximum probability and geometric quotas; "as published" has the paper's settings, with a larger
learning rate for a tenth of the epochs, and with its own for 1,000.

`--figure` draws, of the first split at a budget of 0.7, the scores of the samples that get to each
exit, and its threshold.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from scipy.special import expit

from benchmarks.shared.routing import BASELINE, argument_parser, compare, extract, split, summarize
from skexit import EENetPolicy, ExitArray, ThresholdPolicy
from skexit.data._walk import correct_exits
from skexit.policies import ExitPolicy

AS_PUBLISHED = {"init": "random", "confidence_weight": 0, "l2": 0.01, "patience": 50}
FIGURE_BUDGET = 0.7

seconds: dict[str, list[float]] = {}


def fit_policies(X: ExitArray, y: np.ndarray, budget: float, seed: int) -> dict[str, ExitPolicy]:
    def eenet(**parameters: object) -> EENetPolicy:
        return EENetPolicy(budget, random_state=seed, **parameters)

    policies = {
        BASELINE: ThresholdPolicy(budget=budget),
        "EENet": eenet(),
        "without learned scores": eenet(learn_scores=False),
        "without learned distribution": eenet(learn_distribution=False),
        "without either": eenet(learn_scores=False, learn_distribution=False),
        "utility alone": eenet(confidence_weight=0),
        "random start": eenet(init="random"),
        "as published, 100 epochs at 1e-3": eenet(**AS_PUBLISHED, max_epochs=100, learning_rate=1e-3),
        "as published, 1,000 epochs at 3e-5": eenet(**AS_PUBLISHED, max_epochs=1000, learning_rate=3e-5),
    }
    for name, policy in policies.items():
        start = time.perf_counter()
        policy.fit(X, y)
        seconds.setdefault(name, []).append(time.perf_counter() - start)
    return policies


def draw(X: ExitArray, y: np.ndarray, path: Path) -> None:
    """Histograms of the scores at each exit but the last, right and wrong, with the thresholds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    X_fit, y_fit, X_test, y_test = split(X, y, seed=0)
    policy = EENetPolicy(FIGURE_BUDGET, random_state=0).fit(X_fit, y_fit)
    scores, exits, right = expit(policy.exit_scores(X_test)), policy.predict_exit(X_test), correct_exits(X_test, y_test)
    figure, axes = plt.subplots(2, 4, figsize=(9.3, 4.6), sharex=True, layout="constrained")
    bins = np.linspace(0, 1, 26)
    for k, ax in enumerate(axes.flat):
        here = exits >= k
        groups = [scores[here & right[:, k], k], scores[here & ~right[:, k], k]]
        ax.hist(groups, bins, stacked=True, color=["#4878a8", "#e1a03c"], label=["right", "wrong"])
        if np.isfinite(policy.thresholds_[k]):
            ax.axvline(expit(policy.thresholds_[k]), color="black", linewidth=1.5, label="threshold")
        ax.set_title(f"exit {k}: {np.mean(exits[here] == k):.0%} of {here.sum():,} leave", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[1]:
        ax.set_xlabel("score")
    for ax in axes[:, 0]:
        ax.set_ylabel("samples")
    axes[1, 3].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--figure", type=Path, help="image file to draw the scores in")
    options = parser.parse_args()
    X, y = extract(options.data_root, options.weights, options.pool)
    if options.figure:
        draw(X, y, options.figure)
    results = compare(X, y, options.splits, fit_policies)
    if options.out:
        results.to_csv(options.out, index=False)
    print(summarize(results).to_string())
    print("\nseconds of a fit, mean")
    for name, times in seconds.items():
        print(f"{name:36s} {np.mean(times):.2f}")


if __name__ == "__main__":
    main()
