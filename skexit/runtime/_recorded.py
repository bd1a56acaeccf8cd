"""Record the decision at an exit once, as a function of tensors that runs without Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from skexit.data._walk import Memories
from skexit.runtime._decisions import Decisions
from skexit.runtime._rows import in_double

#: Methods that read the values of a tensor. Python code that depends on them would not be recorded.
_READS = {
    *(torch.Tensor.__array__, torch.Tensor.__dlpack__, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.item),
    *(torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.__int__, torch.Tensor.__index__),
    *(torch.Tensor.__contains__, torch.Tensor.__iter__),
}
#: Number of rows with which a decision is recorded, and numbers of rows with which the recording is compared.
_N_RECORDED, _N_COMPARED = 2, (1, 3)
#: Smallest number of rows for a graph. torch takes axes of equal size for the same, so the rows need their own size.
_N_OF_GRAPH = 97
#: End of a slice that includes everything.
_NO_END = 2**63 - 1


#: A function of the output of a stage, and of the attention mask or None, that returns features.
Pooling = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def decide(
    decisions: Decisions, k: int, logits: Any, features: Any, notes: Memories, pool: Pooling | None = None
) -> tuple[Any, Any]:
    """Logits of the predictions at exit `k`, and a mask of the samples that leave; None if all leave or none.

    The notes are changed in place. The decision is recorded at the first call. If it reads the values of tensors, as an
    estimator on NumPy arrays does, it runs in Python. With `pool`, `features` is the output of the stage, and the
    recording includes pooling; then pass the same `pool` for an exit each time.
    """
    if k not in decisions.recorded:
        decisions.recorded[k] = _record(decisions, k, logits, features, notes, pool)
    recorded = decisions.recorded[k]
    if recorded is not None:
        return cast(Recorded, recorded)(logits, features, notes)
    return _decide(decisions, k, logits, _as_features(decisions, pool, features), notes)


def read_features(pool: Pooling, tensor: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pooled features in double precision. They do not share memory with `tensor`, which later stages may change."""
    features = in_double(pool(tensor, mask))
    return features.clone() if features is tensor else features


class FlatDecision:
    """The decision at exit `k` as a function of tensors only.

    Its inputs are logits, features (each only if the exit has them) and notes. Its outputs are the logits of
    predictions, a mask of the samples that leave (only if some may leave and others stay), and notes.
    """

    def __init__(self, decisions: Decisions, k: int, logits: Any, features: Any, notes: Memories) -> None:
        self._decisions, self._k = decisions, k
        self._has = [part is not None for part in (logits, features)]
        self._splits = k < decisions.n_exits - 1 and decisions.is_used[k]
        # Notes before and after the exit, each as the number of its step and its name.
        self._taken, self._given = _names(notes), [(0, "")]

    def __call__(self, *inputs: torch.Tensor, pool: Pooling | None = None) -> tuple[torch.Tensor, ...]:
        values = iter(inputs)
        logits, features = (next(values) if has_part else None for has_part in self._has)
        features = _as_features(self._decisions, pool, features)
        notes = self._decisions.start()
        for (step, name), value in zip(self._taken, values, strict=True):
            notes[step][name] = value
        answer, leaves = _decide(self._decisions, self._k, logits, features, notes)
        self._given = _names(notes)
        return (answer, *([leaves] if self._splits else []), *_noted(notes, self._given))

    def noted(self, notes: Memories) -> list[torch.Tensor]:
        """The notes that are inputs."""
        return _noted(notes, self._taken)

    @property
    def n_notes(self) -> int:
        """Number of notes that are inputs."""
        return len(self._taken)

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return 1 + self._splits + len(self._given)

    def unpack(self, outputs: Sequence[torch.Tensor], notes: Memories) -> tuple[Any, Any]:
        """Logits, and the mask of samples that leave or None, from the outputs. The notes are changed in place."""
        n_own = 1 + self._splits
        for (step, name), value in zip(self._given, outputs[n_own:], strict=True):
            notes[step][name] = value
        return outputs[0], outputs[1] if self._splits else None


@dataclass(frozen=True)
class Recorded:
    """A decision as TorchScript in `function`, and in Python as `flat`, with example inputs for `flat`.

    If pooling was recorded, `function` takes the output of the stage, and `flat` takes features.
    """

    function: Any
    flat: FlatDecision
    example: tuple[torch.Tensor, ...]

    def __call__(self, logits: Any, features: Any, notes: Memories) -> tuple[Any, Any]:
        # Without a context manager, whose time is noticeable here.
        optimizes = _switch_optimizations(False)
        try:
            outputs = self.function(*_present(logits, features), *self.flat.noted(notes))
        finally:
            _switch_optimizations(optimizes)
        return self.flat.unpack(outputs, notes)

    def graph(self) -> fx.GraphModule:
        """The decision as a graph, for a compiler."""
        others = {size for tensor in self.example for size in tensor.shape[1:]}
        n_rows = next(size for size in count(_N_OF_GRAPH) if size not in others)
        with torch.inference_mode(False), torch.no_grad():
            record = make_fx(self.flat.__call__, tracing_mode="symbolic", _allow_non_fake_inputs=True)
            return record(*_some_rows(list(self.example), n_rows))


