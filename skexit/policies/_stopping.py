"""Optimal stopping: samples go on while the expected gain is worth its price."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from array_api_compat import to_device
from numpy.typing import NDArray
from sklearn.base import clone

from skexit.data import ExitArray, ExitLayout
from skexit.data._unused_parameters import Unused
from skexit.data._validation import cross_validation_splits
from skexit.data._walk import collect, correct_exits
from skexit.policies._blending import break_ties
from skexit.policies._budgeted import BudgetedPolicy, FitState
from skexit.policies._evidence import exit_evidence
from skexit.policies._log_linear import LogLinearModel, fit_log_linear
from skexit.policies._quotas import equal_thresholds, rewarding_threshold, shared_threshold
from skexit.policies._rewards import expected_rewards
from skexit.uncertainty import log_odds
from skexit.utils._array_api import array_namespace, as_like, at_least
from skexit.utils._module_names import set_module
from skexit.utils._sklearn import HasMethods, Interval, StrOptions
from skexit.utils._warnings import warn

Floats = NDArray[np.float64]

#: Prices below this number are not distinguished. Prices of an `estimator` may be negative: near this number, the
#: scale of the scores changes from logarithmic to linear.
_SMALLEST_PRICE = 1e-6
#: How often the prices of an exit are computed again, for the later stops that follow from them.
_ITERATIONS = 3


@set_module("skexit")
class OptimalStoppingPolicy(BudgetedPolicy):
    r"""Continue while the expected gain in accuracy is worth its cost.

    Let :math:`\lambda` be the price of running the whole network, in units of accuracy. It pays to continue from exit k
    if a rule that stops later, at an exit :math:`\tau > k`, has

    .. math:: E[r_\tau - r_k \mid z_k] > \lambda \, E[c_\tau - c_k \mid z_k],

    where r is 1 if an exit is correct and 0 if not, c is its cost, and z is the evidence so far. The price of a sample
    at an exit is the highest :math:`\lambda` at which it pays to continue. It is an index like that of Gittins [1]_,

    .. math:: m_k(z_k) = \max_\tau \frac{E[r_\tau - r_k \mid z_k]}{E[c_\tau - c_k \mid z_k]},

    and the best rule continues until the price at a later exit is no higher. A sample stops at the first exit where its
    price is at most :math:`\lambda`. The prices do not depend on :math:`\lambda`, so that one fit serves every budget.
    If later exits are clearly less accurate, the policy spends only as much of the budget as gives the highest
    accuracy, and a warning is raised.

    Prices are learned backwards, from the last exit but one to the first. The realised gains of continuing, divided by
    the realised costs, are regressed on the evidence of the exit, with the realised costs as weights. The prices that
    decide where a row stops later come from models that were trained without the row.

    Parameters
    ----------
    budget : float, default=0.5
        Mean cost of a sample on the fitting data, as a fraction in (0, 1] of the network's cost. Less is
        spent if later exits lower the accuracy.
    estimator : scikit-learn regressor, default=None
        Predicts the prices of an exit; its ``fit`` takes `sample_weight`. By default, the exponential
        of a linear function, fitted as a Poisson regression: gains fall with the probability of an error
        over many powers of ten, and a model with few parameters overfits little.
    use_features : bool, default=False
        Whether the evidence of an exit includes its features, besides its logits and those of earlier exits.
        With few rows or many features, this mostly overfits.
    outcome : {"expected", "realised"}, default="expected"
        What counts as gain. ``"realised"``: whether predictions are correct. ``"expected"``: their probability in a
        mixture of all exits, as in Zero Time Waste [2]_, which has less variance: if exits agree, there is no gain; if
        they do not, a sample counts by how probable each prediction is.
    l2 : float, default=3.0
        Strength of the squared penalty on the weights of the default estimator, counted in rows with the
        cost of the last exit: with more rows, it has less effect. Not used with `estimator`.
    cv : int, cross-validation generator or iterable, default=5
        How rows are split for the prices that decide where a row stops later.
    %(use_most_confident)s
    %(heads)s
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds the splits and the heads.

    Attributes
    ----------
    estimators_ : list of n_exits - 1 regressors
        They predict the prices at each exit but the last from its evidence.
    lam_ : float
        The price at which samples stop, in units of accuracy for the whole network.
    rewarding_threshold_ : float
        On the fitting data, a higher threshold costs more and lowers the accuracy; ``inf`` if more compute
        does no harm.
    thresholds_ : ndarray of shape (n_exits,)
        The same at every exit, ``-inf`` at the last: scores fall as prices rise. If prices are equal,
        as those of a decision tree can be, samples with a larger probability leave first.
    %(policy_attributes)s

    References
    ----------
    .. [1] Gittins. "Bandit processes and dynamic allocation indices." Journal of the Royal
       Statistical Society B 41 (1979).
    .. [2] Wołczyk et al. "Zero Time Waste: Recycling predictions in early exit neural networks."
       NeurIPS 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import OptimalStoppingPolicy
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = OptimalStoppingPolicy(budget=0.65, layout=2, random_state=0).fit(X, y)
    >>> policy.exit_distribution_.round(2)
    array([0.7, 0.3])
    >>> policy.with_budget(0.6).exit_distribution_.round(2)
    array([0.8, 0.2])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BudgetedPolicy._parameter_constraints,
        "budget": [Real],
        "estimator": [HasMethods(["fit", "predict"]), None],
        "use_features": ["boolean"],
        "outcome": [StrOptions({"expected", "realised"})],
        "l2": [Interval(Real, 0, None, closed="left")],
        "cv": ["cv_object"],
        "use_most_confident": ["boolean"],
        "random_state": ["random_state"],
    }

    _unused_parameters: ClassVar[tuple[Unused, ...]] = (
        Unused(
            ("l2",),
            "estimator",
            lambda policy: policy.estimator is not None,
            "It is the penalty of the default estimator. Leave it out, and set that of the estimator.",
        ),
    )

    def __init__(
        self,
        budget: float = 0.5,
        *,
        estimator: Any = None,
        use_features: bool = False,
        outcome: str = "expected",
        l2: float = 3.0,
        cv: Any = 5,
        use_most_confident: bool = False,
        heads: Any = None,
        layout: ExitLayout | int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.budget = budget
        self.estimator = estimator
        self.use_features = use_features
        self.outcome = outcome
        self.l2 = l2
        self.cv = cv
        self.use_most_confident = use_most_confident
        self.heads = heads
        self.layout = layout
        self.random_state = random_state

    def uses_features(self, k: int) -> bool:
        return self.use_features and k < len(self.estimators_) and not self._is_constant(k)

    def earlier_exits(self, k: int) -> range:
        return range(k) if k < len(self.estimators_) and not self._is_constant(k) else range(0)

    def _is_constant(self, k: int) -> bool:
        """Whether the price of an exit is the same for all samples, for example if later exits gain nothing."""
        model = self.estimators_[k]
        return isinstance(model, LogLinearModel) and not model.coefficients.any()

    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        if k == len(self.estimators_):
            return array_namespace(logits).zeros_like(logits[:, 0])
        return self._score(k, self._evidence(k, logits, features, memory), log_odds(logits))

    def _score(self, k: int, evidence: Any, confidence: Any) -> Any:
        # On a logarithmic scale: prices span many powers of ten, and rounding must not make small ones equal.
        model = self.estimators_[k]
        if self.estimator is None:  # prices are positive
            return break_ties(-at_least(model.predict_log(evidence), math.log(_SMALLEST_PRICE)), confidence)
        prices = as_like(model.predict(np.asarray(to_device(evidence, "cpu"))), evidence)
        return break_ties(-array_namespace(evidence).asinh(prices / _SMALLEST_PRICE), confidence)

    def fit_policy(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, groups: NDArray[np.int64] | None = None
    ) -> None:
        if self.use_features and not any(X.layout.n_features):
            raise ValueError("use_features=True, but no exit has features. Set use_features=False, or give X features.")
        rewards = self._rewards(X, labels, weight)
        splits = cross_validation_splits(self.cv, labels, self.random_state, groups) if X.layout.n_exits > 1 else []
        evidence, confidence = self._read_evidence(X)
        self._fit_prices(evidence, rewards, weight, splits)
        scores = np.zeros(rewards.shape)
        for k in range(X.layout.n_exits - 1):
            scores[:, k] = self._score(k, evidence[k], confidence[k])
        self.rewarding_threshold_ = rewarding_threshold(scores, rewards, weight)
        self.fit_state_ = FitState(scores, weight)
        self.apply_budget()

    def _rewards(self, X: ExitArray, labels: NDArray[np.int64], weight: Floats) -> Floats:
        if self.outcome == "realised":
            return correct_exits(X, labels).astype(np.float64)
        return expected_rewards(X, labels, weight)

    def _fit_prices(self, evidence: dict[int, Floats], rewards: Floats, weight: Floats, splits: Any) -> None:
        """Fit the estimators of all exits but the last, backwards."""
        rows = np.arange(len(rewards))
        prices = np.zeros_like(rewards)  # at the last exit, nothing can be gained
        self.estimators_: list[Any] = [None] * (rewards.shape[1] - 1)
        for k in reversed(range(rewards.shape[1] - 1)):
            levels = prices[:, k + 1]
            for _ in range(_ITERATIONS):
                stops = k + 1 + _first_at_most(prices[:, k + 1 :], levels)
                cost = self.costs_[stops] - self.costs_[k]
                gain = (rewards[rows, stops] - rewards[:, k]) / cost
                levels = np.empty(len(rewards))
                for fitted, held_out in splits:
                    model = self._fit_estimator(evidence[k][fitted], gain[fitted], (weight * cost)[fitted])
                    levels[held_out] = model.predict(evidence[k][held_out])
            prices[:, k] = levels
            self.estimators_[k] = self._fit_estimator(evidence[k], gain, weight * cost)

    def _fit_estimator(self, evidence: Floats, gain: Floats, weight: Floats) -> Any:
        if self.estimator is None:
            return fit_log_linear(evidence, gain, weight, self.l2)
        return clone(self.estimator).fit(evidence, gain, sample_weight=weight)

    def _read_evidence(self, X: ExitArray) -> tuple[dict[int, Floats], dict[int, Floats]]:
        """Evidence and confidence at all exits but the last."""

        def side_by_side(k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
            return np.column_stack([self._evidence(k, logits, features, memory), log_odds(logits)])

        read = collect(side_by_side, X, range(X.layout.n_exits - 1), uses_features=lambda k: self.use_features)
        return {k: both[:, :-1] for k, both in read.items()}, {k: both[:, -1] for k, both in read.items()}

    def _evidence(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        evidence = exit_evidence(k, logits, memory)
        if not self.use_features or features is None:
            return evidence
        xp = array_namespace(evidence)
        return xp.concat([evidence, xp.astype(features, evidence.dtype)], axis=1)

    def choose_thresholds(self, scores: Floats, weight: Floats) -> Floats:
        threshold = shared_threshold(scores, self.costs_, self.budget, weight)[0]
        if threshold > self.rewarding_threshold_:
            threshold = self.rewarding_threshold_
            warn(
                "some of the budget is left unspent: on the fitting data, spending it lowers the accuracy. The mean "
                "cost is exit_distribution_ @ costs_."
            )
        if self.estimator is None:
            self.lam_ = float(np.exp(-threshold))
        else:
            self.lam_ = float(_SMALLEST_PRICE * np.sinh(-threshold))
        return equal_thresholds(threshold, len(self.costs_))


def _first_at_most(prices: Floats, levels: Floats) -> NDArray[np.intp]:
    """The first exit whose price is at most the level, else the last."""
    cheap = prices <= levels[:, None]
    cheap[:, -1] = True
    return np.argmax(cheap, axis=1)
