"""The base of controllers: one number, the nominal budget, determines all thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skexit.monitoring._state import ControllerState, OwnState, SharedState
from skexit.monitoring._thresholds import ThresholdTable
from skexit.policies._access import policy_and_data, steps_of

Floats = NDArray[np.float64]

#: Samples that are decided but not yet counted change the nominal budget by at most this share of the error of their
#: mean. A larger change would overshoot the target.
LARGEST_GAIN = 0.5


class Controller:
    """Changes the nominal budget of a policy so that a mean tends to a `target`.

    `_sign` is +1 if values above the target need a larger budget, and -1 if they need a smaller one.
    """

    _sign: float

    def __init__(self, policy: Any, target: float, nominal: float, step: float, path: str | Path | None) -> None:
        if isinstance(step, bool) or not 0 < step <= 1:
            raise ValueError(f"step={step!r} must be a number in (0, 1].")
        for own in steps_of(policy):
            check_is_fitted(own)
        self.policy = policy
        self.step = step
        self._table = ThresholdTable.from_policy(policy)
        self._target = float(target)
        self._costs: Floats = steps_of(policy)[-1].costs_
        self._start = float(nominal)
        first = ControllerState(self._target)
        self._state = OwnState(first) if path is None else SharedState(Path(path), first)
        self._decided_at = self.n_samples

    @property
    def thresholds(self) -> Floats:
        """Thresholds for the next samples, of shape (n_exits,)."""
        state = self._state.read()
        self._decided_at = state.n_samples
        return self._table.thresholds[self._table.row_of(self._nominal(state))].copy()

    @property
    def nominal_budget(self) -> float:
        """The budget whose thresholds are in use, a fraction of the network's cost."""
        return self._nominal(self._state.read())

    @property
    def n_samples(self) -> int:
        """Number of samples so far, including the samples of other processes with the same `path`."""
        return self._state.read().n_samples

    @property
    def _mean(self) -> float:
        """Mean value of the samples so far; NaN before the first sample."""
        state = self._state.read()
        return state.total / state.n_samples if state.n_samples else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """The thresholds for every budget and the state, as numbers, lists and dicts that JSON can write.

        Returns
        -------
        dict
            Use it in other programming languages, or to inspect the state. To save and load a controller, use joblib.
        """
        state = self._state.read()
        moved = {"nominal_budget": self._nominal(state), "step": self._step(state)}
        return {**vars(state), **moved, "table": self._table.to_dict()}

    def _count(self, state: ControllerState, total: float, n_samples: int, decided_at: int | None = None) -> None:
        """Count samples that were decided by the thresholds after `decided_at` samples.

        None stands for the last time when `thresholds` was read or samples were counted.
        """
        state.count(total, n_samples, min(self._decided_at if decided_at is None else decided_at, state.n_samples))
        self._decided_at = state.n_samples
        nominal = self._nominal(state)
        beyond = nominal - min(max(nominal, self._ends()[0]), self._ends()[1])
        state.left_out -= beyond / (self._sign * self._step(state))

    def _nominal(self, state: ControllerState) -> float:
        return self._start + self._sign * self._step(state) * state.excess

    def _step(self, state: ControllerState) -> float:
        """Change of the nominal budget for an excess of 1."""
        return min(self.step, LARGEST_GAIN / state.delay)

    def _ends(self) -> tuple[float, float]:
        """Limits of the nominal budget. Beyond them, a change has no effect that could help to meet the target."""
        return -np.inf, self._table.budgets[-1] if self._table.is_capped else np.inf

    def _scores(self, X: Any) -> Floats:
        policy, X = policy_and_data(self.policy, X)
        return policy.exit_scores(X)
