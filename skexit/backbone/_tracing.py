"""Trace the modules that a network calls, their costs, and the dependencies between values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from skexit.backbone._counting import left_as_found, run_counting_flops
from skexit.backbone._inputs import Inputs, main_first, map_tensors
from skexit.backbone._modules import watched_modules
from skexit.backbone._outputs import are_plain, tensors_among, tensors_in
from skexit.backbone._rows import axis_of_rows, with_rows
from skexit.backbone._shapes import FILLED

#: Number of rows of the inputs in a trace. Few tensors have another axis of this size.
_N_ROWS = 5
_JOINS = {torch.ops.aten.stack.default, torch.ops.aten.cat.default}


def trace(model: nn.Module, example_input: Inputs, *, warns: bool = False) -> Trace:
    """Run a network in evaluation mode, on shapes only if it can, and record which values depend on which.

    If `warns`, a warning names operators whose FLOPs are not known.
    """
    inputs = map_tensors(lambda tensor: with_rows(tensor, _N_ROWS), main_first(model, example_input))
    with left_as_found(model), torch.no_grad():
        model.eval()
        try:
            return run_counting_flops(model, inputs, lambda forward, flops: Trace(model, forward, flops), warns=warns)
        except Exception as error:
            error.add_note(f"skexit ran the network on {_N_ROWS} rows, made from those of the example.")
            raise


@dataclass(frozen=True)
class ModuleCall:
    """A call of a module whose output has values that depend on the input."""

    name: str
    end: int
    """Number of operations before its end."""
    values: tuple[int, ...]
    shape: tuple[int, ...]
    """Shape of the first value."""
    is_floating: bool
    has_weights: bool
    flops: float
    """FLOPs until its end."""


class Trace:
    """One forward pass: the calls of modules, and the network's output."""

    n_rows = _N_ROWS

    def __init__(self, model: nn.Module, forward: Callable[[], Any], flops: Callable[[], float]) -> None:
        self.values = Values(flops)
        self.calls: list[ModuleCall] = []
        """Calls of a module that is called several times have names with a number."""
        n_calls = Counter[str]()
        with ExitStack() as stack:
            stack.enter_context(model.register_forward_pre_hook(self.values.start, with_kwargs=True))
            for name, module in watched_modules(model):
                if name:
                    stack.enter_context(module.register_forward_hook(self._note(name, flops, n_calls)))
            stack.enter_context(self.values)
            self.output = forward()
        self.calls = [
            replace(call, name=name) if n_calls[name := call.name.partition("#")[0]] == 1 else call
            for call in self.calls
        ]
        self.outputs = [self.values.of(tensor) for tensor in tensors_in(self.output)]
        self.flops = flops()

    def _note(self, name: str, flops: Callable[[], float], n_calls: Counter[str]) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            number, n_calls[name] = n_calls[name], n_calls[name] + 1
            tensors = [tensor for tensor in tensors_in(output) if self.values.of(tensor) is not None]
            if tensors:
                values = tuple(cast(int, self.values.of(tensor)) for tensor in tensors)
                shape, is_floating = tuple(tensors[0].shape), tensors[0].is_floating_point()
                has_weights = next(module.parameters(), None) is not None
                end = self.values.n_operations
                self.calls.append(ModuleCall(f"{name}#{number}", end, values, shape, is_floating, has_weights, flops()))

        return note


class Values(TorchDispatchMode):
    """The values of a forward pass that depend on its first input, and the operations between them."""

    def __init__(self, flops: Callable[[], float]) -> None:
        super().__init__()
        self.n_operations = 0
        self.axis_of_rows: list[int | None] = []
        self.n_elements: list[int] = []
        self.made: list[int] = []
        """The operation that made a value; -1 for the input."""
        self.parents: list[list[int]] = []
        """Values that each operation reads."""
        self.flops: list[float] = []
        """FLOPs of each operation."""
        self.joins: dict[int, int] = {}
        """The axis of each operation that joins values into one."""
        self._counter = flops
        self._of_tensor = WeakTensorKeyDictionary()
        self._of_storage: dict[int, int] = {}

    def start(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A hook that registers the first input of the network."""
        first = tensors_in((args, kwargs))[0]
        self._of_tensor[first] = self._add(first)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not are_plain(types):
            return NotImplemented
        before = self._counter()
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.flops.append(self._counter() - before)
        arguments = tensors_among((*args, *kwargs.values()))
        read = [value for tensor in arguments if (value := self.of(tensor)) is not None]
        if function.overloadpacket in FILLED:
            read = []
        self.parents.append(read)
        if function in _JOINS:
            self.joins[self.n_operations] = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        self.n_operations += 1
        if read:
            for tensor in tensors_among([result]):
                self._of_tensor[tensor] = self._add(tensor)
            for argument, tensor in zip(function._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._of_storage[tensor.untyped_storage()._cdata] = self._of_tensor[tensor] = self._add(tensor)
        return result

    def of(self, tensor: torch.Tensor) -> int | None:
        """The value that a tensor has now, None if it does not depend on the input."""
        own, written = self._of_tensor.get(tensor), self._of_storage.get(tensor.untyped_storage()._cdata)
        return max((value for value in (own, written) if value is not None), default=None) if own is not None else None

    def operations_before(self, value: int) -> set[int]:
        """The operations from which a value is computed."""
        operations: set[int] = set()
        waiting = [value]
        while waiting:
            operation = self.made[waiting.pop()]
            if operation >= 0 and operation not in operations:
                operations.add(operation)
                waiting.extend(self.parents[operation])
        return operations

    def _add(self, tensor: torch.Tensor) -> int:
        """Add a value of the shape of a tensor, and return its number."""
        self.made.append(self.n_operations - 1)
        self.n_elements.append(tensor.numel())
        self.axis_of_rows.append(axis_of_rows(tensor.shape, lambda size: size == _N_ROWS))
        return len(self.made) - 1
