"""Decisions at an exit: the logits of its prediction, and which samples leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator

from skexit.data import ExitArray
from skexit.data._walk import ExitReader, Memories, Memory, RowReader, row_numbers, walk
from skexit.heads import LogitsTransformer
from skexit.policies._most_confident import most_confident


class ExitDecision:
    """A fitted policy and the steps that give its logits, applied to one exit after another.

    The walk over cached rows, the live network and the ONNX loop all use these decisions. Fitted transformers with
    `exit_logits` compute the logits in turn, before the policy's own heads.

    Samples may reach `n_exits` exits. `is_used` tells for each whether samples may leave there, and `is_observed`
    whether its logits or features are read, possibly only for a later exit.
    """

    #: Order of the network's classes that policies need; None if the network has this order.
    _class_order: NDArray[np.intp] | None = None

    def __init__(self, policy: Any, transformers: Sequence[Any] = ()) -> None:
        self.policy: Any = policy
        self._transformers: list[Any] = [*transformers, *([] if policy.heads_ is None else [policy.heads_])]
        thresholds = policy.thresholds_
        # No sample passes an exit whose threshold is -inf.
        self.n_exits = int(np.argmax(np.isneginf(thresholds))) + 1
        self._thresholds: list[float] = thresholds.tolist()
        self.is_used = [threshold < np.inf for threshold in self._thresholds[: self.n_exits]]
        self._uses_most_confident = bool(getattr(policy, "use_most_confident", False))
        self.is_observed = self._find_observed()

    def start(self) -> Memories:
        """Empty memories for the first exit."""
        return Memories(Memory() for _ in range(len(self._transformers) + 1))

    def answer(self, k: int, logits: Any, features: Any, memories: Memories) -> Any:
        """Logits of the prediction of exit `k`, from the network's own; changes the memories in place."""
        if logits is not None and self._class_order is not None:
            logits = logits[:, self._class_order]
        for transformer, memory in zip(self._transformers, memories, strict=False):
            logits = transformer.exit_logits(k, logits, features, memory)
        return most_confident(logits, memories[-1]) if self._uses_most_confident else logits

    def answer_and_score(self, k: int, logits: Any, features: Any, memories: Memories) -> Any:
        """Scores of exit `k`, from the network's own logits."""
        return self._score(k, self.answer(k, logits, features, memories), features, memories)

    def leaves(self, k: int, logits: Any, features: Any, memories: Memories) -> Any:
        """Which samples leave at exit `k`, from the logits of its prediction; None if all leave or none."""
        if k == self.n_exits - 1:
            return None
        scores = self._score(k, logits, features, memories)
        return leaves_at(scores, self._thresholds[k]) if self.is_used[k] else None

    def departures(self, X: ExitArray) -> Iterator[tuple[int, Any, NDArray[np.float64]]]:
        """Walk over the rows of X in batches; yields the items of `departures_from`."""
        for batch in X.batches():
            yield from self.departures_from(RowReader(X, batch, self.uses_features))

    def departures_from(self, reader: ExitReader) -> Iterator[tuple[int, Any, NDArray[np.float64]]]:
        """Walk over the exits; yields those where samples stop, their rows, and the logits of their predictions."""
        exits = np.flatnonzero(self.is_observed).tolist()
        for k, rows, logits, leaves in walk(self.answer, reader, exits, leaves=self.leaves, memory=self.start()):
            if k == self.n_exits - 1:
                yield k, rows, logits
            elif leaves is not None:
                yield k, row_numbers(rows)[leaves], logits[leaves]

    def uses_features(self, k: int) -> bool:
        """Whether the prediction or score of exit `k`, or what it stores for later exits, depends on its features."""
        return self.policy.uses_features(k) or self.answer_uses_features(k)

    def answer_uses_features(self, k: int) -> bool:
        """Whether the prediction of exit `k`, or of a later exit, depends on its features."""
        return any(_uses_features(transformer, k) for transformer in self._transformers)

    def needed_before(self, k: int) -> range:
        """Exits before `k` that must be observed for the prediction and the decision at `k`."""
        return self._earlier_exits(k, scored=k < self.n_exits - 1)

    def _score(self, k: int, logits: Any, features: Any, memories: Memories) -> Any:
        return self.policy.score_exit(k, logits, features, memories[-1])

    def _find_observed(self) -> list[bool]:
        observed = set()
        for k in np.flatnonzero(self.is_used).tolist():
            observed.add(k)
            observed.update(self._earlier_exits(k, scored=k < self.n_exits - 1))
        # An exit that is observed for a later exit also needs the exits on which it depends.
        for k in sorted(observed, reverse=True):
            observed.update(self._earlier_exits(k, scored=k < self.n_exits - 1))
        return [k in observed for k in range(self.n_exits)]

    def _earlier_exits(self, k: int, *, scored: bool) -> range:
        """Exits before `k` on which its prediction depends, and its score if `scored`."""
        needed = [_earlier_exits(transformer, k) for transformer in self._transformers]
        if scored:
            needed.append(self.policy.earlier_exits(k))
        if self._uses_most_confident:
            needed.append(range(k))
        return max(needed, key=len, default=range(0))


def _uses_features(transformer: Any, k: int) -> bool:
    """Whether the logits of exit `k` depend on its features; true for heads that do not tell."""
    own = unfrozen(transformer)
    return own.uses_features(k) if isinstance(own, LogitsTransformer) else True


def _earlier_exits(transformer: Any, k: int) -> range:
    """Exits before `k` on which its logits depend; all for heads that do not tell."""
    own = unfrozen(transformer)
    return own.earlier_exits(k) if isinstance(own, LogitsTransformer) else range(k)


def leaves_at(scores: Any, threshold: Any) -> Any:
    """Which samples leave."""
    return ~stays_at(scores, threshold)


def stays_at(scores: Any, threshold: Any) -> Any:
    """Which samples stay. One with a NaN score leaves, and its prediction shows that logits were not finite."""
    return scores < threshold


def unfrozen(estimator: Any) -> Any:
    """The estimator in a FrozenEstimator, or the estimator itself."""
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator


def gives_logits(heads: Any) -> bool:
    """Whether heads change the logits of an exit; true for heads that do not tell."""
    return heads is not None and not (
        isinstance(heads, LogitsTransformer) and hasattr(heads, "layout_") and not [*heads.new_logits()]
    )
