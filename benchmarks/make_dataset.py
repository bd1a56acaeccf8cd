"""Make the data set that comes with the package, and print the figures of its description.

    python -m benchmarks.make_dataset --data-root DIR --weights FILE

runs a ResNet-56, trained on CIFAR-10, on the first 5,000 test images, and writes the averages of the activations
after each third block, and the network's own logits, to ``skexit/datasets/data/cifar10_resnet56.npz``. `DIR` is
a folder for torchvision's CIFAR10, or has a ``cifar10.npz`` with X_test and y_test; `FILE` holds the weights of
https://github.com/akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.shared.routing import EXITS, argument_parser, extract
from skexit import ExitHeads, OptimalStoppingPolicy, ThresholdPolicy, recommended_pipeline
from skexit.datasets import load_cifar10_resnet56

N_IMAGES = 5000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILE = Path(__file__).parents[1] / "skexit" / "datasets" / "data" / "cifar10_resnet56.npz"


def write_dataset(data_root: Path, weights: Path, file: Path) -> None:
    X, y = extract(data_root, weights, pool=["avg"], n_images=N_IMAGES)
    last = X.layout.n_exits - 1
    features = {f"features{k}": X.features(k).astype(np.float16) for k in range(last + 1)}
    np.savez_compressed(
        file,
        **features,
        logits=X.logits(last).astype(np.float16),
        target=y.astype(np.uint8),
        target_names=np.array(CLASSES),
        costs=X.layout.costs,
    )


def print_reference() -> None:
    """Accuracies on the second half of the rows, after a fit on the first."""
    X, y = load_cifar10_resnet56(return_X_y=True)
    fit, test = slice(None, len(y) // 2), slice(len(y) // 2, None)
    heads = ExitHeads(random_state=0)
    X_fit, X_test = heads.fit_transform(X[fit], y[fit]), heads.transform(X[test])
    for k, name in enumerate(EXITS):
        accuracy = np.mean(X_test.logits(k).argmax(axis=1) == y[test])
        print(f"{k} {name} {X.layout.n_features[k]:3d} {X.layout.costs[k] / 1e6:6.1f} {accuracy:.3f}")
    print(f"the network on all rows: {np.mean(X.logits(8).argmax(axis=1) == y):.4f}")
    pipeline = recommended_pipeline(budget=0.6, random_state=0).fit(X[fit], y[fit])
    policies = {
        "maximum probability": (ThresholdPolicy(budget=0.6).fit(X_fit, y[fit]), X_test),
        "optimal stopping": (OptimalStoppingPolicy(budget=0.6, random_state=0).fit(X_fit, y[fit]), X_test),
        "recommended pipeline": (pipeline["policy"], pipeline["ensemble"].transform(X[test])),
    }
    for name, (policy, X_policy) in policies.items():
        for budget in (0.4, 0.6, 0.8):
            at_budget = policy.with_budget(budget)
            accuracy, cost = at_budget.score(X_policy, y[test]), at_budget.mean_cost(X_policy)
            print(f"{name} at {budget}: accuracy {accuracy:.3f}, cost {cost:.3f}")


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.set_defaults(out=FILE)
    arguments = parser.parse_args()
    write_dataset(arguments.data_root, arguments.weights, arguments.out)
    print_reference()
