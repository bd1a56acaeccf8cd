"""Calibration errors of a policy, and the coverage of its prediction sets."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split

from skexit.policies import ExitPolicy
from skexit.report._measures import Candidate
from skexit.uncertainty import coverage_score, expected_calibration_error, inefficiency_score
from skexit.uncertainty._conformal import FEWEST_ROWS

_ALPHAS = (0.1, 0.05, 0.01)


@dataclass(frozen=True)
class Calibration:
    """A calibrated policy, and its results on the rows X and y.

    `n_calibration_rows` is the number of rows that were split off for calibration, None if the policy was calibrated
    before. `errors` are expected calibration errors by name. `sets` has requested coverage, coverage and mean number of
    classes.
    """

    policy: ExitPolicy
    X: Any
    y: NDArray[Any]
    n_calibration_rows: int | None
    errors: dict[str, float]
    sets: list[tuple[float, float, float]]


def measure_calibration(best: Candidate, y: NDArray[Any], random_state: int) -> Calibration | None:
    """Measure the calibration of a policy.

    If it is not calibrated, a copy is calibrated on one half of the rows and measured on the other. None if there are
    too few rows to split.
    """
    policy = best.policy
    if _is_calibrated(policy, best.X):
        return _measure(policy, best.X, y, None, {"as it was calibrated": _error(policy, best.X, y)})
    if len(y) < 2 * FEWEST_ROWS:
        return None
    X_calibration, X_rest, y_calibration, y_rest = train_test_split(best.X, y, test_size=0.5, random_state=random_state)
    # A shallow copy is enough, because calibrate replaces attributes and changes none in place.
    calibrated = copy.copy(policy).calibrate(X_calibration, y_calibration)
    errors = {
        "before calibration": _error(policy, X_rest, y_rest),
        "after calibration": _error(calibrated, X_rest, y_rest),
    }
    return _measure(calibrated, X_rest, y_rest, len(y_calibration), errors)


def _measure(
    policy: ExitPolicy, X: Any, y: NDArray[Any], n_calibration_rows: int | None, errors: dict[str, float]
) -> Calibration:
    sets = []
    for alpha in _ALPHAS:
        own = policy.predict_set(X, alpha)
        sets.append((1 - alpha, coverage_score(y, own, labels=policy.classes_), inefficiency_score(own)))
    return Calibration(policy, X, y, n_calibration_rows, errors, sets)


def _error(policy: ExitPolicy, X: Any, y: NDArray[Any]) -> float:
    return expected_calibration_error(y, policy.predict_proba(X), n_bins=10, strategy="uniform", labels=policy.classes_)


def _is_calibrated(policy: ExitPolicy, X: Any) -> bool:
    try:
        policy.predict_set(X[:1])
    except NotFittedError:
        return False
    return True
