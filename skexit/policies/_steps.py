"""One exit at a time, for loops that are the user's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from skexit.data import ExitLayout
from skexit.data._validation import order_of_classes
from skexit.data._walk import Memories
from skexit.heads import ExitTransformer
from skexit.policies._decision import ExitDecision, unfrozen
from skexit.uncertainty import softmax
from skexit.utils._array_api import array_namespace, as_like, in_double


class NetworkDecision(ExitDecision):
    """Decisions on the network's own logits, in the order of its classes, and of as many digits as the cache has.

    `steps` are fitted: what gives logits, one after the other, and the policy; before them perhaps a cascade, whose
    models have given the logits already. `layout` is that of the network's outputs.
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
        """Logits or features as the cache that was fitted would have stored them."""
        if block is None or not self._in_half:
            return block
        xp = array_namespace(block)
        return xp.astype(xp.astype(block, xp.float16), block.dtype)

    def transform_features(self, k: int, features: Any) -> Any:
        """Features of exit `k` as a cache has them, after the ExitTransformers, which work on the CPU."""
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
            f"{step!r} comes after a step that gives logits. One exit at a time, ExitTransformers are applied before "
            "heads only: put it first in the pipeline, and fit the pipeline again."
        )
    if not hasattr(step, "exit_logits"):
        raise ValueError(
            f"{type(step).__name__} has no exit_logits, so that it cannot be put to one exit after another. Steps "
            "before a policy may be ExitHeads and ExitEnsemble, after a scaler or the like in ExitTransformer."
        )


