"""Policies that learn in several calls."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state

from skexit._sklearn import _fit_context
from skexit._validation import validate_partial_data
from skexit.arrays import ExitArray
from skexit.heads import ExitHeads
from skexit.incremental import PartialFit
from skexit.policies.base import BudgetedPolicy
from skexit.policies.recall import recall

Floats = NDArray[np.float64]

#: Share of the rows that networks do not learn from.
_HELD_OUT = 0.1


class IncrementalPolicy(BudgetedPolicy):
    """A policy with ``partial_fit``.

    Its ``__init__`` also has the parameter `random_state`. A subclass writes `_learn_further` and
    `_conclude`.
    """

    random_state: Any
    _fitting_state: PartialFit | None = None

    @abstractmethod
    def _learn_further(
        self,
        X: ExitArray,
        labels: NDArray[np.int64],
        weight: Floats,
        training_rows: NDArray[np.int64],
        state: PartialFit,
    ) -> PartialFit:
        """Learn from a batch with logits at every exit; networks learn from the training rows only."""

    @abstractmethod
    def _conclude(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, is_held_out: NDArray[np.bool_]
    ) -> None:
        """Set what follows from the networks and a sample of all rows so far, thresholds among it."""

    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(
        self, X: Any, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Go on learning from a batch of rows, of which none needs to be kept.

        A call takes one pass of gradient steps, with Adam's state from the last call, at a learning rate
        that falls as one over the square root of the steps; networks are the average over the steps.
        A tenth of the rows, always the same, trains no network. Thresholds meet the budget on a random
        sample of all rows so far: on all of them up to 10,000 rows or 16 million values, and then on so
        many, so that the mean cost of all rows is within a few standard errors of the budget.

        ``fit`` forgets what was learned in calls, and a call after ``fit`` begins anew, for ``fit`` keeps
        nothing to go on from. An earlier calibration is dropped.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits, in batches of at least some hundred rows. Where an exit
            has no logits, `heads` learn in the same way, from each batch after they gave it its logits;
            it is better to give them trained, in a :class:`sklearn.frozen.FrozenEstimator`.
        y : array-like of shape (n_samples,)
            Class labels.
        classes : array-like of shape (n_classes,), default=None
            All classes that will come. Needed in the first call, unless the layout of X has them.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; all count alike by default.

        Returns
        -------
        self : policy
            The policy, which has learned from these rows, too.

        Raises
        ------
        ValueError
            If X does not fit its layout or that of the first call, is not finite, y has an unknown
            class, classes are missing in the first call or others than in it, or `heads` cannot learn
            in several calls.
        """
        is_first = self._fitting_state is None
        exits, self.classes_, labels, weight = validate_partial_data(
            self, X, y, classes, sample_weight, is_first=is_first, needs_classes=True
        )
        state = self._fitting_state or PartialFit.start(check_random_state(self.random_state))
        state = state.next_call(weight)
        with_logits = self._train_heads_further(exits, labels, weight, is_first)
        self.layout_ = with_logits.layout
        self.costs_ = self.layout_.cost_fractions
        self._drop_calibration()
        if self.budget is not None:
            self._check_budget(self.budget)
        keys = state.reservoir.keys_of(exits)
        reservoir = state.reservoir.add(exits, labels, weight, keys)
        training_rows = np.flatnonzero(keys >= _HELD_OUT)
        state = self._learn_further(self._recalled(with_logits), labels, weight, training_rows, state)
        sample = self._add_logits(reservoir.as_exits(exits.layout))
        self._conclude(self._recalled(sample), reservoir.labels, reservoir.weight, reservoir.keys < _HELD_OUT)
        self._fitting_state = replace(state, reservoir=reservoir)
        return self

    def _recalled(self, X: ExitArray) -> ExitArray:
        return recall(X) if getattr(self, "recall", False) else X

    def _train_heads_further(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, is_first: bool
    ) -> ExitArray:
        """X with logits, of heads that have not learned from it yet, but for those of the first call."""
        X = self._with_classes(X)
        if is_first:
            all_have_logits = all(X.layout.has_logits(k) for k in range(X.layout.n_exits))
            default = None if all_have_logits else ExitHeads(random_state=self.random_state)
            self.heads_ = default if self.heads is None else clone(self.heads)
        if self.heads_ is None:
            return X
        if isinstance(self.heads_, FrozenEstimator):
            return self.heads_.transform(X)
        if not hasattr(self.heads_, "partial_fit"):
            raise ValueError(
                f"heads={self.heads_!r} have no partial_fit. Pass ExitHeads, or heads that are fitted, in a "
                "FrozenEstimator."
            )
        before = copy.copy(self.heads_)
        self.heads_ = copy.copy(self.heads_).partial_fit(X, self.classes_[labels], sample_weight=weight)
        return (self.heads_ if is_first else before).transform(X)