def _decide(decisions: Decisions, k: int, logits: Any, features: Any, notes: Memories) -> tuple[Any, Any]:
    answer = decisions.answer(k, logits, features, notes)
    return answer, decisions.leaves(k, answer, features, notes)


def _as_features(decisions: Decisions, pool: Pooling | None, features: Any) -> Any:
    """The features of an exit. If there is a `pool`, they are pooled now."""
    return features if pool is None or features is None else decisions._as_cached(read_features(pool, features))


def _record(
    decisions: Decisions, k: int, logits: Any, features: Any, notes: Memories, pool: Pooling | None
) -> Recorded | None:
    """The recorded decision of exit `k`; None if it cannot be recorded."""
    flat = FlatDecision(decisions, k, logits, features, notes)

    def whole(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return flat(*given, pool=pool)

    # Tensors of inference mode cannot be recorded.
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = [*_present(logits, features), *flat.noted(notes)]
        example, *others = (_some_rows(inputs, n_rows) for n_rows in (_N_RECORDED, *_N_COMPARED))
        try:
            with _RefuseToRead():
                expected = [whole(*other) for other in others]
            with _InFewerSteps():
                function = torch.jit.trace(whole, example, check_trace=False)
            _simplify(function.graph)
            with _as_recorded():
                found = [function(*other) for other in others]
        except Exception:  # torch may raise any exception if it cannot record a decision
            return None
        pooled = _some_rows(_present(logits, _as_features(decisions, pool, features)), _N_RECORDED)
    same = all(_is_same(*pair) for pair in zip(sum(found, ()), sum(expected, ()), strict=True))
    return Recorded(function, flat, (*pooled, *example[len(pooled) :])) if same else None


def _simplify(graph: Any) -> None:
    """Replace computations without inputs by constants, and remove repeated computations and those without effect."""
    torch._C._jit_pass_inline(graph)
    _drop_whole_slices(graph)
    torch._C._jit_pass_constant_propagation(graph)
    torch._C._jit_pass_cse(graph)
    torch._C._jit_pass_dce(graph)


def _drop_whole_slices(graph: Any) -> None:
    """Bypass slices that return their whole input, as ``x[:, None]`` makes for each colon."""
    for node in graph.findAllNodes("aten::slice"):
        values, _, *bounds = node.inputs()
        if [bound.toIValue() for bound in bounds] == [0, _NO_END, 1]:
            node.output().replaceAllUsesWith(values)


@contextmanager
def _as_recorded() -> Iterator[None]:
    optimizes = _switch_optimizations(False)
    try:
        yield
    finally:
        _switch_optimizations(optimizes)


def _switch_optimizations(are_on: bool) -> bool:
    """Set whether TorchScript optimises, and return the old setting.

    Optimisation would slow down the first runs, and change the rounding.
    """
    were_on: bool = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(are_on)
    return were_on


def _present(*parts: Any) -> list[torch.Tensor]:
    return [part for part in parts if part is not None]


def _noted(notes: Memories, names: list[tuple[int, str]]) -> list[torch.Tensor]:
    return [notes[step][name] for step, name in names]


def _names(notes: Memories) -> list[tuple[int, str]]:
    return [(step, name) for step, memory in enumerate(notes) for name in memory]


def _some_rows(inputs: list[torch.Tensor], n_rows: int) -> tuple[torch.Tensor, ...]:
    return tuple(tensor[[0] * n_rows] for tensor in inputs)


def _is_same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    is_alike = found.dtype == expected.dtype and found.shape == expected.shape
    return is_alike and bool(torch.allclose(found, expected, equal_nan=True))


class _RefuseToRead(TorchFunctionMode):
    """Raises a TypeError if Python reads the values of a tensor."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _READS:
            raise TypeError(f"{function} reads the values of a tensor")
        return function(*args, **(kwargs or {}))


class _InFewerSteps(TorchFunctionMode):
    """Computes logsumexp in half the time, from log_softmax, which is one operation instead of eight."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not torch.logsumexp or args[1:] != (-1,) or kwargs:
            return function(*args, **(kwargs or {}))
        # From the largest value, because others may be -inf, or so small that digits are lost.
        return args[0].amax(-1) - torch.log_softmax(args[0], -1).amax(-1)
