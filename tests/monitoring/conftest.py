"""Fitted policies for monitors and controllers."""

from functools import cache

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits

from skexit import ExitHeads, ThresholdPolicy, make_exit_pipeline, stack_exits
from skexit.utils._warnings import silenced


@cache
def _data():
    rng = np.random.default_rng(1)
    y = rng.integers(3, size=400)
    hardness = rng.exponential(size=(400, 1))
    exits = [(1 + k) * np.eye(3)[y] + (0.3 + hardness) * rng.normal(size=(400, 3)) for k in range(4)]
    features = [np.hstack([logits, hardness]) for logits in exits]
    return stack_exits(exits, features, costs=[0.2, 0.5, 0.8, 1.0], classes=[0, 1, 2]), y


@pytest.fixture
def fitted_policies():
    """A function that fits a policy to 200 rows, and gives it with 200 others."""

    def fit(policy):
        X, y = _data()
        with silenced():
            return clone(policy).fit(X[:200], y[:200]), X[200:]

    return fit


@pytest.fixture
def digits_pipeline():
    images, y = load_digits(return_X_y=True)
    X = stack_exits(features=[images[:, :32], images])
    return make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.7)).fit(X[:800], y[:800]), X[800:]
