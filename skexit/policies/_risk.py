"""A policy with a guarantee on the loss of accuracy from stopping early."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from skexit.data import ExitArray, ExitLayout
from skexit.data._labels import encode_labels
from skexit.data._unused_parameters import Unused
from skexit.data._validation import check_budget
from skexit.policies._access import joined
from skexit.policies._base import ExitPolicy
from skexit.policies._quotas import equal_thresholds
from skexit.policies._risk_losses import BRIER_LOSSES, LOSSES_WITHOUT_LABELS, brier_scores
from skexit.policies._thresholds import ThresholdPolicy
from skexit.uncertainty import betting_p_value, binomial_p_value
from skexit.utils._array_api import array_namespace
from skexit.utils._module_names import set_module
from skexit.utils._sklearn import HasMethods, Interval, StrOptions, _fit_context
from skexit.utils._warnings import silenced, warn

Floats = NDArray[np.float64]

_N_BUDGETS = 100


class _Tests:
    """Tests of the budgets of one policy; `policy`, `budget` and `cost` are those of the last test that passed."""

    def __init__(self, fitted: Any, budgets: Floats) -> None:
        self.budgets = budgets
        self.p_values, self.risks = np.full((2, len(budgets)), np.nan)
        self.policy, self.cost = fitted, np.inf
        self.budget: float | None = None


def _thawed(policy: Any) -> Any:
    return policy.estimator if isinstance(policy, FrozenEstimator) else policy


def _with_feasible_budget(policy: Any, layout: ExitLayout) -> Any:
    """The policy, with a higher budget if its budget does not pay for the first exit and its head.

    The tests use budgets of their own, so the budget for the fit may be any that can be met.
    """
    budget, first_cost = getattr(policy, "budget", None), layout.cost_fractions[0]
    if budget is not None and layout.n_exits > 1 and budget < 1.1 * first_cost:
        policy.set_params(budget=(1 + first_cost) / 2)
    return policy


@set_module("skexit")
class RiskControlledPolicy(ExitPolicy):
    """Find the lowest budget at which the loss from stopping early is at most `alpha`, with a guarantee.

    With probability ``1 - delta`` over the calibration rows, the expected loss on new rows from the same distribution
    is at most `alpha`. Budgets are tested on the calibration rows, from the highest to the lowest, until a test fails.
    This order needs no correction for the number of tests (fixed-sequence testing in Learn then Test [1]_). If there
    are several policies, each is tested at the level ``delta`` divided by their number, and the cheapest policy that
    passes is used. The guarantee makes no assumption about the network, the scores or the distribution.

    Parameters
    ----------
    policy : policy or list of policies, default=None
        Policies that have ``with_budget``; ``ThresholdPolicy()`` by default. A copy of each is fitted on a random part
        of the rows, at a budget that pays for the first exit, and tested on the other rows. A policy in a
        :class:`sklearn.frozen.FrozenEstimator` is used as it is, and must have been fitted on other rows. If all
        policies are frozen, all rows are used for tests. A pipeline with one step before its policy, such as
        :func:`recommended_pipeline`, counts as the policy with this step as its `heads`. To choose the cheapest of
        several policies, pass them in a list: if each is controlled alone on the same rows, the choice has no
        guarantee.
    alpha : float, default=0.01
        The largest expected loss that is allowed, in the unit of the loss.
    delta : float, default=0.1
        Probability that the expected loss is above `alpha` in spite of the tests.
    loss : str or callable, default="accuracy_drop"
        Loss of a row. The prediction is that of the exit at which the row stops:

        - ``"accuracy_drop"``: 1 if the policy's last exit is correct and the prediction is wrong, -1 if the prediction
          is correct and the last exit is wrong, otherwise 0. Its mean is the lost accuracy.
        - ``"error"``: 1 if the prediction is wrong, otherwise 0.
        - ``"disagreement"``: 1 if the prediction differs from that of the last exit, otherwise 0. Needs no labels, see
          `fit`.
        - ``"brier_gap"``: the Brier score of the predicted probabilities minus that of the last exit's. The Brier score
          is half the squared distance of the probabilities from 1 for the label and 0 for others, between 0 and 1.
        - ``"brier_consistency"``: the same, with the last exit's prediction instead of the label. Needs no labels.

        ``"accuracy_drop"`` and ``"brier_gap"`` are the performance gaps of [2]_, ``"disagreement"`` and
        ``"brier_consistency"`` its consistency losses. A callable takes the true labels, the predictions and the last
        exit's predictions, and returns a loss in [-1, 1] for each row.
    budgets : array-like of shape (n_budgets,), default=None
        Budgets to test. Choose them without the calibration rows. By default 100 budgets in even steps, from 1 to the
        cost of the first exit.
    calibration_size : float, default=0.5
        Share of the rows that are used for tests, between 0 and 1, both excluded. Not used if all policies are frozen.
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds the division of the rows, and the order in which their losses enter a test.

    Attributes
    ----------
    budget_ : float or None
        The lowest budget that passed. None if no budget passed; all samples then go to the last exit.
    policy_ : policy
        The fitted policy for `budget_`. If there are several, the policy with the lowest cost on the calibration
        rows.
    budgets_ : ndarray of shape (n_budgets,) or (n_policies, n_budgets)
        The budgets, from the highest to the lowest; one row per policy if `policy` is a list.
    p_values_ : ndarray of the shape of `budgets_`
        P-values of the hypothesis that the expected loss is above `alpha`; nan for budgets that were not tested.
    risks_ : ndarray of the shape of `budgets_`
        Mean loss of the calibration rows; nan for budgets that were not tested.
    n_calibration_ : int
        Number of calibration rows.
    %(thresholds)s
    %(policy_attributes)s

    References
    ----------
    .. [1] Angelopoulos et al. "Learn then Test: Calibrating predictive algorithms to achieve risk
       control." Annals of Applied Statistics 19 (2025).
    .. [2] Jazbec, Timans, Veljkovic, Sakmann, Zhang, Naesseth, Nalisnick. "Fast yet safe: Early-exiting with risk
       control." NeurIPS 2024. The paper controls one threshold, and counts losses below 0 as 0. Here, they count as
       they are.

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
        "policy": [HasMethods(["fit", "predict_exit"]), list, tuple, None],
        "alpha": [Interval(Real, 0, 1, closed="left")],
        "delta": [Interval(Real, 0, 1, closed="neither")],
        "loss": [StrOptions({"accuracy_drop", "error", "disagreement", *BRIER_LOSSES}), callable],
        "budgets": ["array-like", None],
        "calibration_size": [Interval(Real, 0, 1, closed="neither")],
        "layout": [ExitLayout, int, None],
        "random_state": ["random_state"],
    }

    _unused_parameters: ClassVar[tuple[Unused, ...]] = (
        Unused(
            ("calibration_size",),
            "policy",
            lambda policy: policy._all_frozen(),
            "Frozen policies need no rows for fitting, so that all rows serve for tests. Leave it out.",
        ),
    )

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
    def fit(self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None) -> RiskControlledPolicy:
        """Fit the policies, unless they are frozen, and find the lowest budget that passes its test.

        There are no sample weights, because the guarantee is for rows of equal weight.

        The guarantee needs independent rows. If some rows depend on each other, such as frames of one video, pass their
        groups. Each group then counts as one observation, with its mean loss, and the guarantee is for the expected
        mean loss of new groups.

        Parameters
        ----------
        %(X)s
        y : array-like of shape (n_samples,), default=None
            Class labels. Rows with the label -1 are left out. If all policies are frozen and the loss needs no labels,
            `y` is not used, and may be None.
        groups : array-like of shape (n_samples,), default=None
            Group of each sample. All rows of a group are used for fitting, or all for tests.

        Returns
        -------
        self : RiskControlledPolicy
            The fitted policy.

        Raises
        ------
        ValueError
            If X does not match its layout or is not finite; y is needed and is None, or has a class that is unknown to
            X; a policy has no budget, or is in a pipeline after several steps; a budget cannot be met; a loss is
            outside [-1, 1]; or a policy must be fitted and there is only one group, or there are fewer groups than the
            policy has folds.
        """
        if self.loss in LOSSES_WITHOUT_LABELS and self._all_frozen():
            X, y = self._answers_as_labels(X)
        elif y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y is None. Give y; or "
                "freeze fitted policies, as by FrozenEstimator(policy), and set loss='disagreement'."
            )
        exits, classes, labels, _, numbers = self._validate_training_data(X, y, None, groups)
        true = classes[labels]
        policies, rows = self._fit_policies(exits, classes, true, numbers)
        tests = [self._test_budgets(policy, exits, true, rows, numbers) for policy in policies]
        best = min(tests, key=lambda test: test.cost)  # the first one if no budget passed
        self.policy_, self.budget_, self.n_calibration_ = best.policy, best.budget, len(rows)
        is_list = isinstance(self.policy, list | tuple)
        self.budgets_, self.p_values_, self.risks_ = (
            np.stack(columns) if is_list else columns[0]
            for columns in zip(*((test.budgets, test.p_values, test.risks) for test in tests), strict=True)
        )
        self.classes_, self.layout_, self.costs_ = self.policy_.classes_, self.policy_.layout_, self.policy_.costs_
        self.heads_ = self.policy_.heads_
        self.thresholds_ = self.policy_.thresholds_
        if self.budget_ is None:
            self.thresholds_ = equal_thresholds(np.inf, len(self.costs_))
            if len(self.costs_) > 1:
                self._warn_that_none_qualifies(best, len(tests), numbers is not None)
        self._drop_calibration()
        testing = exits.with_layout(exits.layout.replace(classes=self.classes_))[rows]
        self.exit_distribution_ = np.bincount(self._stops(testing), minlength=len(self.costs_)) / len(rows)
        return self

    def _given(self) -> list[Any]:
        """The policies that the user passed."""
        return (
            list(self.policy) if isinstance(self.policy, list | tuple) else [self.policy or ThresholdPolicy(budget=1.0)]
        )

    def _all_frozen(self) -> bool:
        given = self._given()
        return bool(given) and all(isinstance(policy, FrozenEstimator) for policy in given)

    def _answers_as_labels(self, X: Any) -> tuple[ExitArray, NDArray[Any]]:
        """X, and predictions of the last exit of the first policy, for a loss that does not use labels."""
        first = joined(self._given()[0]).estimator
        check_is_fitted(first)
        exits = first._check_new(X)
        return exits.with_layout(exits.layout.replace(classes=first.classes_)), first.predict_at_exits(X)[:, -1]

    def _fit_policies(
        self, X: ExitArray, classes: NDArray[Any], y: NDArray[Any], groups: NDArray[np.int64] | None
    ) -> tuple[list[Any], NDArray[np.intp]]:
        """The fitted policies, and the calibration rows, in random order or with their groups in random order."""
        given = self._given()
        if not given:
            raise ValueError("policy=[] has no policy; pass one or more, or None for ThresholdPolicy().")
        given = [joined(policy) for policy in given]
        for policy in given:
            if not hasattr(_thawed(policy), "with_budget"):
                raise ValueError(
                    f"policy={policy!r} has no budget to choose. Pass a policy with a `with_budget` method, such as "
                    "ThresholdPolicy()."
                )
            if isinstance(policy, FrozenEstimator):
                check_is_fitted(policy.estimator)
        if all(isinstance(policy, FrozenEstimator) for policy in given):
            return [policy.estimator for policy in given], self._divide(np.arange(len(X)), groups, fits=False)[1]
        fitting, testing = self._divide(np.arange(len(X)), groups, fits=True)
        known = X.with_layout(X.layout.replace(classes=classes))[fitting]
        return [
            policy.estimator
            if isinstance(policy, FrozenEstimator)
            else _fit_with_groups(_with_feasible_budget(clone(policy), X.layout), known, y[fitting], groups, fitting)
            for policy in given
        ], testing

    def _divide(
        self, rows: NDArray[np.intp], groups: NDArray[np.int64] | None, *, fits: bool
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows for fitting, if `fits`, and calibration rows; groups are not divided."""
        random_state = check_random_state(self.random_state)
        units = rows if groups is None else np.arange(groups.max() + 1)
        if not fits:
            fitting, testing = units[:0], random_state.permutation(units)
        elif len(units) == 1:
            of_rows = "n_samples=1: X has one row" if groups is None else "groups has one group"
            raise ValueError(
                f"{of_rows}, but some rows must fit the policy and others test it. Pass more, or a policy that was "
                "fitted on other rows: policy=FrozenEstimator(policy)."
            )
        else:
            fitting, testing = train_test_split(units, test_size=self.calibration_size, random_state=random_state)
        if groups is None:
            return fitting, testing
        return np.flatnonzero(np.isin(groups, fitting)), _by_group(groups, testing)

    def _test_budgets(
        self, fitted: Any, X: ExitArray, y: NDArray[Any], rows: NDArray[np.intp], groups: NDArray[np.int64] | None
    ) -> _Tests:
        """Test one budget after another until a test fails; keep the last budget that passed."""
        X = X.with_layout(X.layout.replace(classes=fitted.classes_))
        _, labels = encode_labels(y, X.layout, "Remove such rows, or pass a policy that was fitted with all classes.")
        X, y = X[rows], y[rows]
        answers = fitted.predict_at_exits(X)
        brier = brier_scores(fitted, X, labels[rows], self.loss) if self.loss in BRIER_LOSSES else None
        tests = _Tests(fitted, self._ordered_budgets(fitted))
        for index, budget in enumerate(tests.budgets):
            with silenced():  # otherwise each budget could warn that tied scores leave some of it unspent
                candidate = fitted.with_budget(float(budget))
            stops = candidate.predict_exit(X)
            if brier is None:
                losses = self._losses(y, answers[np.arange(len(y)), stops], answers[:, -1])
            else:
                losses = brier[np.arange(len(y)), stops] - brier[:, -1]
            if groups is not None:
                losses = _means(losses, groups[rows])
            tests.risks[index] = losses.mean()
            tests.p_values[index] = self._p_value(losses)
            if tests.p_values[index] > self._level():
                break
            tests.policy, tests.budget, tests.cost = candidate, float(budget), float(fitted.costs_[stops].mean())
        return tests

    def _level(self) -> float:
        """Probability that a test of one policy passes by mistake: delta divided by the number of policies."""
        return self.delta / (len(self.policy) if isinstance(self.policy, list | tuple) else 1)

    def _warn_that_none_qualifies(self, tests: _Tests, n_policies: int, has_groups: bool) -> None:
        level = f"delta={self.delta}" + (f" / {n_policies} policies" if n_policies > 1 else "")
        cure = f"more calibration {'groups' if has_groups else 'rows'}, or a larger alpha or delta"
        cure += ", or fewer policies" if n_policies > 1 else ""
        if tests.risks[0] > self.alpha:  # more rows or fewer policies do not change this
            cure = "a larger alpha, or a policy that loses less"
        cure += ", or higher budgets" if self.budgets is not None and tests.budgets[0] < 1 else ""
        warn(
            f"no budget qualifies, so all samples go to the last exit: at budget {tests.budgets[0]:.4g}, the mean loss "
            f"of {self.n_calibration_} calibration rows is {tests.risks[0]:.4g}, and the p-value of an expected loss "
            f"above alpha={self.alpha} is {tests.p_values[0]:.3g}, which is more than {level}. Use {cure}."
        )

    def _ordered_budgets(self, fitted: Any) -> Floats:
        if self.budgets is None:
            return np.linspace(1.0, fitted.costs_[0], _N_BUDGETS if len(fitted.costs_) > 1 else 1)
        budgets = np.unique(np.asarray(self.budgets, dtype=np.float64))[::-1]
        if len(budgets) == 0:
            raise ValueError("budgets=[] has no budget; pass fractions of the network's cost, or None.")
        for budget in budgets.tolist():
            check_budget(budget, fitted.layout_, "budgets")
        return budgets

    def _losses(self, y: NDArray[Any], answers: NDArray[Any], last: NDArray[Any]) -> Floats:
        if self.loss == "error":
            return (answers != y).astype(np.float64)
        if self.loss == "disagreement":
            return (answers != last).astype(np.float64)
        if self.loss == "accuracy_drop":
            return (last == y).astype(np.float64) - (answers == y)
        losses = np.asarray(self.loss(y, answers, last), dtype=np.float64)
        if losses.shape != y.shape or not (np.abs(losses) <= 1).all():
            values = f", values {losses.min():.4g} to {losses.max():.4g}" if losses.size else ""
            raise ValueError(
                f"loss returned an array of shape {losses.shape}{values}; it must return one value in [-1, 1] for each "
                f"of the {len(y)} rows."
            )
        return losses

    def _p_value(self, losses: Floats) -> float:
        if self.loss in ("error", "disagreement") and np.isin(losses, [0, 1]).all():
            return binomial_p_value(losses, self.alpha)
        return betting_p_value((1 + losses) / 2, (1 + self.alpha) / 2, self._level())

    @property
    def heads(self) -> Any:
        """None: the heads are those of the policy."""
        return None

    @property
    def use_most_confident(self) -> bool:
        """Whether the policy predicts with the most confident exit so far."""
        return getattr(self.policy_, "use_most_confident", False)

    def uses_features(self, k: int) -> bool:
        return self.budget_ is not None and self.policy_.uses_features(k)

    def earlier_exits(self, k: int) -> range:
        return self.policy_.earlier_exits(k) if self.budget_ is not None else range(0)

    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        if self.budget_ is None:
            return array_namespace(logits).zeros_like(logits[:, 0])
        return self.policy_.score_exit(k, logits, features, memory)

    def fit_policy(self, X: ExitArray, labels: NDArray[np.int64], weight: Floats) -> None:
        raise NotImplementedError  # fit does not call it


def _fit_with_groups(
    policy: Any, X: ExitArray, y: NDArray[Any], groups: NDArray[np.int64] | None, rows: NDArray[np.intp]
) -> Any:
    """Fit the policy, with the groups of these rows if its ``fit`` takes groups."""
    if groups is None or not has_fit_parameter(policy, "groups"):
        return policy.fit(X, y)
    return policy.fit(X, y, groups=groups[rows])


def _by_group(groups: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.intp]:
    """The rows of the groups in `order`, in this order."""
    return np.concatenate([np.flatnonzero(groups == group) for group in order])


def _means(losses: Floats, groups: NDArray[np.int64]) -> Floats:
    """Mean loss of each group, in the order of the first row of each group."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return (np.bincount(number, losses) / np.bincount(number))[np.argsort(first)]
