"""Count the operations of a network, without computing them if it can run on shapes only."""

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
    """The result of `run` for a forward pass and a clock of its FLOPs; if `warns`, warn of uncounted operators."""
    with _COUNTING, _without_fused_kernels():
        try:
            shapes = ShapeMode()
            forward = _forward_on_shapes(model, inputs, shapes)
            with left_as_found(model), shapes, FlopCounter() as counter:
                result = run(forward, counter.read)
        except Exception:
            # The network may have needed values. Any other error is raised again on its own device.
            forward = forward_on_own_device(model, inputs)
            with FlopCounter() as counter:
                result = run(forward, counter.read)
    if warns and counter.uncounted:
        names = {module: name for name, module in model.named_modules()}
        warn(UncountedWorkWarning(sorted((one, names.get(module, "")) for one, module in counter.uncounted)))
    return result


#: A lock, because the settings below belong to the process: a second thread would restore those of the first.
_COUNTING = threading.Lock()


@contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Compute attention, transformer layers and recurrent layers by operations whose FLOPs have a formula."""
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
    """A forward pass on shapes, and on the values of integers."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    state = {name: shapes.enter_tensor(tensor) for name, tensor in tensors}
    args, kwargs = as_arguments(model, map_tensors(shapes.enter_tensor, inputs))
    return lambda: torch.func.functional_call(model, state, args, kwargs)


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Restore the random state and all attributes of modules: parameters, buffers, modes, counters, caches."""
    device = device_of(model)
    with attributes_as_found(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def attributes_as_found(model: nn.Module) -> Iterator[None]:
    """Restore all attributes of modules, and the contents of their lists, sets and dicts."""
    # Parameters, because functional_call does not restore those of a module with two names. Hooks, because some
    # networks install theirs in their first call, and store in an attribute that they are installed.
    attributes = [vars(module) for module in model.modules()]
    containers = [value for own in attributes for value in own.values() if isinstance(value, dict | list | set)]
    found = [(container, container.copy()) for container in (*attributes, *containers)]
    # TorchScript keeps the mode of a module elsewhere.
    modes = [(module, module.training) for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for container, content in found:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
