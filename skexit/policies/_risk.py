"""A guarantee for the accuracy that stopping early costs."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skexit.data import ExitArray, ExitLayout
from skexit.data._validation import check_budget, encode_labels, validate_training_data
from skexit.policies._base import ExitPolicy
from skexit.policies._quotas import equal_thresholds
from skexit.policies._thresholds import ThresholdPolicy
from skexit.uncertainty import betting_p_value, binomial_p_value
from skexit.utils._module_names import set_module
from skexit.utils._sklearn import HasMethods, Interval, StrOptions, _fit_context
from skexit.utils._warnings import warn

Floats = NDArray[np.float64]

_N_BUDGETS = 100


@set_module("skexit")
class RiskControlledPolicy(ExitPolicy):
    """The cheapest budget of a policy at which stopping early costs little accuracy, with a guarantee.

    With probability ``1 - delta`` over the calibration rows, the expected loss of new rows from the same distribution
    is at most `alpha`. Budgets are tested from the most expensive to the cheapest, and the first for which the
    calibration rows do not show it ends the search: so many tests need no correction (Learn then Test [1]_,
    fixed-sequence testing). The guarantee needs no assumption on the network, the scores or the distribution.

    Parameters
    ----------
    policy : policy, default=None
        A policy with ``with_budget``; ``ThresholdPolicy()`` by default. A copy is fitted on a
        random part of the rows and tested on the others. In a
        :class:`sklearn.frozen.FrozenEstimator` it is used as it is, and all rows given to ``fit``
        test it: they must not have been used in fitting.
    alpha : float, default=0.01
        The largest expected loss that is allowed, in the unit of the loss.
    delta : float, default=0.1
        Probability with which the expected loss may nonetheless be larger.
    loss : {"accuracy_drop", "error"} or callable, default="accuracy_drop"
        ``"accuracy_drop"``: 1 where the last exit is right and the answer is not, -1 where the
        answer is right and the last exit is not, else 0; its mean is the accuracy that is lost.
        ``"error"``: 1 where the answer is wrong. A callable takes the true labels, the answers and
        the last exit's answers, and returns a loss in [-1, 1] for each row.
    budgets : array-like of shape (n_budgets,), default=None
        Budgets to test, chosen without the rows that test them. By default 100 from 1 to the cost
        of the first exit, in even steps.
    calibration_size : float, default=0.5
        Share of the rows that test, between 0 and 1, both excluded; not used with a frozen policy.
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds the division of the rows and the order in which they are tested.

    Attributes
    ----------
    budget_ : float or None
        The cheapest budget that qualifies. None where none does; all samples then go to the last exit.
    policy_ : policy
        The fitted policy, for that budget.
    budgets_ : ndarray of shape (n_budgets,)
        The budgets, from the most expensive.
    p_values_ : ndarray of shape (n_budgets,)
        P-values of the hypothesis that the expected loss is above `alpha`; nan where not tested.
    risks_ : ndarray of shape (n_budgets,)
        Mean loss of the calibration rows; nan where not tested.
    n_calibration_ : int
        Number of calibration rows.
    %(thresholds)s
    %(policy_attributes)s

    References
    ----------
    .. [1] Angelopoulos et al. "Learn then Test: Calibrating predictive algorithms to achieve risk
       control." Annals of Applied Statistics 19 (2025).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import RiskControlledPolicy
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = RiskControlledPolicy(alpha=0.03, layout=2, random_state=0).fit(X, y)
    >>> policy.budget_ < 1
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "policy": [HasMethods(["fit", "predict_exit"]), None],
        "alpha": [Interval(Real, 0, 1, closed="left")],
        "delta": [Interval(Real, 0, 1, closed="neither")],
        "loss": [StrOptions({"accuracy_drop", "error"}), callable],
        "budgets": ["array-like", None],
        "calibration_size": [Interval(Real, 0, 1, closed="neither")],
        "layout": [ExitLayout, int, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        policy: Any = None,
        alpha: float = 0.01,
        delta: float = 0.1,
        *,
        loss: Any = "accuracy_drop",
        budgets: ArrayLike | None = None,
        calibration_size: float = 0.5,
        layout: ExitLayout | int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.policy = policy
        self.alpha = alpha
        self.delta = delta
        self.loss = loss
        self.budgets = budgets
        self.calibration_size = calibration_size
        self.layout = layout
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike) -> RiskControlledPolicy:
        """Fit the policy, unless it is frozen, and find the cheapest budget that qualifies.

        Rows have no weights: the guarantee is for rows that count alike.

        Parameters
        ----------
        %(X_y)s

        Returns
        -------
        self : RiskControlledPolicy
            The fitted policy.

        Raises
        ------
        ValueError
            If X does not fit its layout or is not finite, y has a class that X does not know, the
            policy has no budget, a budget cannot be met, or a loss is outside [-1, 1].
        """
        exits, classes, labels, _ = validate_training_data(self, X, y, None)
        true = classes[labels]
        fitted, rows = self._fit_inner(exits, classes, true)
        self.classes_, self.layout_, self.costs_ = fitted.classes_, fitted.layout_, fitted.costs_
        self.heads_ = fitted.heads_
        exits = exits.with_layout(exits.layout.replace(classes=self.classes_))
        encode_labels(true, exits.layout)
        self._test_budgets(fitted, exits[rows], true[rows])
        self._drop_calibration()
        self.exit_distribution_ = np.bincount(self._stops(exits[rows]), minlength=len(self.costs_)) / len(rows)
        return self

    def _fit_inner(self, X: ExitArray, classes: NDArray[Any], y: NDArray[Any]) -> tuple[Any, NDArray[np.intp]]:
        """The fitted policy, and the rows that test it, in random order."""
        is_frozen = isinstance(self.policy, FrozenEstimator)
        policy = self.policy.estimator if is_frozen else clone(self.policy or ThresholdPolicy())
        if not hasattr(policy, "with_budget"):
            raise ValueError(
                f"policy={policy!r} has no budget to choose. Pass one with a `with_budget` method, as ThresholdPolicy."
            )
        random_state = check_random_state(self.random_state)
        if is_frozen:
            check_is_fitted(policy)
            return policy, random_state.permutation(len(X))
        fitting, testing = train_test_split(
            np.arange(len(X)), test_size=self.calibration_size, random_state=random_state
        )
        return policy.fit(X.with_layout(X.layout.replace(classes=classes))[fitting], y[fitting]), testing

    def _test_budgets(self, fitted: Any, X: ExitArray, y: NDArray[Any]) -> None:
        """Test one budget after another until one does not qualify, and keep the last that did."""
        answers = fitted.predict_at_exits(X)
        self.n_calibration_ = len(y)
        self.budgets_ = self._ordered_budgets()
        self.p_values_, self.risks_ = np.full((2, len(self.budgets_)), np.nan)
        self.policy_, self.budget_ = fitted, None
        for index, budget in enumerate(self.budgets_):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that ties miss a budget, at each of them
                candidate = fitted.with_budget(float(budget))
            losses = self._losses(y, answers[np.arange(len(y)), candidate.predict_exit(X)], answers[:, -1])
            self.risks_[index] = losses.mean()
            self.p_values_[index] = self._p_value(losses)
            if self.p_values_[index] > self.delta:
                break
            self.policy_, self.budget_ = candidate, float(budget)
        if self.budget_ is not None:
            self.thresholds_ = self.policy_.thresholds_
            return
        self.thresholds_ = equal_thresholds(np.inf, len(self.costs_))
        if len(self.costs_) > 1:
            warn(
                f"no budget qualifies, so that all samples go to the last exit: at budget {self.budgets_[0]:.4g}, the "
                f"mean loss of {len(y)} calibration rows is {self.risks_[0]:.4g}, and the p-value of an expected loss "
                f"above alpha={self.alpha} is {self.p_values_[0]:.3g}, not below delta={self.delta}. Use more "
                "calibration rows, or a larger alpha or delta."
            )

    def _ordered_budgets(self) -> Floats:
        if self.budgets is None:
            return np.linspace(1.0, self.costs_[0], _N_BUDGETS if len(self.costs_) > 1 else 1)
        budgets = np.unique(np.asarray(self.budgets, dtype=np.float64))[::-1]
        if len(budgets) == 0:
            raise ValueError("budgets is empty; pass fractions of the network's cost, or None.")
        for budget in budgets.tolist():
            check_budget(budget, self.layout_)
        return budgets

    def _losses(self, y: NDArray[Any], answers: NDArray[Any], last: NDArray[Any]) -> Floats:
        if self.loss == "error":
            return (answers != y).astype(np.float64)
        if self.loss == "accuracy_drop":
            return (last == y).astype(np.float64) - (answers == y)
        losses = np.asarray(self.loss(y, answers, last), dtype=np.float64)
        if losses.shape != y.shape or not (np.abs(losses) <= 1).all():
            raise ValueError(
                f"loss gave an array of shape {losses.shape}, values {losses.min():.4g} to {losses.max():.4g}; "
                f"it must give one value in [-1, 1] for each of the {len(y)} rows."
            )
        return losses

    def _p_value(self, losses: Floats) -> float:
        if self.loss == "error":
            return binomial_p_value(losses, self.alpha)
        return betting_p_value((1 + losses) / 2, (1 + self.alpha) / 2, self.delta)

    @property
    def heads(self) -> Any:
        """Heads are those of the policy."""
        return None

    @property
    def use_most_confident(self) -> bool:
        """Whether the policy answers with the most confident exit so far."""
        return getattr(self.policy_, "use_most_confident", False)

    def uses_features(self, k: int) -> bool:
        return self.policy_.uses_features(k)

    def earlier_exits(self, k: int) -> range:
        return self.policy_.earlier_exits(k)

    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        scores = self.policy_.score_exit(k, logits, features, memory)
        return scores if self.budget_ is not None else 0 * scores

    def fit_policy(self, X: ExitArray, labels: NDArray[np.int64], weight: Floats) -> None:
        raise NotImplementedError  # fit does not come here
