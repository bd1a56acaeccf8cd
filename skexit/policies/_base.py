"""What every exit policy has in common."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skexit.data import ExitArray
from skexit.data._arrays import enough_rows
from skexit.data._estimator import ExitEstimator, warn_of_other_costs
from skexit.data._validation import (
    check_budget,
    encode_labels,
    read_features,
    read_logits,
    validate_new_data,
    validate_training_data,
)
from skexit.heads._heads import fit_heads
from skexit.policies._quotas import exits_from_scores
from skexit.policies._recall import most_confident, recall
from skexit.uncertainty import fit_temperature, softmax
from skexit.uncertainty._conformal import FEWEST_ROWS, ConformalScores
from skexit.utils._html import cost_column, exit_table, threshold_text
from skexit.utils._sklearn import _fit_context


class ExitPolicy(ClassifierMixin, ExitEstimator):
    """A classifier that decides at each exit whether a sample stops there.

    A subclass writes two methods: `_score_exit` scores one exit for the samples that are still
    running, and `_fit_policy` learns and sets ``thresholds_``. A sample stops at the first exit
    whose score is at least the exit's threshold.

    Its ``__init__`` has the parameters `layout` and `heads`.
    """

    #: Whether `_score_exit` looks at features.
    _needs_features = False

    _only_for_fitting: ClassVar[frozenset[str]] = frozenset({"_conformal_scores"})

    layout: Any
    heads: Any
    thresholds_: NDArray[np.float64]
    temperatures_: NDArray[np.float64]
    _conformal_scores: ConformalScores | None = None

    @abstractmethod
    def _score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        """Score exit `k` for the samples that are still running.

        Parameters
        ----------
        k : int
            The exit.
        logits : array of shape (n_samples, n_classes)
        features : array of shape (n_samples, n_features) or None
            None unless the policy needs features.
        memory : dict of str to array of shape (n_samples, ...)
            What was noted of these samples at earlier exits. A policy adds to it what it needs
            later; rows are dropped as their samples leave.

        Returns
        -------
        array of shape (n_samples,)
        """

    def _earlier_exits(self, k: int) -> range:
        """Exits before `k` whose notes in memory its score depends on: all, unless a subclass says otherwise."""
        return range(k)

    @abstractmethod
    def _fit_policy(self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        """Learn from exits that all have logits, and set ``thresholds_``."""

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> ExitPolicy:
        """Learn when samples may stop. An earlier calibration is dropped.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits. Where an exit has no logits, :class:`~skexit.ExitHeads` is
            fitted first.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; all count alike by default.

        Returns
        -------
        self : ExitPolicy
            The fitted policy.

        Raises
        ------
        ValueError
            If X does not fit its layout or is not finite, y has a class that X does not know, or
            the budget does not pay for the first exit.
        """
        exits, self.classes_, labels, weight = validate_training_data(self, X, y, sample_weight)
        return self._fit_on(self._fit_heads(exits, labels, weight), labels, weight)

    def _fit_on(self, exits: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]) -> Self:
        """Fit on exits that all have logits, now that these are there."""
        self.layout_ = exits.layout
        self.costs_ = self.layout_.cost_fractions
        self._drop_calibration()
        budget = getattr(self, "budget", None)
        if budget is not None:
            self._check_budget(budget)
        self._fit_policy(recall(exits) if getattr(self, "recall", False) else exits, labels, weight)
        return self

    def calibrate(self, X: Any, y: ArrayLike, *, temperature: bool = True) -> Self:
        """Learn how far the exits can be trusted, from rows that were not used in fitting.

        A temperature is fitted for each exit, on the rows that leave there (on all rows where
        fewer than 20 do), and from then on divides the exit's logits in ``predict_proba`` and
        ``predict_set``. The conformal scores of the rows are kept for ``predict_set``. Decisions
        stay as they are: those of ``exit_scores``, ``predict_exit`` and ``predict``.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits.
        y : array-like of shape (n_samples,)
            Class labels.
        temperature : bool, default=True
            Whether to fit temperatures. False keeps those of an earlier call, or 1. Sets have
            their exact guarantee where the temperatures are from other rows than the sets:
            ``policy.calibrate(X_1, y_1).calibrate(X_2, y_2, temperature=False)``.

        Returns
        -------
        self : ExitPolicy
            Its ``temperatures_``, an array of shape (n_exits,), are 1 before the first call.

        Raises
        ------
        ValueError
            If X does not fit the layout of the policy or is not finite, or y has a class that the
            policy does not know.
        """
        exits = self._check_new(X)
        check_consistent_length(exits, y)
        _, labels = encode_labels(y, self.layout_)
        stops = self._stops(exits)
        temperatures = self._fit_temperatures(exits, labels, stops) if temperature else self.temperatures_.copy()
        scores = np.empty((len(exits), self.layout_.n_exits))
        for batch, k, logits in self._logits_of_exits(exits):
            probabilities = softmax(logits / temperatures[k])
            scores[batch, k] = 1 - probabilities[np.arange(len(logits)), labels[batch]]
        self.temperatures_, self._conformal_scores = temperatures, ConformalScores(scores, stops)
        return self

    def _fit_temperatures(
        self, X: ExitArray, labels: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Temperature of each exit, from enough of the rows that leave there."""
        n_exits, n_classes = self.layout_.n_exits, len(self.classes_)
        temperatures = np.empty(n_exits)
        for k in range(n_exits):
            leaving = np.flatnonzero(stops == k)
            leaving = leaving if len(leaving) >= FEWEST_ROWS else np.arange(len(X))
            rows = leaving[enough_rows(len(leaving), n_exits * n_classes)]
            logits = np.empty((len(rows), n_classes))
            for batch, exit, values in self._logits_of_exits(X[rows], last=k):
                if exit == k:
                    logits[batch] = values
            temperatures[k] = fit_temperature(logits, labels[rows])
        return temperatures

    def predict(self, X: Any) -> NDArray[Any]:
        """Class of each sample, as said by the exit at which it stops.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits.

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels from ``classes_``.
        """
        exits = self._check_new(X)
        predicted = np.empty(len(exits), dtype=np.int64)
        for _, rows, logits in self._departures(exits):
            # Of the logits: a temperature could part or join probabilities that differ by a rounding error.
            predicted[rows] = np.argmax(logits, axis=1)
        return self.classes_[predicted]

    def predict_at_exits(self, X: Any) -> NDArray[Any]:
        """Class of each sample as every exit would say it, as if all samples went there.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits.

        Returns
        -------
        ndarray of shape (n_samples, n_exits)
            ``predict`` gives of each row the column of ``predict_exit``.
        """
        exits = self._check_new(X)
        predicted = np.empty((len(exits), self.layout_.n_exits), dtype=np.int64)
        for batch, k, logits in self._logits_of_exits(exits):
            predicted[batch, k] = np.argmax(logits, axis=1)
        return self.classes_[predicted]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities of each sample, as said by the exit at which it stops.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Columns in the order of ``classes_``.
        """
        exits = self._check_new(X)
        probabilities = np.empty((len(exits), len(self.classes_)))
        for k, rows, logits in self._departures(exits):
            probabilities[rows] = softmax(logits / self.temperatures_[k])
        return probabilities

    def predict_set(self, X: Any, alpha: float = 0.05, method: str = "gated") -> NDArray[np.bool_]:
        """Classes that contain the true one with a probability of about ``1 - alpha``.

        A class is in the set of a sample if one minus its probability, at the exit where the
        sample stops, is at most the exit's conformal threshold (JEI-DNN, eq. 10). Needs
        ``calibrate``.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits.
        alpha : float, default=0.05
            Share of sets that may miss the true class; between 0 and 1, both excluded.
        method : {"general", "ims", "strict", "gated"}, default="gated"
            Which calibration rows make the thresholds (JEI-DNN, 9.3). ``"general"``: one threshold
            from all rows, each at the exit where it leaves. ``"ims"``: one an exit, from all rows at
            that exit. ``"strict"``: one an exit, from the rows that leave there; where none does,
            sets are empty. ``"gated"``: as strict, but the general one where fewer than 20 rows
            leave.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) of bool
            All classes where there are too few calibration rows for the guarantee.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the policy is not calibrated.
        ValueError
            If alpha is not between 0 and 1, or there is no such method.
        """
        exits = self._check_new(X)
        if self._conformal_scores is None:
            raise NotFittedError(
                f"This {type(self).__name__} is not calibrated. Call 'calibrate' on rows that were not used in fitting "
                "before 'predict_set'."
            )
        thresholds = self._conformal_scores.thresholds(alpha, method)
        sets = np.empty((len(exits), len(self.classes_)), dtype=bool)
        for k, rows, logits in self._departures(exits):
            sets[rows] = 1 - softmax(logits / self.temperatures_[k]) <= thresholds[k]
        return sets

    def predict_exit(self, X: Any) -> NDArray[np.int64]:
        """Exit at which each sample stops.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits.

        Returns
        -------
        ndarray of shape (n_samples,) of int
            Exits count from 0.
        """
        return self._stops(self._check_new(X))

    def exit_scores(self, X: Any) -> NDArray[np.float64]:
        """Scores of every exit, as if no sample stopped before it.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits.

        Returns
        -------
        ndarray of shape (n_samples, n_exits)
            A sample stops at the first exit where its score is at least ``thresholds_``.
        """
        exits = self._check_new(X)
        return self._scores(exits, self.heads_)

    def mean_cost(self, X: Any, sample_weight: ArrayLike | None = None) -> float:
        """Mean cost of a sample, as a fraction of the last exit's cost.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; all count alike by default.

        Returns
        -------
        float
            Between 0 and 1.
        """
        exits = self.predict_exit(X)
        return float(
            np.average(self.costs_[exits], weights=None if sample_weight is None else np.asarray(sample_weight))
        )

    def _check_budget(self, budget: float) -> None:
        """Raise unless the budget can be met. With a single exit there is nothing to choose."""
        if self.layout_.n_exits > 1:
            check_budget(budget, self.costs_)

    def _fit_heads(self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]) -> ExitArray:
        """Fit `heads`, by default where an exit lacks logits; gives X with logits at every exit."""
        random_state = getattr(self, "random_state", 0)
        self.heads_, with_logits = fit_heads(self.heads, X, self.classes_, labels, weight, random_state)
        return with_logits

    def _with_classes(self, X: ExitArray) -> ExitArray:
        return X.with_layout(X.layout.replace(classes=self.classes_))

    def _add_logits(self, X: ExitArray) -> ExitArray:
        """X with the logits that the fitted heads give it."""
        return self._with_classes(X) if self.heads_ is None else self.heads_.transform(X)

    def _check_new(self, X: Any) -> ExitArray:
        check_is_fitted(self)
        exits = validate_new_data(self, X)
        warn_of_other_costs(self, exits)
        return exits

    def _observe(self, X: ExitArray, k: int, rows: Any, memory: dict[str, Any], heads: Any) -> tuple[Any, Any]:
        """Logits and features of exit `k`, read for the given rows only; `heads` are None where X has their logits."""
        logits = read_logits(X, k, rows)
        features = read_features(X, k, rows) if self._needs_features or heads is not None else None
        return self._answer(k, logits, features, memory, heads), features

    def _answer(self, k: int, logits: Any, features: Any, memory: dict[str, Any], heads: Any) -> Any:
        """Logits with which exit `k` answers."""
        if heads is not None:
            logits = heads.exit_logits(k, logits, features, memory)
        return most_confident(logits, memory) if getattr(self, "recall", False) else logits

    def _departures(self, X: ExitArray) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
        """Walk through the exits: which rows stop at exit k, with their logits there."""
        last = self.layout_.n_exits - 1
        for batch in X.batches():
            running = np.arange(batch.start, batch.stop)
            memory: dict[str, Any] = {}
            for k in range(last + 1):
                logits, features = self._observe(X, k, running, memory, self.heads_)
                if k == last:
                    yield k, running, logits
                    break
                leaves = self._score_exit(k, logits, features, memory) >= self.thresholds_[k]
                yield k, running[leaves], logits[leaves]
                running = running[~leaves]
                memory = {name: noted[~leaves] for name, noted in memory.items()}
                if len(running) == 0:
                    break

    def _stops(self, X: ExitArray) -> NDArray[np.int64]:
        stops = np.empty(len(X), dtype=np.int64)
        for k, rows, _ in self._departures(X):
            stops[rows] = k
        return stops

    def _logits_of_exits(
        self, X: ExitArray, last: int | None = None
    ) -> Iterator[tuple[slice, int, NDArray[np.float64]]]:
        """Logits of each batch of the rows at one exit after another, up to `last`."""
        n_exits = X.layout.n_exits if last is None else last + 1
        for batch in X.batches():
            memory: dict[str, Any] = {}
            for k in range(n_exits):
                yield batch, k, self._observe(X, k, batch, memory, self.heads_)[0]

    def _scores(self, X: ExitArray, heads: Any = None) -> NDArray[np.float64]:
        scores = np.empty((len(X), X.layout.n_exits))
        for batch in X.batches():
            memory: dict[str, Any] = {}
            for k in range(X.layout.n_exits):
                logits, features = self._observe(X, k, batch, memory, heads)
                scores[batch, k] = self._score_exit(k, logits, features, memory)
        return scores

    def _record_distribution(self, scores: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        """Set ``exit_distribution_`` to the shares of the fitting rows."""
        stops = exits_from_scores(scores, self.thresholds_)
        self.exit_distribution_ = np.bincount(stops, weights=weight, minlength=scores.shape[1]) / weight.sum()

    def _exit_table(self) -> str:
        if not hasattr(self, "exit_distribution_"):
            return ""
        columns = cost_column(self.layout_) | {"Threshold": [threshold_text(value) for value in self.thresholds_]}
        if self._conformal_scores is not None:
            columns["Temperature"] = [f"{temperature:.3g}" for temperature in self.temperatures_]
        return exit_table(columns, self.exit_distribution_)

    def _drop_calibration(self) -> None:
        self.temperatures_ = np.ones(self.layout_.n_exits)
        self._conformal_scores = None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.one_d_labels = True
        return tags


class BudgetedPolicy(ExitPolicy):
    """A policy whose thresholds follow from its scores on the fitting data and a budget.

    Its ``__init__`` also has the parameter `budget`. A subclass writes `_choose_thresholds`.
    """

    budget: Any

    @abstractmethod
    def _choose_thresholds(self, scores: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Thresholds for `budget`, from the scores and weights of the fitting data."""

    def with_budget(self, budget: float) -> Self:
        """A fitted copy for another budget; nothing is trained again.

        The copy is not calibrated, as other samples leave at its exits.

        Parameters
        ----------
        budget : float
            Mean cost of a sample on the data that was fitted, a fraction in (0, 1] of the last
            exit's cost.

        Returns
        -------
        BudgetedPolicy
            The same kind of policy.

        Raises
        ------
        ValueError
            If the budget is outside (0, 1] or below the first exit's cost.
        """
        check_is_fitted(self)
        self._check_budget(budget)
        policy = copy.copy(self).set_params(budget=budget)
        policy._drop_calibration()
        policy._apply_thresholds()
        return policy

    def _fit_thresholds(self, X: ExitArray, weight: NDArray[np.float64]) -> None:
        self._fitting_scores = self._scores(X)
        self._fitting_weight = weight
        self._apply_thresholds()

    def _apply_thresholds(self) -> None:
        self._set_thresholds(self._fitting_scores)

    def _set_thresholds(self, scores: NDArray[np.float64]) -> None:
        self.thresholds_ = self._choose_thresholds(scores, self._fitting_weight)
        self._record_distribution(scores, self._fitting_weight)


def correct_exits(X: ExitArray, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which exits are right for which samples.

    Parameters
    ----------
    X : ExitArray of shape (n_samples, n_columns)
        With logits at every exit.
    labels : ndarray of shape (n_samples,)
        Index of the true class.

    Returns
    -------
    ndarray of shape (n_samples, n_exits) of bool
    """
    correct = np.empty((len(X), X.layout.n_exits), dtype=bool)
    for k in range(X.layout.n_exits):
        if not X.layout.has_logits(k):
            raise ValueError(f"exit {k} has no logits; add them with ExitHeads().fit_transform(X, y).")
        for batch in X.batches():
            predicted = np.argmax(cast(Any, read_logits(X, k, batch)), axis=1)
            correct[batch, k] = predicted == labels[batch]
    return correct
