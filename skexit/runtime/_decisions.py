"""A fitted policy and what gives its logits, put to one exit of a live network after another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skexit.data import ExitLayout
from skexit.data._validation import order_of_classes
from skexit.heads import LogitsTransformer
from skexit.policies import ExitPolicy

if TYPE_CHECKING:
    import torch


#: Rounding, relative where scores are large. Thresholds of quotas lie 1e-9 below the score of a sample.
_ROUNDING = 3e-7


@dataclass
class Notes:
    """What earlier exits noted of the samples that are still running, by step of the decision."""

    memories: list[dict[str, Any]] = field(default_factory=list)

    def keep(self, rows: Any) -> Notes:
        """Notes of some of the samples only."""
        return self.map(lambda noted: noted[rows])

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Notes:
        """Notes of which a function has changed each tensor."""
        return Notes([{name: function(noted) for name, noted in memory.items()} for memory in self.memories])


class Decisions:
    """Which samples leave at an exit, and with which logits.

    Parameters
    ----------
    policy : fitted ExitPolicy or Pipeline
        A pipeline ends with the policy; its other steps give logits, as ExitHeads and ExitEnsemble do.
    heads : fitted transformer with `exit_logits`, default=None
        Gives logits before the pipeline's steps do.

    Attributes
    ----------
    steps : list
        What gives logits, one after the other, and the policy; as they were passed.
    policy : ExitPolicy
    layout : ExitLayout
        What the first step was fitted on.
    classes : array of shape (n_classes,)
        Class labels; on a device where they are numbers.
    temperatures : array of shape (n_exits,) or None
        By which an exit's logits are divided; None where all are 1.
    is_used : list of bool, one an exit
        Whether samples may leave there.
    is_observed : list of bool, one an exit
        Whether an exit's logits or features are looked at, be it for the sake of a later one.
    n_exits : int
        Exits that samples may reach.
    """

    def __init__(self, policy: Any, heads: Any = None) -> None:
        steps = [step for _, step in policy.steps] if isinstance(policy, Pipeline) else [policy]
        self.steps: list[Any] = [*([] if heads is None else [heads]), *steps]
        *transformers, self.policy = self.steps
        _check_steps(transformers, self.policy)
        self._transformers = transformers + ([] if self.policy.heads_ is None else [self.policy.heads_])
        first = transformers[0] if transformers else self.policy
        self.layout: ExitLayout = _unfrozen(first)._layout_in
        self._order = order_of_classes(self.layout.classes)
        self.classes: Any = self.policy.classes_
        self.temperatures: Any = self.policy.temperatures_ if (self.policy.temperatures_ != 1).any() else None
        thresholds = self.policy.thresholds_
        # Nobody passes an exit whose threshold is -inf.
        self.n_exits = int(np.argmax(np.isneginf(thresholds))) + 1
        self._thresholds = [_lowered(float(threshold)) for threshold in thresholds]
        self.is_used = [threshold < np.inf for threshold in self._thresholds[: self.n_exits]]
        self._recalls = bool(getattr(self.policy, "recall", False))
        self.is_observed = self._find_observed()

    def on(self, device: torch.device) -> Decisions:
        """The same decisions, with the networks and arrays of policy and heads on a device."""
        import torch

        from skexit.runtime._tensors import as_double, with_tensors

        decisions = copy.copy(self)
        decisions.policy = with_tensors(self.policy, device)
        decisions._transformers = with_tensors(self._transformers, device)
        if self.policy.classes_.dtype.kind in "biuf":
            decisions.classes = torch.as_tensor(self.policy.classes_, device=device)
        if self.temperatures is not None:
            decisions.temperatures = as_double(self.policy.temperatures_, device)
        return decisions

    def for_all_exits(self) -> Decisions:
        """The same, but all samples go to the last exit, and every exit is looked at."""
        decisions = copy.copy(self)
        decisions.n_exits = len(self.policy.thresholds_)
        decisions._thresholds = [np.inf] * decisions.n_exits
        decisions.is_used = decisions.is_observed = [True] * decisions.n_exits
        return decisions

    def start(self) -> Notes:
        """Notes before the first exit."""
        return Notes([{} for _ in range(len(self._transformers) + 1)])

    def answer(self, k: int, logits: Any, features: Any, notes: Notes) -> Any:
        """Logits with which exit `k` answers.

        Parameters
        ----------
        k : int
        logits : tensor of shape (n_samples, n_classes) or None
            The network's own.
        features : tensor of shape (n_samples, n_features) or None
        notes : Notes
            Changed in place.

        Returns
        -------
        tensor of shape (n_samples, n_classes)
        """
        if logits is not None and self._order is not None:
            logits = logits[:, self._order]
        for transformer, memory in zip(self._transformers, notes.memories, strict=False):
            logits = transformer.exit_logits(k, logits, features, memory)
        return self.policy._answer(k, logits, features, notes.memories[-1], None) if self._recalls else logits

    def leaves(self, k: int, logits: Any, features: Any, notes: Notes) -> Any:
        """Which samples leave at exit `k`, a tensor of bool; None where no decision is made.

        Parameters
        ----------
        k : int
        logits : tensor of shape (n_samples, n_classes)
            What `answer` gave.
        features : tensor of shape (n_samples, n_features) or None
        notes : Notes
            Changed in place.

        Returns
        -------
        tensor of shape (n_samples,) or None
        """
        if k == self.n_exits - 1:
            return None
        scores = self.policy._score_exit(k, logits, features, notes.memories[-1])
        return scores >= self._thresholds[k] if self.is_used[k] else None

    def needs_features(self, k: int) -> bool:
        """Whether anything looks at the features of exit `k`."""
        return self.policy._needs_features or any(_looks_at_features(step, k) for step in self._transformers)

    def _find_observed(self) -> list[bool]:
        observed = set()
        for k in np.flatnonzero(self.is_used).tolist():
            observed.add(k)
            observed.update(self._earlier_exits(k, scored=k < self.n_exits - 1))
        # What an exit needs that is looked at for a later one is looked at, too.
        for k in sorted(observed, reverse=True):
            observed.update(self._earlier_exits(k, scored=True))
        return [k in observed for k in range(self.n_exits)]

    def _earlier_exits(self, k: int, *, scored: bool) -> range:
        """Exits before `k` that its answer, and its score, depend on."""
        needed = [_exits_before(transformer, k) for transformer in self._transformers]
        if scored:
            needed.append(self.policy._earlier_exits(k))
        if self._recalls:
            needed.append(range(k))
        return max(needed, key=len, default=range(0))


def _check_steps(transformers: Sequence[Any], policy: Any) -> None:
    if not isinstance(policy, ExitPolicy):
        raise ValueError(f"policy={policy!r} must be an exit policy, or a pipeline that ends with one.")
    for step in (*transformers, policy):
        check_is_fitted(step)
    for step in transformers:
        if not hasattr(step, "exit_logits"):
            raise ValueError(
                f"{type(step).__name__} has no exit_logits, so that it cannot be put to one exit after another. Steps "
                "before a policy may be ExitHeads and ExitEnsemble."
            )


def _looks_at_features(transformer: Any, k: int) -> bool:
    """Whether the logits of exit `k` depend on its features; heads of other makers do not say."""
    own = _unfrozen(transformer)
    return own._needs_features(k) if isinstance(own, LogitsTransformer) else True


def _exits_before(transformer: Any, k: int) -> range:
    """Exits before `k` on which its logits depend; heads of other makers do not say."""
    own = _unfrozen(transformer)
    return own._earlier_exits(k) if isinstance(own, LogitsTransformer) else range(k)


def _lowered(threshold: float) -> float:
    """A threshold that a score still passes after the rounding of another batch; infinite ones stay as they are."""
    return threshold - _ROUNDING * max(1.0, abs(threshold)) if np.isfinite(threshold) else threshold


def _unfrozen(estimator: Any) -> Any:
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator
