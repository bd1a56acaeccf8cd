"""EM routing against confidence thresholds on CIFAR-10, nine exits of a frozen ResNet-56.

    python -m benchmarks.papers.em_routing --data-root DIR --weights resnet56.th [--pool avg] [--splits 5]

`--data-root` holds CIFAR-10 as torchvision stores it (downloaded there when it is missing and there
is a network), or ``cifar10.npz`` with ``X_test`` (10000, 32, 32, 3) and ``y_test``. `--weights` is a
checkpoint of the CIFAR ResNet-56 with option A shortcuts: a dict with a ``state_dict``.

Heads and policies are fitted on a random half of the test images, which the network has not seen,
and measured on the other half; the table has means over the splits, and half the width of their
95 % interval.
"""

from __future__ import annotations

import numpy as np

from benchmarks.shared.routing import BASELINE, argument_parser, compare, extract, summarize
from skexit import EMExitAssigner, ExitArray, ThresholdPolicy
from skexit.policies import ExitPolicy


def fit_policies(X: ExitArray, y: np.ndarray, budget: float, seed: int) -> dict[str, ExitPolicy]:
    policies = {
        BASELINE: ThresholdPolicy(budget=budget),
        "EM": EMExitAssigner(budget=budget, random_state=seed),
        "EM, routers alone": EMExitAssigner(budget=budget, confidence_weight=0, random_state=seed),
    }
    return {name: policy.fit(X, y) for name, policy in policies.items()}


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    X, y = extract(options.data_root, options.weights, options.pool)
    results = compare(X, y, options.splits, fit_policies)
    if options.out:
        results.to_csv(options.out, index=False)
    print(summarize(results).to_string())


if __name__ == "__main__":
    main()
