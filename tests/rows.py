"""Rows with four exits that grow better, of samples of which some are harder than others."""

import numpy as np

from skexit import stack_exits


def make_rows(n=600, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    hardness = rng.exponential(size=(n, 1))
    logits = [signal * (1 + k) * np.eye(3)[y] + (0.3 + hardness) * rng.normal(size=(n, 3)) for k in range(4)]
    return stack_exits(logits, costs=[0.2, 0.5, 0.8, 1.0], classes=[0, 1, 2]), y
