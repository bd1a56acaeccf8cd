"""What happens at an exit, recorded once as a function of tensors that runs without Python."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from skexit.data._walk import Memories
from skexit.runtime._decisions import Decisions

#: Methods by which Python looks at the values of a tensor; what it does next would not be recorded.
_READS = {
    *(torch.Tensor.__array__, torch.Tensor.__dlpack__, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.item),
    *(torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.__int__, torch.Tensor.__index__),
    *(torch.Tensor.__contains__, torch.Tensor.__iter__),
}
#: Rows with which a decision is recorded, and others with which the recording must give the same.
_N_RECORDED, _N_COMPARED = 2, (1, 3)


def decide(decisions: Decisions, k: int, logits: Any, features: Any, notes: Memories) -> tuple[Any, Any]:
    """Logits with which exit `k` answers, and who leaves; None where all leave or none. Changes the notes in place.

    The decision is recorded when it is first made. One that reads the values of tensors, as an estimator that works on
    NumPy arrays does, runs as it is.
    """
    if k not in decisions.recorded:
        decisions.recorded[k] = _record(decisions, k, logits, features, notes)
    recorded = decisions.recorded[k]
    if recorded is None:
        return _decide(decisions, k, logits, features, notes)
    return cast(Recorded, recorded)(logits, features, notes)


class FlatDecision:
    """What happens at exit `k` as a function of tensors alone, and what these are.

    It takes logits and features as far as there are any, and notes; it gives logits, who leaves where some may, and
    notes. `taken` and `given` are the names of the notes before and after the exit, by step.
    """

    def __init__(self, decisions: Decisions, k: int, logits: Any, features: Any, notes: Memories) -> None:
        self._decisions, self._k = decisions, k
        self._has = [part is not None for part in (logits, features)]
        self._splits = k < decisions.n_exits - 1 and decisions.is_used[k]
        self._taken, self._given = _names(notes), [[""]]

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = iter(inputs)
        logits, features = (next(values) if has_part else None for has_part in self._has)
        notes = self._decisions.start()
        for memory, names in zip(notes, self._taken, strict=True):
            memory.update((name, next(values)) for name in names)
        answer, leaves = _decide(self._decisions, self._k, logits, features, notes)
        self._given = _names(notes)
        return (answer, *([leaves] if self._splits else []), *_noted(notes, self._given))

    def noted(self, notes: Memories) -> list[torch.Tensor]:
        """The notes that it takes."""
        return _noted(notes, self._taken)

    @property
    def n_notes(self) -> int:
        """How many notes it takes."""
        return sum(map(len, self._taken))

    @property
    def n_outputs(self) -> int:
        """How many tensors it gives."""
        return 1 + self._splits + sum(map(len, self._given))

    def unpack(self, outputs: Sequence[torch.Tensor], notes: Memories) -> tuple[Any, Any]:
        """Logits and who leaves, from what it gave; the notes are changed in place."""
        answer, *rest = outputs
        values = iter(rest)
        leaves = next(values) if self._splits else None
        for memory, names in zip(notes, self._given, strict=True):
            for name in names:
                memory[name] = next(values)
        return answer, leaves


@dataclass(frozen=True)
class Recorded:
    """A decision as TorchScript, with inputs of a few rows with which it was recorded."""

    function: Any
    flat: FlatDecision
    example: tuple[torch.Tensor, ...]

    def __call__(self, logits: Any, features: Any, notes: Memories) -> tuple[Any, Any]:
        with _as_recorded():
            outputs = self.function(*_present(logits, features), *self.flat.noted(notes))
        return self.flat.unpack(outputs, notes)

    def graph(self) -> fx.GraphModule:
        """The decision as a graph, for a compiler."""
        with torch.inference_mode(False), torch.no_grad():
            return make_fx(self.flat.__call__, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*self.example)


def _decide(decisions: Decisions, k: int, logits: Any, features: Any, notes: Memories) -> tuple[Any, Any]:
    answer = decisions.answer(k, logits, features, notes)
    return answer, decisions.leaves(k, answer, features, notes)


def _record(decisions: Decisions, k: int, logits: Any, features: Any, notes: Memories) -> Recorded | None:
    """The decision of exit `k`, or None where it cannot be recorded."""
    flat = FlatDecision(decisions, k, logits, features, notes)
    # Outside of inference mode, whose tensors cannot be recorded.
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = [*_present(logits, features), *flat.noted(notes)]
        example, *others = (_some_rows(inputs, n_rows) for n_rows in (_N_RECORDED, *_N_COMPARED))
        try:
            with _RefuseToRead():
                expected = [flat(*other) for other in others]
            function = torch.jit.trace(flat.__call__, example, check_trace=False)
            _simplify(function.graph)
            with _as_recorded():
                found = [function(*other) for other in others]
        except Exception:  # whatever torch cannot record
            return None
    same = all(_is_same(*pair) for pair in zip(sum(found, ()), sum(expected, ()), strict=True))
    return Recorded(function, flat, example) if same else None


def _simplify(graph: Any) -> None:
    """Compute once what depends on no input, and what is computed twice."""
    torch._C._jit_pass_inline(graph)
    torch._C._jit_pass_constant_propagation(graph)
    torch._C._jit_pass_cse(graph)
    torch._C._jit_pass_dce(graph)


def _as_recorded() -> Any:
    """Without optimisations, which would take the first runs, and round in another way."""
    return torch.jit.optimized_execution(False)  # type: ignore[attr-defined]


def _present(*parts: Any) -> list[torch.Tensor]:
    return [part for part in parts if part is not None]


def _noted(notes: Memories, names: list[list[str]]) -> list[torch.Tensor]:
    return [memory[name] for memory, own in zip(notes, names, strict=True) for name in own]


def _names(notes: Memories) -> list[list[str]]:
    return [list(memory) for memory in notes]


def _some_rows(inputs: list[torch.Tensor], n_rows: int) -> tuple[torch.Tensor, ...]:
    return tuple(tensor[[0] * n_rows] for tensor in inputs)


def _is_same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    is_alike = found.dtype == expected.dtype and found.shape == expected.shape
    return is_alike and bool(torch.allclose(found, expected, equal_nan=True))


class _RefuseToRead(TorchFunctionMode):
    """Raises where Python looks at the values of tensors."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _READS:
            raise TypeError(f"{function} reads the values of a tensor")
        return function(*args, **(kwargs or {}))
