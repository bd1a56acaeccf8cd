"""Features and labels of tasks in which the deepest head helps as a teacher, or does not."""

import numpy as np

from skexit import stack_exits

COSTS = [0.2, 0.6, 1.0]


def noisy_task(n_samples, seed=0, labels_of=1, n_classes=3):
    """Three exits, of which the last knows the class best, and labels of which some are wrong.

    One in `labels_of` rows has a label.
    """
    rng = np.random.default_rng(seed)
    truth = rng.integers(n_classes, size=n_samples)
    y = np.where(rng.random(n_samples) < 0.2, rng.integers(n_classes, size=n_samples), truth)
    y[rng.permutation(n_samples) % labels_of > 0] = -1
    deep = 2 * np.eye(n_classes, 6)[truth] + rng.normal(scale=0.6, size=(n_samples, 6))
    noisy = [deep + rng.normal(scale=scale, size=deep.shape) for scale in (2.0, 1.0)]
    maps = [np.concatenate([block, rng.normal(size=deep.shape)], axis=1).reshape(-1, 3, 2, 2) for block in noisy]
    return stack_exits(features=[*maps, deep], costs=COSTS, classes=list(range(n_classes))), y, truth


def overfitted_task(n_samples, seed=0, labels_of=1):
    """Two exits whose features are mostly noise, a last one without noise, and labels of which some are wrong.

    One in `labels_of` rows has a label.
    """
    rng = np.random.default_rng(seed)
    truth = rng.integers(3, size=n_samples)
    y = np.where(rng.random(n_samples) < 0.3, rng.integers(3, size=n_samples), truth)
    y[rng.permutation(n_samples) % labels_of > 0] = -1
    deep = 2 * np.eye(3, 6)[truth] + rng.normal(scale=0.6, size=(n_samples, 6))
    noisy = [deep + rng.normal(scale=scale, size=deep.shape) for scale in (1.0, 0.5)]
    maps = [np.column_stack([block, rng.normal(size=(n_samples, 66))]).reshape(-1, 18, 2, 2) for block in noisy]
    return stack_exits(features=[*maps, deep], costs=COSTS, classes=[0, 1, 2]), y


def memorable_task(n_samples, seed=0):
    """Two exits whose features, the same at both, tell rows but not the labels, which are random."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_samples, 4 * n_samples))
    return stack_exits(features=[features, features], costs=[0.01, 1]), rng.permutation(n_samples) % 2
