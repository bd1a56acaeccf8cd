"""Baselines for learned policies: the same exit for all samples, random exits, and an oracle."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d

from skexit.data import ExitArray, ExitLayout
from skexit.data._labels import UNLABELLED_ROWS, encode_labels, is_labelled
from skexit.data._layout_of_input import warn_of_default_costs
from skexit.data._sorted_classes import sort_classes
from skexit.data._walk import correct_exits
from skexit.policies._base import ExitPolicy
from skexit.policies._budgeted import BudgetedPolicy
from skexit.policies._draws import SampleDraws
from skexit.policies._quotas import quota_thresholds
from skexit.utils._array_api import array_namespace
from skexit.utils._labels import check_is_given
from skexit.utils._module_names import set_module
from skexit.utils._sklearn import Interval


@set_module("skexit")
class StaticExit(ExitPolicy):
    """Stop every sample at the same exit.

    Parameters
    ----------
    exit : int, default=-1
        Number of the exit; negative numbers count from the last exit.
    %(heads)s
    %(layout)s

    Attributes
    ----------
    thresholds_ : ndarray of shape (n_exits,)
        ``inf`` before the exit, ``-inf`` at the exit and after it.
    %(policy_attributes)s

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import StaticExit
    >>> X, y = load_digits(return_X_y=True)
    >>> StaticExit(exit=0, layout=2).fit(X, y).mean_cost(X)
    0.5
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ExitPolicy._parameter_constraints,
        "exit": [Interval(Integral, None, None, closed="neither")],
    }

    def __init__(self, exit: int = -1, *, heads: Any = None, layout: ExitLayout | int | None = None) -> None:
        self.exit = exit
        self.heads = heads
        self.layout = layout

    def earlier_exits(self, k: int) -> range:
        return range(0)

    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        return array_namespace(logits).zeros_like(logits[:, 0])

    def fit_policy(self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        n_exits = X.layout.n_exits
        if not -n_exits <= self.exit < n_exits:
            raise ValueError(
                f"exit={self.exit} does not exist: X has {n_exits} exits. Give a number from 0 to {n_exits - 1}, or -1 "
                "for the last."
            )
        chosen = self.exit % n_exits
        self.fitting_scores(X)  # reads the logits, and thereby raises an error if they are not finite
        self.thresholds_ = np.where(np.arange(n_exits) < chosen, np.inf, -np.inf)
        self.exit_distribution_ = np.eye(n_exits)[chosen]


@set_module("skexit")
class RandomExit(BudgetedPolicy):
    """Stop each sample at a random exit.

    The draws of a sample are computed from its logits at the first exit and from the seed, so that the same
    sample always stops at the same exit.

    Parameters
    ----------
    budget : float, default=None
        Mean cost of a sample on the fitting data, as a fraction in (0, 1] of the network's cost. Exits are then
        drawn from the geometric distribution that meets the budget. None draws all exits with equal probability.
    %(heads)s
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds the draws.

    Attributes
    ----------
    thresholds_ : ndarray of shape (n_exits,)
        A sample stops at the first exit where its draw from [0, 1] is at least the threshold.
    %(policy_attributes)s

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import RandomExit
    >>> X, y = load_digits(return_X_y=True)
    >>> RandomExit(budget=0.75, layout=4, random_state=0).fit(X, y).exit_distribution_.round(1)
    array([0.1, 0.2, 0.3, 0.4])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ExitPolicy._parameter_constraints,
        "budget": [Real, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        budget: float | None = None,
        *,
        heads: Any = None,
        layout: ExitLayout | int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.budget = budget
        self.heads = heads
        self.layout = layout
        self.random_state = random_state

    def earlier_exits(self, k: int) -> range:
        return range(min(k, 1))

    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        if k == 0:
            memory["draws"] = self._draws(logits)
        return memory["draws"][:, k]

    def fit_policy(self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        self._draws = SampleDraws.fit(X, weight, check_random_state(self.random_state))
        self.fit_thresholds(X, weight)

    def choose_thresholds(self, scores: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.budget is not None:
            return quota_thresholds(scores, self.costs_, self.budget, sample_weight=weight)
        # With n exits left, one in n of the samples that reach an exit stops there.
        return np.append(1 - 1 / np.arange(scores.shape[1], 1, -1), -np.inf)


@dataclass(frozen=True)
class OracleResult:
    """Exits, accuracy and mean cost of an oracle that knows the labels.

    Parameters
    ----------
    exits : ndarray of shape (n_samples,) of int
        The first exit that is correct for each sample that has a label; exit 0 if none is.
    accuracy : float
        Share of the samples for which at least one exit is correct.
    mean_cost : float
        Mean cost of a sample, as a fraction of the network's cost.
    """

    exits: NDArray[np.int64]
    accuracy: float
    mean_cost: float

    @classmethod
    def _from_correct(cls, correct: NDArray[np.bool_], costs: NDArray[np.float64]) -> OracleResult:
        """Result for exits that are correct or not, with costs as fractions of the network's cost."""
        exits = np.argmax(correct, axis=1)
        return cls(exits, float(correct.any(axis=1).mean()), float(costs[exits].mean()))


def oracle(X: Any, y: ArrayLike, *, layout: ExitLayout | int | None = None) -> OracleResult:
    """Stop each sample at the first exit that is correct: an upper bound for every policy.

    The oracle needs labels, and is therefore not an estimator.

    Parameters
    ----------
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Rows with logits at every exit: of the network, or from :class:`ExitHeads`.
    y : array-like of shape (n_samples,)
        Class labels. Rows with the label -1 are left out.
    layout : ExitLayout or int, default=None
        Layout of X, if X does not have one.

    Returns
    -------
    OracleResult
        Exits, accuracy and mean cost.

    Raises
    ------
    ValueError
        If an exit has no logits, or no row a label.

    Examples
    --------
    >>> import numpy as np
    >>> from skexit import oracle, stack_exits
    >>> logits = np.array([[[2.0, 0], [3, 0]], [[1, 0], [0, 4]]])  # two samples, two exits
    >>> oracle(stack_exits(logits), [0, 1])
    OracleResult(exits=array([0, 1]), accuracy=1.0, mean_cost=0.75)
    """
    check_is_given(y, "y is None.")
    X = ExitArray.from_array(X, layout)
    warn_of_default_costs(X.layout)
    X, labels = sort_classes(X), column_or_1d(y)
    check_consistent_length(X, labels)
    labelled = np.flatnonzero(is_labelled(labels, X.layout))
    if not len(labelled):
        raise ValueError(UNLABELLED_ROWS + " Give the labels of some rows.")
    X = X[labelled]
    _, labels = encode_labels(labels[labelled], X.layout)
    return OracleResult._from_correct(correct_exits(X, labels), X.layout.cost_fractions)
