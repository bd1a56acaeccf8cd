"""Count the operations of a network, without computing them where it can run on shapes only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from skexit.backbone._flops import FlopCounter
from skexit.backbone._inputs import Inputs, as_arguments, call, map_tensors
from skexit.backbone._modules import device_of
from skexit.backbone._on_shapes import ShapeMode
from skexit.exceptions import UncountedWorkWarning
from skexit.utils._warnings import warn

Forward = Callable[[], Any]
Clock = Callable[[], float]
Result = TypeVar("Result")


def run_counting_flops(
    model: nn.Module, inputs: Inputs, run: Callable[[Forward, Clock], Result], *, warns: bool = False
) -> Result:
    """What `run` makes of a forward pass and of a clock that reads its FLOPs; warns of what was not counted if told."""
    with _COUNTING, _without_fused_kernels():
        try:
            shapes = ShapeMode()
            forward = _forward_on_shapes(model, inputs, shapes)
            with left_as_found(model), shapes, FlopCounter() as counter:
                result = run(forward, counter.read)
        except Exception:
            # The network may have needed values. Whatever else is wrong shows again on its own device.
            forward = forward_on_own_device(model, inputs)
            with FlopCounter() as counter:
                result = run(forward, counter.read)
    if warns and counter.uncounted:
        names = {module: name for name, module in model.named_modules()}
        warn(UncountedWorkWarning(sorted((one, names.get(module, "")) for one, module in counter.uncounted)))
    return result


#: These settings are the process's: of two threads that count, the second would put back what the first has set.
_COUNTING = threading.Lock()


@contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Attention, transformer layers and recurrent layers by operations that have a formula."""
    found = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(found)


def forward_on_own_device(model: nn.Module, inputs: Inputs) -> Forward:
    """A forward pass on the network's own device."""
    device = device_of(model)
    inputs = map_tensors(lambda tensor: tensor.to(device), inputs)
    return lambda: call(model, inputs)


def _forward_on_shapes(model: nn.Module, inputs: Inputs, shapes: ShapeMode) -> Forward:
    """A forward pass that knows shapes, and the values of integers."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    state = {name: shapes.enter_tensor(tensor) for name, tensor in tensors}
    args, kwargs = as_arguments(model, map_tensors(shapes.enter_tensor, inputs))
    return lambda: torch.func.functional_call(model, state, args, kwargs)


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Restore the random state and all that modules have: parameters, buffers, modes, counters, caches."""
    device = device_of(model)
    with attributes_as_found(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def attributes_as_found(model: nn.Module) -> Iterator[None]:
    """Restore all that modules have, and what their lists, sets and dicts hold."""
    # Parameters too: torch leaves those of a module that has two names exchanged after functional_call. And hooks: some
    # networks install theirs when they are first called, and note on the module that they have.
    attributes = [vars(module) for module in model.modules()]
    containers = [value for own in attributes for value in own.values() if isinstance(value, dict | list | set)]
    found = [(container, container.copy()) for container in (*attributes, *containers)]
    try:
        yield
    finally:
        for container, content in found:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
