"""Base class of all exit policies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from inspect import signature
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import Tags, check_consistent_length, column_or_1d
from sklearn.utils.validation import check_is_fitted

from skexit.data import ExitArray, ExitLayout
from skexit.data._estimator import (
    ExitEstimator,
    cost_columns,
    warn_of_expensive_heads,
    warn_of_lost_exits,
    warn_of_other_costs,
)
from skexit.data._labels import only_labelled
from skexit.data._validation import check_budget, validate_groups, validate_new_data, validate_training_data
from skexit.data._walk import collect, walk_batches
from skexit.heads._fit_heads import fit_heads
from skexit.heads._transformer import logits_by
from skexit.policies._calibration import CalibrationMixin
from skexit.policies._decision import ExitDecision
from skexit.policies._most_confident import answer_with_most_confident
from skexit.policies._quotas import exits_from_scores
from skexit.policies._steps import ExitState, ExitStep, decide
from skexit.uncertainty import softmax
from skexit.utils._html import exit_table, threshold_text
from skexit.utils._labels import check_is_given, has_label
from skexit.utils._sklearn import HasMethods, Interval, _fit_context


class ExitPolicy(CalibrationMixin, ClassifierMixin, ExitEstimator):
    """A classifier that decides at each exit whether a sample stops there.

    A subclass implements two methods: `score_exit` computes the scores of one exit for the samples that are still
    running, and `fit_policy` learns from data and sets ``thresholds_`` and ``exit_distribution_``. It may override
    `uses_features` and `earlier_exits`, which tell what its scores depend on. A sample stops at the first exit whose
    score is at least the exit's threshold. :func:`skexit.testing.check_policy` checks that a subclass does all this.

    The ``__init__`` of a subclass has the parameters `layout` and `heads`.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "heads": [HasMethods(["fit", "transform", "exit_logits"]), None],
        "layout": [ExitLayout, Interval(Integral, 1, None, closed="left"), None],
    }

    layout: Any
    heads: Any
    thresholds_: NDArray[np.float64]

    @abstractmethod
    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        """Score exit `k` for the samples that are still running.

        The arrays are NumPy arrays for cached rows, and torch tensors in the live network.

        Parameters
        ----------
        k : int
            The exit, counted from 0.
        logits : array of shape (n_samples, n_classes)
            Logits of the exit, in the order of ``classes_``.
        features : array of shape (n_samples, n_features) or None
            None unless ``uses_features(k)`` is true.
        memory : dict of str to array of shape (n_samples, ...)
            Values that the policy stored for these samples at earlier exits. A policy adds what it needs at
            later exits. The rows of samples that leave are removed.

        Returns
        -------
        array of shape (n_samples,)
            Samples with larger scores stop first.
        """

    @abstractmethod
    def fit_policy(self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        """Learn when to stop, and set ``thresholds_`` and ``exit_distribution_``.

        ``classes_``, ``layout_``, ``costs_`` and ``heads_`` are set before. `fitting_scores` computes the
        scores of the rows, and `record_distribution` sets ``exit_distribution_`` from the scores.

        A policy that splits the rows has another parameter, `groups`: None, or an ndarray of shape
        (n_samples,) of int with the group of each row. The split must keep the rows of a group together.

        Parameters
        ----------
        X : ExitArray of shape (n_samples, n_columns)
            Rows with logits at every exit.
        labels : ndarray of shape (n_samples,)
            Index of each row's label in ``classes_``.
        weight : ndarray of shape (n_samples,)
            Positive weights with a mean of 1.
        """

    def uses_features(self, k: int) -> bool:
        """Whether `score_exit` uses the features of exit `k`; by default, it does not.

        Parameters
        ----------
        k : int
            The exit, counted from 0.

        Returns
        -------
        bool
            If False, `features` is None in `score_exit`.
        """
        return False

    def earlier_exits(self, k: int) -> range:
        """Exits before `k` on whose values in `memory` the score of `k` depends; by default, all of them.

        A live network computes nothing at an exit on which no decision depends.

        Parameters
        ----------
        k : int
            The exit, counted from 0.

        Returns
        -------
        range
            Empty if the score of exit `k` depends on no other exit.
        """
        return range(k)

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> ExitPolicy:
        """Learn when samples may stop. An earlier calibration is removed.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits; logits alone also of shape (n_samples, n_exits, n_classes). If an exit
            has no logits, :class:`~skexit.ExitHeads` is fitted first.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; equal by default.
        groups : array-like of shape (n_samples,), default=None
            Group of each sample, such as the scene of an image. Whenever rows are split, the rows
            of a group stay together.

        Returns
        -------
        self : ExitPolicy
            The fitted policy.

        Raises
        ------
        ValueError
            If X does not match its layout or is not finite, y has a class that X does not have, the budget
            is below the cost of the first exit, or there are fewer groups than folds.
        """
        exits, self.classes_, labels, weight, numbers = self._validate_training_data(X, y, sample_weight, groups)
        self._fit_on(self._fit_heads(exits, labels, weight, numbers), labels, weight, numbers)
        warn_of_expensive_heads(self.layout_)
        return self

    def _validate_training_data(
        self, X: Any, y: Any, sample_weight: Any, groups: Any
    ) -> tuple[ExitArray, NDArray[Any], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64] | None]:
        """X with sorted classes, the classes, indices of labels, weights, and numbers of groups.

        Only rows that have a label and a positive weight are returned.
        """
        exits, classes, labels, weight = validate_training_data(self, X, y, sample_weight)
        numbers = validate_groups(groups, y, sample_weight)
        exits, labels, weight, numbers = only_labelled(exits, labels, weight, numbers)
        return exits.with_layout(warn_of_lost_exits(self, exits.layout)), classes, labels, weight, numbers

    def _fit_on(
        self,
        exits: ExitArray,
        labels: NDArray[np.int64],
        weight: NDArray[np.float64],
        groups: NDArray[np.int64] | None = None,
    ) -> Self:
        """Fit on exits that all have logits."""
        self.layout_ = exits.layout
        self.costs_ = self.layout_.cost_fractions
        self._drop_calibration()
        budget = getattr(self, "budget", None)
        if budget is not None:
            self._check_budget(budget)
        if getattr(self, "use_most_confident", False):
            exits = answer_with_most_confident(exits)
        splits_rows = "groups" in signature(self.fit_policy).parameters
        self.fit_policy(exits, labels, weight, **({"groups": groups} if splits_rows else {}))
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Predicted class of each sample, from the exit at which it stops.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels from ``classes_``.
        """
        exits = self._check_new(X)
        predicted = np.empty(len(exits), dtype=np.int64)
        for _, rows, logits in ExitDecision(self).departures(exits):
            # From the logits: division by a temperature could change the order of logits by a rounding error.
            predicted[rows] = np.argmax(logits, axis=1)
        return self.classes_[predicted]

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy of ``predict`` on the rows that have a label.

        Parameters
        ----------
        %(X)s
        y : array-like of shape (n_samples,)
            Class labels. Rows with the label -1 are left out, unless -1 is a class.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; all count alike by default.

        Returns
        -------
        float
            Between 0 and 1.

        Raises
        ------
        ValueError
            If no row has a label.
        """
        check_is_given(y, "y is None.")
        answers, labels = self.predict(X), column_or_1d(y)
        check_consistent_length(answers, labels)
        labelled = has_label(labels, self.classes_)
        weight = None if sample_weight is None else np.asarray(sample_weight)[labelled]
        return float(accuracy_score(labels[labelled], answers[labelled], sample_weight=weight))

    def predict_at_exits(self, X: Any) -> NDArray[Any]:
        """Predicted class of each sample at every exit, as if no sample stopped earlier.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n_samples, n_exits)
            For each row, ``predict`` returns the column of ``predict_exit``.
        """
        exits = self._check_new(X)
        predicted = np.empty((len(exits), self.layout_.n_exits), dtype=np.int64)
        for k, batch, logits in self._answers(exits):
            predicted[batch, k] = np.argmax(logits, axis=1)
        return self.classes_[predicted]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities of each sample, from the exit at which it stops.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Columns in the order of ``classes_``.
        """
        exits = self._check_new(X)
        probabilities = np.empty((len(exits), len(self.classes_)))
        for k, rows, logits in ExitDecision(self).departures(exits):
            probabilities[rows] = softmax(logits / self.temperatures_[k])
        return probabilities

    def predict_exit(self, X: Any) -> NDArray[np.int64]:
        """Exit at which each sample stops.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n_samples,) of int
            Exits are counted from 0.
        """
        return self._stops(self._check_new(X))

    def decide(
        self, k: int, logits: ArrayLike | None = None, features: ArrayLike | None = None, state: ExitState | None = None
    ) -> ExitStep:
        """Decide which samples leave at one exit, for a loop of your own.

        Call it at exit 0, 1, ... in turn, with the samples that are still running. The result equals ``predict_exit``.

        Parameters
        ----------
        k : int
            The exit, counted from 0.
        logits : array-like of shape (n_samples, n_classes), default=None
            The network's own logits, in the order of the classes of the X that was fitted. NumPy arrays or torch
            tensors. None if the exit has no logits of its own, because heads compute them.
        features : array-like of shape (n_samples, n_features), default=None
            Features of the exit. None if it has none, or the policy uses none.
        state : ExitState, default=None
            The state that ``decide`` returned at the previous exit, with one row for each sample that is passed now.
            None at the first exit.

        Returns
        -------
        ExitStep
            ``leaves, state = policy.decide(...)``: a mask of the samples that leave, and the state of the other
            samples, in their order, for the next exit; ``state[kept]`` removes more of them. Its attributes ``logits``
            and ``probabilities`` are the exit's predictions for all samples that were passed.

        Raises
        ------
        ValueError
            If logits or features are missing, do not have the fitted shape, or are not finite; if the rows do not
            match the state; or if ``decide`` was not called at an earlier exit on which the decision depends.

        Examples
        --------
        >>> import numpy as np
        >>> from skexit import ThresholdPolicy, stack_exits
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(3, size=200)
        >>> exits = [scale * np.eye(3)[y] + rng.normal(size=(200, 3)) for scale in (1, 2, 3)]
        >>> policy = ThresholdPolicy(budget=0.6).fit(stack_exits(exits), y)
        >>> running, state = np.arange(5), None
        >>> for k in range(3):  # logits are computed only for the samples that are still running
        ...     step = policy.decide(k, exits[k][running], state=state)
        ...     leaves, state = step
        ...     print(k, running[leaves], policy.classes_[step.logits[leaves].argmax(axis=1)])
        ...     running = running[~leaves]
        0 [0 3] [2 0]
        1 [2] [1]
        2 [1 4] [1 0]
        """
        check_is_fitted(self)
        return decide([self], k, logits, features, state)

    def exit_scores(self, X: Any) -> NDArray[np.float64]:
        """Scores at every exit, as if no sample stopped earlier.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n_samples, n_exits)
            A sample stops at the first exit where its score is at least the threshold in ``thresholds_``.
        """
        return self._scores(self._check_new(X))

    def _scores(self, X: ExitArray, exits: Iterable[int] | None = None) -> NDArray[np.float64]:
        """Scores at some exits, by default at all, one column per exit."""
        decision = ExitDecision(self)
        return _stack(
            collect(decision.answer_and_score, X, exits, uses_features=decision.uses_features, start=decision.start)
        )

    def mean_cost(self, X: Any, sample_weight: ArrayLike | None = None) -> float:
        """Mean cost of a sample, heads included, as a fraction of the cost of the network without heads.

        Parameters
        ----------
        %(X)s
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; equal by default.

        Returns
        -------
        float
            Above 1 if heads cost more than early exits save.
        """
        exits = self.predict_exit(X)
        return float(
            np.average(self.costs_[exits], weights=None if sample_weight is None else np.asarray(sample_weight))
        )

    def _check_budget(self, budget: float) -> None:
        """Raise a ValueError unless the budget can be met. With a single exit, any budget is accepted."""
        if self.layout_.n_exits > 1:
            check_budget(budget, self.layout_)

    def _fit_heads(
        self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64], groups: NDArray[np.int64] | None
    ) -> ExitArray:
        """Fit `heads`, by default if an exit has no logits; returns X with logits at every exit."""
        random_state = getattr(self, "random_state", 0)
        self.heads_, with_logits = fit_heads(self.heads, X, self.classes_, labels, weight, random_state, groups)
        return with_logits

    def _with_classes(self, X: ExitArray) -> ExitArray:
        return X.with_layout(X.layout.replace(classes=self.classes_))

    def _add_logits(self, X: ExitArray) -> ExitArray:
        """X with the logits that the fitted heads compute."""
        return self._with_classes(X) if self.heads_ is None else logits_by(self.heads_, "transform", X)

    def _check_new(self, X: Any) -> ExitArray:
        check_is_fitted(self)
        exits = validate_new_data(self, X)
        warn_of_other_costs(self, exits)
        return exits

    def _stops(self, X: ExitArray) -> NDArray[np.int64]:
        stops = np.empty(len(X), dtype=np.int64)
        for k, rows, _ in ExitDecision(self).departures(X):
            stops[rows] = k
        return stops

    def _answers(self, X: ExitArray, exits: Iterable[int] | None = None) -> Iterator[tuple[int, slice, Any]]:
        """Logits of each exit's prediction, as if no sample stopped earlier, in batches of rows."""
        decision = ExitDecision(self)
        return walk_batches(
            decision.answer, X, exits, uses_features=decision.answer_uses_features, start=decision.start
        )

    def fitting_scores(self, X: ExitArray) -> NDArray[np.float64]:
        """Scores of the rows of `fit_policy` at every exit.

        Parameters
        ----------
        X : ExitArray of shape (n_samples, n_columns)
            Rows with logits at every exit.

        Returns
        -------
        ndarray of shape (n_samples, n_exits)
            As if no sample stopped before the last exit.
        """
        return _stack(collect(self.score_exit, X, uses_features=self.uses_features))

    def record_distribution(self, scores: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        """Set ``exit_distribution_`` to the shares of the fitting rows that stop at each exit.

        Parameters
        ----------
        scores : ndarray of shape (n_samples, n_exits)
            Scores from `fitting_scores`.
        weight : ndarray of shape (n_samples,)
            Weights of these rows.
        """
        stops = exits_from_scores(scores, self.thresholds_)
        self.exit_distribution_ = np.bincount(stops, weights=weight, minlength=scores.shape[1]) / weight.sum()

    def _exit_table(self) -> str:
        if not hasattr(self, "exit_distribution_"):
            return ""
        columns = cost_columns(self.layout_) | {"Threshold": [threshold_text(value) for value in self.thresholds_]}
        if self.conformal_scores_ is not None:
            columns["Temperature"] = [f"{temperature:.3g}" for temperature in self.temperatures_]
        return exit_table(columns, self.exit_distribution_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.one_d_labels = True
        return tags


def _stack(scores: dict[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.stack(list(scores.values()), axis=1)
