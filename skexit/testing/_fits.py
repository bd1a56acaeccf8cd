"""Small data sets, and fits of a policy to them, which the checks share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import has_fit_parameter

from skexit.data import ExitArray, stack_exits
from skexit.policies import ExitPolicy

#: No other axis has this length, so that an array of this length is one with the fitted rows.
N_ROWS = 151
_LAYOUTS: dict[str, dict[str, Any]] = {
    "main": {},
    "large": {"n_samples": 2 * N_ROWS + 1},
    "logits": {"classes": [0, 1, 2], "has_features": False},
    "features": {"has_logits": False, "costs": [0.4, 1.0]},
    "binary": {"classes": [0, 1], "costs": [1e6, 3e6, 4.2e6], "cost_unit": "FLOPs", "network_cost": 4e6},
}


@dataclass(frozen=True)
class CheckData:
    """Arguments of ``fit``."""

    X: ExitArray
    y: NDArray[Any]
    sample_weight: NDArray[np.float64] | None = None


@cache
def make_data(name: str) -> CheckData:
    """Data for the checks; the same object in every call.

    ``"main"`` has four exits with logits and features, and words as classes that are not sorted; ``"large"`` has twice
    its rows. ``"logits"``, ``"features"`` and ``"binary"`` have other layouts; in ``"binary"``, the last exit costs
    more than the network. ``"weighted"`` is ``"main"`` with weights, some of which are zero; ``"heavy"`` and
    ``"normalised"`` have multiples of these weights, and ``"dropped"`` lacks the rows of zero weight. ``"equal"`` is
    ``"main"`` with a weight of 0.1 for each row.
    """
    if name in _LAYOUTS:
        return _make_exits(**_LAYOUTS[name])
    main = make_data("main")
    weight = np.random.default_rng(1).uniform(0.5, 1.5, N_ROWS)
    weight[::7] = 0
    if name == "equal":
        return CheckData(main.X, main.y, np.full(N_ROWS, 0.1))
    if name == "dropped":
        kept = weight > 0
        return CheckData(main.X[kept], main.y[kept], weight[kept])
    return CheckData(main.X, main.y, {"weighted": 1, "heavy": 7e6, "normalised": 1 / weight.sum()}[name] * weight)


def _make_exits(
    n_samples: int = N_ROWS,
    classes: Sequence[Any] = ("owl", "cat", "dog"),
    *,
    has_logits: bool = True,
    has_features: bool = True,
    costs: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    cost_unit: str | None = None,
    network_cost: float | None = None,
) -> CheckData:
    """Exits whose accuracy increases from exit to exit, and samples of different difficulty."""
    rng = np.random.default_rng(0)
    truth = np.eye(len(classes))[rng.integers(len(classes), size=n_samples)]
    difficulty = rng.exponential(size=(n_samples, 1))
    logits, features = [], []
    for k in range(len(costs)):
        logits.append((1 + k) * truth + (0.3 + difficulty) * rng.normal(size=truth.shape))
        signal = np.hstack([(1 + k) * truth, difficulty])
        features.append(signal + rng.normal(size=signal.shape))
    X = stack_exits(
        logits if has_logits else None,
        features if has_features else None,
        costs=costs,
        cost_unit=cost_unit,
        classes=classes,
    )
    X = X.with_layout(X.layout.replace(network_cost=network_cost))
    return CheckData(X, np.asarray(classes)[truth.argmax(axis=1)])


@dataclass(frozen=True)
class Fit:
    """A policy that was fitted to data, and whether this raised a ``UserWarning``. Checks must not change it."""

    policy: Any
    data: CheckData
    warned: bool


class PolicyFits:
    """Fits copies of a policy to the data of the checks, each at most once.

    In the copies, 0 replaces each ``random_state`` that is not an integer.
    """

    def __init__(self, policy: ExitPolicy) -> None:
        self.policy = policy
        self._fits: dict[str, Fit] = {}

    @property
    def takes_weights(self) -> bool:
        """Whether ``fit`` takes `sample_weight`."""
        return bool(has_fit_parameter(self.policy, "sample_weight"))

    def on(self, name: str = "main") -> Fit:
        """The fit on the data of `make_data` with a name."""
        if name not in self._fits:
            data, policy = make_data(name), self.unfitted()
            self._fits[name] = Fit(policy, data, fit_quietly(policy, data))
        return self._fits[name]

    def unfitted(self) -> Any:
        """A copy of the policy that is not fitted."""
        policy = clone(self.policy)
        seeds = {
            name: 0
            for name, value in policy.get_params().items()
            if name.split("__")[-1] == "random_state" and not isinstance(value, Integral)
        }
        return policy.set_params(**seeds)


def fit_quietly(policy: Any, data: CheckData) -> bool:
    """Fit a policy, and return whether this raised a ``UserWarning``."""
    weights = {} if data.sample_weight is None else {"sample_weight": data.sample_weight}
    return count_warnings(lambda: policy.fit(data.X, data.y, **weights))[1] > 0


def count_warnings(call: Callable[[], Any]) -> tuple[Any, int]:
    """The result of a call, and the number of ``UserWarning``s that it raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = call()
    return result, sum(issubclass(warning.category, UserWarning) for warning in caught)
