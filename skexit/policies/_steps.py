"""Decisions at one exit at a time, for loops that users write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from skexit.data import ExitLayout
from skexit.data._sorted_classes import order_of_classes
from skexit.data._walk import Memories
from skexit.heads import ExitTransformer
from skexit.policies._decision import ExitDecision, unfrozen
from skexit.uncertainty import softmax
from skexit.utils._array_api import array_namespace, as_like, in_double


class NetworkDecision(ExitDecision):
    """Decisions on the network's own logits, in the order of its classes, and with the rounding of the cache.

    `steps` are fitted: steps that give logits, in their order, and then the policy. Before them, there may be a
    cascade, whose models have computed the logits already. `layout` is that of the network's outputs.
    """

    def __init__(self, steps: Sequence[Any]) -> None:
        *transformers, policy = steps
        if transformers and getattr(unfrozen(transformers[0]), "_makes_exits", False):
            del transformers[0]
        self.of_features: list[ExitTransformer] = []
        while transformers and isinstance(unfrozen(transformers[0]), ExitTransformer):
            self.of_features.append(unfrozen(transformers.pop(0)))
        for step in transformers:
            _check_gives_logits(step)
        super().__init__(policy, transformers)
        self.layout: ExitLayout = unfrozen(steps[0])._layout_in
        self._class_order = order_of_classes(self.layout.classes)
        self._in_half = unfrozen(steps[0])._dtype_in == "float16"

    def answer(self, k: int, logits: Any, features: Any, memories: Memories) -> Any:
        return super().answer(k, self._as_cached(logits), features, memories)

    def _as_cached(self, block: Any) -> Any:
        """Logits or features, rounded as in the cache that was fitted."""
        if block is None or not self._in_half:
            return block
        xp = array_namespace(block)
        return xp.astype(xp.astype(block, xp.float16), block.dtype)

    def transform_features(self, k: int, features: Any) -> Any:
        """Features of exit `k`, rounded as in the cache, after the ExitTransformers, which work on the CPU."""
        features = self._as_cached(features)
        if features is None or not self.of_features:
            return features
        array = features.numpy(force=True) if hasattr(features, "numpy") else features
        for transformer in self.of_features:
            array = transformer.exit_features(k, array)
        return as_like(array, features)


def _check_gives_logits(step: Any) -> None:
    if isinstance(unfrozen(step), ExitTransformer):
        raise ValueError(
            f"{step!r} comes after a step that gives logits. At one exit at a time, ExitTransformers can only be "
            "applied before heads: put it first in the pipeline, and fit the pipeline again."
        )
    if not hasattr(step, "exit_logits"):
        raise ValueError(
            f"{type(step).__name__} has no exit_logits, so that it cannot be applied to one exit at a time. Steps "
            "before a policy may be ExitHeads and ExitEnsemble. Put a scaler or the like first, in ExitTransformer."
        )


class ExitState:
    """Data of the samples that are still running, with one row per sample.

    ``decide`` returns it, and takes it at the next exit. ``state[kept]`` keeps only some of the samples, for instance
    if one was cancelled; `kept` is a mask, a slice, or row numbers, as for an array.

    Parameters
    ----------
    rows : array of shape (n_samples,) of int
        Number of each sample among the samples of the first call.
    memories : Memories
        Values that each step that gives logits, and the policy, stored at earlier exits.
    exits : tuple of int, default=()
        The exits at which these values were stored.
    """

    def __init__(self, rows: Any, memories: Memories, exits: tuple[int, ...] = ()) -> None:
        self.rows = rows
        self._memories = memories
        self._exits = exits

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, kept: Any) -> ExitState:
        return ExitState(self.rows[kept], self._memories.keep(kept), self._exits)

    def __repr__(self) -> str:
        return f"ExitState({len(self)} samples, after the exits {list(self._exits)})"


class _LeavesAndState(NamedTuple):
    leaves: Any
    state: ExitState


class ExitStep(_LeavesAndState):
    """Result of ``decide`` at an exit; unpacks to `leaves` and `state`.

    Arrays have the type of the arrays that were passed.

    Parameters
    ----------
    leaves : array of shape (n_samples,) of bool
        Which of the passed samples leave at this exit.
    state : ExitState
        State of the other samples, in their order.

    Attributes
    ----------
    logits : array of shape (n_samples, n_classes) or None
        Logits of the exit's prediction, in the order of ``classes_``. None at an exit on which no decision depends.
    probabilities : array of shape (n_samples, n_classes) or None
        Probabilities from these logits, divided by the temperature of the exit.
    """

    logits: Any = None
    _temperature: float = 1.0

    @property
    def probabilities(self) -> Any:
        """Class probabilities of the exit's prediction."""
        return None if self.logits is None else softmax(self.logits / self._temperature)


