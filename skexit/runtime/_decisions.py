"""Decisions of a fitted policy at the exits of a live network."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skexit.policies import ExitPolicy
from skexit.policies._access import steps_of
from skexit.policies._steps import NetworkDecision

if TYPE_CHECKING:
    import torch


class Decisions(NetworkDecision):
    """Decides which samples leave at an exit of a live network, and computes the logits of their predictions.

    `policy` is a policy or a pipeline that ends with one. The first steps of a pipeline may be ExitTransformers; the
    other steps before the policy compute logits, as ExitHeads and ExitEnsemble do. `heads` computes logits before the
    steps of the pipeline, and has a method `exit_logits`.

    `steps` are the steps that compute logits, in their order, and the policy. If `classes` are numbers, `on` makes them
    a tensor. The logits of an exit are divided by its temperature; `temperatures` is None if all are 1.
    """

    def __init__(self, policy: Any, heads: Any = None) -> None:
        given = [*([] if heads is None else [heads]), *steps_of(policy)]
        self.steps: list[Any] = [copy.copy(step) for step in given]  # a later fit must not change some of them
        last = self.steps[-1]
        if not isinstance(last, ExitPolicy):
            raise ValueError(f"policy={policy!r} must be a fitted exit policy, or a pipeline that ends with one.")
        for step in self.steps:
            check_is_fitted(step)
        super().__init__(self.steps)
        self.classes: Any = last.classes_
        self.temperatures: Any = last.temperatures_ if (last.temperatures_ != 1).any() else None
        self.recorded: dict[int, Any] = {}
        """Recorded decisions by exit; None if torch cannot record the decision of an exit."""

    def on(self, device: torch.device) -> Decisions:
        """The same decisions, with networks and arrays of policy and heads as tensors on a device."""
        import torch

        from skexit.runtime._tensors import as_double, with_tensors

        decisions = copy.copy(self)
        decisions.policy = with_tensors(self.policy, device)
        decisions._transformers = with_tensors(self._transformers, device)
        if self.policy.classes_.dtype.kind in "biuf":
            decisions.classes = torch.as_tensor(self.policy.classes_, device=device)
        if self.temperatures is not None:
            decisions.temperatures = as_double(self.policy.temperatures_, device)
        # Recordings and compiled graphs refer to these tensors, so `set_thresholds` changes them in place.
        with torch.inference_mode(False):
            thresholds = [torch.tensor(float(value), dtype=torch.float64, device=device) for value in self._thresholds]
        decisions._thresholds = cast(Any, thresholds)
        return decisions

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """Thresholds in use, of shape (n_exits,)."""
        return np.array([float(value) for value in self._thresholds])

    def set_thresholds(self, thresholds: NDArray[np.float64]) -> None:
        """Change the thresholds of the exits in use, except the last exit."""
        for k in np.flatnonzero(self.is_used[: self.n_exits - 1]):
            cast(Any, self._thresholds[k]).fill_(float(thresholds[k]))

    def with_thresholds(self, thresholds: NDArray[np.float64]) -> Decisions:
        """The same decisions with other thresholds."""
        policy = copy.copy(self.policy)
        policy.thresholds_ = thresholds
        decisions = copy.copy(self)
        decisions.steps = [*self.steps[:-1], policy]
        NetworkDecision.__init__(decisions, decisions.steps)
        return decisions

    def for_all_exits(self) -> Decisions:
        """The same decisions at every exit, but all samples continue to the last exit."""
        decisions = copy.copy(self)
        decisions.n_exits = len(self.policy.thresholds_)
        decisions._thresholds = [np.inf] * decisions.n_exits
        decisions.is_used = decisions.is_observed = [True] * decisions.n_exits
        return decisions

    def __getstate__(self) -> dict[str, Any]:
        # A copy may decide differently, and pickle cannot save recordings.
        return {**self.__dict__, "recorded": {}}