class ExitState:
    """What earlier exits noted about the samples that are still running, with a row for each.

    ``decide`` gives it, and takes it at the next exit. ``state[kept]`` goes on with some of the samples only, for
    instance where one was cancelled; `kept` is a mask, a slice, or row numbers, as for an array.

    Parameters
    ----------
    rows : array of shape (n_samples,) of int
        Which of the samples of the first call each one is.
    memories : Memories
        Notes of each step that gives logits, and of the policy.
    exits : tuple of int, default=()
        The exits that made the notes.
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
    """What ``decide`` gives at an exit; unpacks to `leaves` and `state`.

    Arrays are of the kind that was passed.

    Parameters
    ----------
    leaves : array of shape (n_samples,) of bool
        Which of the samples that were passed leave at this exit.
    state : ExitState
        Of the others, in their order.

    Attributes
    ----------
    logits : array of shape (n_samples, n_classes) or None
        With which the exit answers, in the order of ``classes_``. None at an exit that no decision depends on.
    probabilities : array of shape (n_samples, n_classes) or None
        Of these logits, with the temperature of the exit.
    """

    logits: Any = None
    _temperature: float = 1.0

    @property
    def probabilities(self) -> Any:
        """Class probabilities with which the exit answers."""
        return None if self.logits is None else softmax(self.logits / self._temperature)


def decide(steps: Sequence[Any], k: int, logits: Any, features: Any, state: ExitState | None) -> ExitStep:
    """Decide at exit `k` by fitted steps of which the last is a policy; the others give logits."""
    decision = NetworkDecision(steps)
    k = _check_exit(decision, k)
    is_observed = k < decision.n_exits and decision.is_observed[k]
    logits = _check_block(decision.layout.n_logits[k], k, "logits", logits, is_needed=is_observed)
    needs_features = is_observed and decision.uses_features(k)
    features = _check_block(decision.layout.n_features[k], k, "features", features, is_needed=needs_features)
    state = _check_state(decision, k, state, [block for block in (logits, features) if block is not None])
    nobody = array_namespace(state.rows).zeros_like(state.rows, dtype=bool)
    if not is_observed or not len(state):
        return ExitStep(nobody, state)
    _check_order(decision, k, state)
    memories = state._memories.map(lambda noted: noted)  # the state that was passed can be passed again
    features = decision.transform_features(k, features) if needs_features else None
    answer = decision.answer(k, logits, features, memories)
    leaves = decision.leaves(k, answer, features, memories)
    if leaves is None:
        leaves = ~nobody if k == decision.n_exits - 1 else nobody
    step = ExitStep(leaves, ExitState(state.rows, memories, (*state._exits, k))[~leaves])
    step.logits, step._temperature = answer, float(decision.policy.temperatures_[k])
    return step


def _check_exit(decision: NetworkDecision, k: Any) -> int:
    n_exits = decision.layout.n_exits
    if not isinstance(k, int | np.integer) or not 0 <= k < n_exits:
        raise ValueError(f"k={k!r} must be the number of an exit, 0 to {n_exits - 1}.")
    return int(k)


def _check_block(width: int, k: int, part: str, block: Any, *, is_needed: bool) -> Any:
    """Logits or features in double precision; None where there are none."""
    if block is None:
        if width and is_needed:
            raise ValueError(
                f"{part}=None at exit {k}, where the policy needs its {width} {part}. Pass those of the exit."
            )
        return None
    checked = in_double(block)
    if checked.ndim != 2 or checked.shape[1] != width:
        expected = f"pass (n_samples, {width}), one row of a single sample" if width else f"leave out {part}"
        raise ValueError(
            f"{part} of exit {k} have the shape {tuple(checked.shape)}; as the policy was fitted, {expected}."
        )
    xp = array_namespace(checked)
    if is_needed and not bool(xp.all(xp.isfinite(checked))):
        raise _not_finite(f"{part} of exit {k}")
    return checked if width else None


def check_answers(probabilities: Any, exits: Any, rows: Any) -> None:
    """Raise a ValueError if probabilities of answers are NaN, as those of logits that are not finite.

    `exits` are those that answered, and `rows` those of the inputs. Waits once for the device.
    """
    xp = array_namespace(probabilities)
    if math.isnan(float(xp.sum(probabilities))):
        first = int(xp.nonzero(xp.any(xp.isnan(probabilities), axis=1))[0][0])
        raise _not_finite(f"logits of exit {int(exits[first])}, for row {int(rows[first])} of the inputs,")


def _not_finite(what: str) -> ValueError:
    return ValueError(
        f"{what} contain NaN or infinity. Leave such samples out, or look for an overflow in the network, which must "
        "mask classes by large negative numbers such as -1e4."
    )


def _check_state(decision: NetworkDecision, k: int, state: ExitState | None, blocks: list[Any]) -> ExitState:
    """The state, or that from before the first exit; its samples must be those of the blocks."""
    if state is None:
        if not blocks:
            raise ValueError(f"pass logits or features at exit {k}: without a state, nothing says how many run there.")
        rows = array_namespace(blocks[0]).arange(len(blocks[0]), device=device(blocks[0]))
        return _check_state(decision, k, ExitState(rows, decision.start()), blocks)
    if not isinstance(state, ExitState) or len(state._memories) != len(decision.start()):
        raise ValueError(f"state={state!r} must be what decide of the same policy gave at the exit before, or None.")
    for block in blocks:
        if len(block) != len(state):
            raise ValueError(
                f"exit {k} was given {len(block)} rows, but {len(state)} samples are running. Pass the rows of those "
                "that stayed, block[~leaves], in their order; state[kept] drops other samples."
            )
    if len(state) and k >= decision.n_exits:
        raise ValueError(
            f"k={k}, but no sample goes there: all stop at exit {decision.n_exits - 1} at the latest. Call "
            "decide up to there."
        )
    return state


def _check_order(decision: NetworkDecision, k: int, state: ExitState) -> None:
    """Raise a ValueError unless the state is from the exits before `k` that matter there."""
    if state._exits and k <= state._exits[-1]:
        raise ValueError(f"k={k}, but the state is from after exit {state._exits[-1]}. Pass that from before exit {k}.")
    missing = sorted({*decision.needed_before(k)} - {*state._exits})
    if missing:
        raise ValueError(
            f"exit {k} needs what exits {missing} note, which the state does not have. Call decide at each exit in "
            "turn, and pass the state that it gives."
        )
