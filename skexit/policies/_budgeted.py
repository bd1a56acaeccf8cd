"""Policies whose thresholds follow from a budget."""

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
from skexit.policies._base import ExitPolicy
from skexit.policies._quotas import quota_thresholds
from skexit.utils._checks import at_least
from skexit.utils._module_names import set_module


@set_module("skexit.persistence")
@dataclass(frozen=True)
class FitState:
    """What `with_budget` needs of the fitting data: scores, of shape (n_samples, n_exits), and weights of the rows."""

    scores: NDArray[np.float64]
    weight: NDArray[np.float64]


class BudgetedPolicy(ExitPolicy):
    """A policy whose thresholds follow from its scores on the fitting data and a budget.

    Its ``__init__`` also has the parameter `budget`. A subclass writes `score_exit`. One that learns
    writes `fit_policy`, which ends with `fit_thresholds`; one that does not share samples out
    geometrically writes `choose_thresholds`.

    What ``with_budget`` needs of the fitting data is in ``fit_state_``.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ExitPolicy._parameter_constraints,
        "budget": [Real, None],
    }

    budget: Any
    fit_state_: Any

    #: Exits that are switched off, whatever the budget.
    _without: tuple[int, ...] = ()

    def fit_policy(self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        self.fit_thresholds(X, weight)

    def choose_thresholds(self, scores: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Thresholds that meet `budget`; by default by geometric shares of the samples.

        Parameters
        ----------
        scores : ndarray of shape (n_samples, n_exits)
            Scores of the rows that were fitted, or of those that ``meet_budget`` was given.
        weight : ndarray of shape (n_samples,)
            Weights of these rows.

        Returns
        -------
        ndarray of shape (n_exits,)
            ``inf`` where nobody stops; ``-inf`` at the last exit.
        """
        return quota_thresholds(scores, self.costs_, self.budget, sample_weight=weight)

    def fit_thresholds(self, X: ExitArray, weight: NDArray[np.float64]) -> None:
        """Score the rows, keep the scores as ``fit_state_``, and set ``thresholds_``.

        Parameters
        ----------
        X : ExitArray of shape (n_samples, n_columns)
            As in `fit_policy`.
        weight : ndarray of shape (n_samples,)
            Weights of these rows.
        """
        self.fit_state_ = FitState(self.fitting_scores(X), weight)
        self.apply_budget()

    def apply_budget(self) -> None:
        """Set ``thresholds_`` for `budget` from ``fit_state_``; by default by `choose_thresholds`."""
        self.set_thresholds(self.fitted_scores(), self.fit_state_.weight)

    def set_thresholds(self, scores: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        """Set ``thresholds_`` by `choose_thresholds`, and ``exit_distribution_``.

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

        The copy is not calibrated, as other samples leave at its exits.

        Parameters
        ----------
        budget : float
            Mean cost of a sample on the data that was fitted, a fraction in (0, 1] of the network's cost.

        Returns
        -------
        BudgetedPolicy
            The same kind of policy.

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
                "without it. Call with_budget on the policy that was fitted, and ship the copy that it gives."
            )
        self._check_budget_of_exits(budget)
        return self._refitted({"budget": budget}, self._without)

    def meet_budget(self, X: Any) -> Self:
        """A fitted copy whose thresholds meet the budget on other rows, which need no labels.

        For when inputs have changed: harder ones leave later and overspend. Scores stay as they are, and so does all
        that labels decide, such as the exit beyond which :class:`~skexit.OptimalStoppingPolicy` found more compute to
        lower accuracy. ``with_budget`` of the copy goes back to the rows of ``fit``: call ``meet_budget`` after it.
        The copy is not calibrated, as other samples leave at its exits.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Rows as they come now; some hundred or more.

        Returns
        -------
        BudgetedPolicy
            The same kind of policy. Its ``exit_distribution_`` is that of these rows.

        Raises
        ------
        ValueError
            If X does not fit the layout of the policy, the policy has no budget but a price or a threshold, or it was
            made by ``without_fit_state`` and needs what that leaves out.
        """
        check_is_fitted(self)
        if self.budget is None:
            raise ValueError(
                f"this {type(self).__name__} has budget=None, and so no budget to meet. Fit it with a budget, or call "
                "with_budget first."
            )
        exits = self._check_new(X)
        scores = np.zeros((len(exits), len(self.costs_)))  # at the last exit nothing is decided
        if scores.shape[1] > 1:
            scores[:, :-1] = self._scores(exits, range(scores.shape[1] - 1))
        policy = copy.copy(self)
        policy._drop_calibration()
        policy.set_thresholds(scores, np.ones(len(scores)))
        return policy

    def _check_budget_of_exits(self, budget: float) -> None:
        cheapest = next(cost for k, cost in enumerate(self.costs_) if k not in self._without)
        if self._without and budget < cheapest:
            raise ValueError(
                f"budget={budget} does not pay for the first exit that is not switched off, whose cost is "
                f"{at_least(cheapest)}. Give at least this, or call with_budget on the policy with all exits, and "
                "pruned on what it gives."
            )

    def _without_exits(self, exits: Iterable[int]) -> Self:
        """A fitted copy in which nobody leaves at some early exits, for the same budget; it is not calibrated."""
        return self._refitted({}, tuple(exits))

    def fitted_scores(self) -> NDArray[np.float64]:
        """Scores of the rows that were fitted, from ``fit_state_``; by default those that it holds.

        Returns
        -------
        ndarray of shape (n_samples, n_exits)
            As ``score_exit`` gives them for the present budget.
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