def decide(steps: Sequence[Any], k: int, logits: Any, features: Any, state: ExitState | None) -> ExitStep:
    """Decide at exit `k` with fitted steps: steps that give logits, and then a policy."""
    decision = NetworkDecision(steps)
    k = _check_exit(decision, k)
    is_observed = k < decision.n_exits and decision.is_observed[k]
    logits = _check_block(decision.layout.n_logits[k], k, "logits", logits, is_needed=is_observed)
    needs_features = is_observed and decision.uses_features(k)
    features = _check_block(decision.layout.n_features[k], k, "features", features, is_needed=needs_features)
    state = _check_state(decision, k, state, [block for block in (logits, features) if block is not None])
    none_leave = array_namespace(state.rows).zeros_like(state.rows, dtype=bool)
    if not is_observed or not len(state):
        return ExitStep(none_leave, state)
    _check_order(decision, k, state)
    memories = state._memories.map(lambda stored: stored)  # a copy, so that the passed state can be used again
    features = decision.transform_features(k, features) if needs_features else None
    answer = decision.answer(k, logits, features, memories)
    leaves = decision.leaves(k, answer, features, memories)
    if leaves is None:
        leaves = ~none_leave if k == decision.n_exits - 1 else none_leave
    step = ExitStep(leaves, ExitState(state.rows, memories, (*state._exits, k))[~leaves])
    step.logits, step._temperature = answer, float(decision.policy.temperatures_[k])
    return step


def _check_exit(decision: NetworkDecision, k: Any) -> int:
    n_exits = decision.layout.n_exits
    if not isinstance(k, int | np.integer) or not 0 <= k < n_exits:
        raise ValueError(f"k={k!r} must be the number of an exit, 0 to {n_exits - 1}.")
    return int(k)


def _check_block(width: int, k: int, part: str, block: Any, *, is_needed: bool) -> Any:
    """Logits or features in double precision; None if there are none."""
    if block is None:
        if width and is_needed:
            raise ValueError(
                f"{part}=None at exit {k}, but the policy needs {width} {part} there. Pass the {part} of the exit."
            )
        return None
    checked = in_double(block)
    if checked.ndim != 2 or checked.shape[1] != width:
        expected = f"pass (n_samples, {width}), one row for a single sample" if width else f"leave out {part}"
        raise ValueError(f"{part} of exit {k} have the shape {tuple(checked.shape)}; to match the policy, {expected}.")
    xp = array_namespace(checked)
    if is_needed and not bool(xp.all(xp.isfinite(checked))):
        raise _not_finite(f"{part} of exit {k}")
    return checked if width else None


def check_answers(probabilities: Any, exits: Any, rows: Any) -> None:
    """Raise a ValueError if probabilities of predictions are NaN, which means that logits are not finite.

    `exits` are the exits of the predictions, and `rows` the rows of the inputs. Waits once for the device.
    """
    xp = array_namespace(probabilities)
    if math.isnan(float(xp.sum(probabilities))):
        first = int(xp.nonzero(xp.any(xp.isnan(probabilities), axis=1))[0][0])
        raise _not_finite(f"logits of exit {int(exits[first])}, for row {int(rows[first])} of the inputs,")


def _not_finite(what: str) -> ValueError:
    return ValueError(
        f"{what} contain NaN or infinity. Leave out samples with NaN in the inputs. If the inputs have none, find the "
        "overflow in the network. If the network masks classes, use large negative numbers such as -1e4."
    )


def _check_state(decision: NetworkDecision, k: int, state: ExitState | None, blocks: list[Any]) -> ExitState:
    """The state, or a new state before the first exit; raises a ValueError if its samples are not those of blocks."""
    if state is None:
        if not blocks:
            raise ValueError(f"pass logits or features at exit {k}: without a state, the number of samples is unknown.")
        rows = array_namespace(blocks[0]).arange(len(blocks[0]), device=device(blocks[0]))
        return _check_state(decision, k, ExitState(rows, decision.start()), blocks)
    if not isinstance(state, ExitState) or len(state._memories) != len(decision.start()):
        raise ValueError(f"state={state!r} must be None, or the state that decide of this policy returned before.")
    for block in blocks:
        if len(block) != len(state):
            raise ValueError(
                f"exit {k} was given {len(block)} rows, but {len(state)} samples are running. Pass the rows of samples "
                "that stayed, block[~leaves], in their order; state[kept] removes other samples."
            )
    if len(state) and k >= decision.n_exits:
        raise ValueError(
            f"k={k}, but no sample reaches this exit: all stop at exit {decision.n_exits - 1} at the latest. Call "
            "decide only up to that exit."
        )
    return state


def _check_order(decision: NetworkDecision, k: int, state: ExitState) -> None:
    """Raise a ValueError unless the state comes from all earlier exits on which exit `k` depends."""
    if state._exits and k <= state._exits[-1]:
        raise ValueError(f"k={k}, but the state comes from exit {state._exits[-1]}. Pass the state before exit {k}.")
    missing = sorted({*decision.needed_before(k)} - {*state._exits})
    if missing:
        raise ValueError(
            f"exit {k} depends on exits {missing}, at which decide was not called. Call decide at each exit in turn, "
            "and pass the state that it returns."
        )
