"""Policies whose thresholds are computed from a budget."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skexit.data import ExitArray
from skexit.data._walk import RowReader, walk
from skexit.policies._base import ExitPolicy
from skexit.policies._decision import ExitDecision, leaves_at
from skexit.policies._quotas import quota_thresholds
from skexit.utils._checks import at_least
from skexit.utils._module_names import set_module
from skexit.utils._warnings import silenced

#: Rows of a sample that shows how far `meet_budget` needs to read most rows, and how much more they may spend there.
_N_SAMPLED = 20_000
_HIGHER_BUDGET = 1.05


@set_module("skexit.persistence")
@dataclass(frozen=True)
class FitState:
    """Fitting data that `with_budget` needs: scores, of shape (n_samples, n_exits), and weights of the rows."""

    scores: NDArray[np.float64]
    weight: NDArray[np.float64]


class BudgetedPolicy(ExitPolicy):
    """A policy whose thresholds are computed from its scores on the fitting data and a budget.

    The ``__init__`` of a subclass also has the parameter `budget`. A subclass implements `score_exit`. If it
    learns, it overrides `fit_policy`, which must end with `fit_thresholds`. If the shares of the exits are not
    geometric, it overrides `choose_thresholds`.

    ``fit_state_`` stores the fitting data that ``with_budget`` needs.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ExitPolicy._parameter_constraints,
        "budget": [Real, None],
    }

    budget: Any
    fit_state_: Any

    #: Exits that are switched off for every budget.
    _without: tuple[int, ...] = ()

    def fit_policy(self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        self.fit_thresholds(X, weight)

    def choose_thresholds(self, scores: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Thresholds that meet `budget`; by default with geometric shares of the samples.

        Parameters
        ----------
        scores : ndarray of shape (n_samples, n_exits)
            Scores of the rows of ``fit``, or of the rows that were passed to ``meet_budget``.
        weight : ndarray of shape (n_samples,)
            Weights of these rows.

        Returns
        -------
        ndarray of shape (n_exits,)
            ``inf`` if no sample stops at an exit; ``-inf`` at the last exit.
        """
        return quota_thresholds(scores, self.costs_, self.budget, sample_weight=weight)

    def fit_thresholds(self, X: ExitArray, weight: NDArray[np.float64]) -> None:
        """Compute the scores of the rows, store them as ``fit_state_``, and set ``thresholds_``.

        Parameters
        ----------
        X : ExitArray of shape (n_samples, n_columns)
            The X of `fit_policy`.
        weight : ndarray of shape (n_samples,)
            Weights of these rows.
        """
        self.fit_state_ = FitState(self.fitting_scores(X), weight)
        self.apply_budget()

    def apply_budget(self) -> None:
        """Set ``thresholds_`` for `budget` from ``fit_state_``; by default with `choose_thresholds`."""
        self.set_thresholds(self.fitted_scores(), self.fit_state_.weight)

    def set_thresholds(self, scores: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        """Set ``thresholds_`` with `choose_thresholds`, and set ``exit_distribution_``.

        At an exit that is switched off, all scores are ``-inf`` and the threshold is ``inf``.

        Parameters
        ----------
        scores : ndarray of shape (n_samples, n_exits)
            Scores of the rows that were fitted.
        weight : ndarray of shape (n_samples,)
            Weights of these rows.
        """
        scores = self._switched_off(scores)
        self.thresholds_ = self.choose_thresholds(scores, weight)
        self.thresholds_[list(self._without)] = np.inf
        self.record_distribution(scores, weight)

    def with_budget(self, budget: float) -> Self:
        """A fitted copy for another budget; nothing is trained again.

        The copy is not calibrated, because other samples leave at its exits.

        Parameters
        ----------
        budget : float
            Mean cost of a sample on the fitting data, as a fraction in (0, 1] of the network's cost.

        Returns
        -------
        BudgetedPolicy
            A copy of the same class.

        Raises
        ------
        ValueError
            If the budget is outside (0, 1] or below the cost of the first exit that is not switched off, or the policy
            was made by ``without_fit_state``.
        """
        check_is_fitted(self)
        self._check_budget(budget)
        if self.fit_state_ is None:
            raise ValueError(
                f"this {type(self).__name__} has no fit_state_, which with_budget({budget}) needs: it was shipped "
                "without it. Call with_budget on the policy that was fitted, and ship the copy."
            )
        self._check_budget_of_exits(budget)
        return self._refitted({"budget": budget}, self._without)

    def meet_budget(self, X: Any) -> Self:
        """A fitted copy whose thresholds meet the budget on other rows, without labels.

        Use it if inputs have changed: harder inputs leave later, and cost more than the budget. The scores do not
        change. Neither does anything that is computed from labels, such as the threshold from which
        :class:`~skexit.OptimalStoppingPolicy` found that more compute lowers accuracy. ``with_budget`` of the copy uses
        the rows of ``fit`` again: call ``meet_budget`` after it. The copy is not calibrated.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Current rows, at least some hundred.

        Returns
        -------
        BudgetedPolicy
            A copy of the same class. Its ``exit_distribution_`` is that of these rows.

        Raises
        ------
        ValueError
            If X does not match the layout of the policy, the policy has a price or a threshold but no budget, or it
            was made by ``without_fit_state`` and needs data that this removed.
        """
        check_is_fitted(self)
        if self.budget is None:
            raise ValueError(
                f"this {type(self).__name__} has budget=None, so that there is no budget to meet. Fit it with a "
                "budget, or call with_budget first."
            )
        exits = self._check_new(X)
        if len(exits) > 2 * _N_SAMPLED:
            latest = self._latest_thresholds(exits)
            policy = self._with_thresholds_of(self._scores_until(exits, latest))
            if (policy.thresholds_ <= latest).all():
                return policy
        return self._with_thresholds_of(self._scores_until(exits, np.full(len(self.costs_), np.inf)))

    def _with_thresholds_of(self, scores: NDArray[np.float64]) -> Self:
        policy = copy.copy(self)
        policy._drop_calibration()
        policy.set_thresholds(scores, np.ones(len(scores)))
        return policy

    def _latest_thresholds(self, X: ExitArray) -> NDArray[np.float64]:
        """Thresholds of some of the rows for a higher budget: those of all rows for the budget itself are lower."""
        rows = np.linspace(0, len(X) - 1, _N_SAMPLED).astype(np.int64)
        scores = self._scores_until(X[rows], np.full(len(self.costs_), np.inf))
        policy = copy.copy(self).set_params(budget=min(_HIGHER_BUDGET * self.budget, 1.0))
        with silenced():  # warnings of the other rows and the other budget
            return policy._with_thresholds_of(scores).thresholds_

    def _scores_until(self, X: ExitArray, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores up to the exit where a row reaches its threshold, and ``inf`` at later exits, which are not read."""
        decision = ExitDecision(self)

        def leaves(k: int, scores: Any, features: Any, memories: Any) -> Any:
            return leaves_at(scores, thresholds[k])

        scores = np.full((len(X), len(self.costs_)), np.inf)
        exits = range(len(self.costs_) - 1)  # the scores of the last exit decide nothing
        for batch in X.batches():
            reader = RowReader(X, batch, decision.uses_features)
            for k, rows, of_exit, _ in walk(
                decision.answer_and_score, reader, exits, leaves=leaves, memory=decision.start()
            ):
                scores[rows, k] = of_exit
        return scores

    def _check_budget_of_exits(self, budget: float) -> None:
        cheapest = next(cost for k, cost in enumerate(self.costs_) if k not in self._without)
        if self._without and budget < cheapest:
            raise ValueError(
                f"budget={budget} is below the cost of the first exit that is not switched off, {at_least(cheapest)}. "
                "Give at least this cost, or call with_budget on the policy with all exits, and pruned on the copy "
                "that it returns."
            )

    def _without_exits(self, exits: Iterable[int]) -> Self:
        """A fitted copy for the same budget in which no sample leaves at some early exits; it is not calibrated."""
        return self._refitted({}, tuple(exits))

    def fitted_scores(self) -> NDArray[np.float64]:
        """Scores of the rows that were fitted, from ``fit_state_``; by default the scores stored there.

        Returns
        -------
        ndarray of shape (n_samples, n_exits)
            Scores of ``score_exit`` for the current budget.
        """
        scores: NDArray[np.float64] = self.fit_state_.scores
        return scores

    def _fitted_scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores of the rows that were fitted, -inf at exits that are switched off, and their weights."""
        return self._switched_off(self.fitted_scores()), self.fit_state_.weight

    def _switched_off(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._without:
            scores = scores.copy()
            scores[:, list(self._without)] = -np.inf
        return scores

    def _refitted(self, parameters: dict[str, Any], without: tuple[int, ...]) -> Self:
        policy = copy.copy(self).set_params(**parameters)
        policy._without = without
        policy._drop_calibration()
        policy.apply_budget()
        return policy

    def _fit_on(self, *arguments: Any) -> Self:
        self.__dict__.pop("_without", None)
        return super()._fit_on(*arguments)
