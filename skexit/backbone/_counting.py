"""Count the operations of a network, without computing them where it can run on shapes only."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skexit.backbone._inputs import Inputs, as_arguments, call, map_tensors
from skexit.backbone._modules import device_of

Forward = Callable[[], Any]
Clock = Callable[[], float]
Result = TypeVar("Result")


def run_counting_flops(model: nn.Module, inputs: Inputs, run: Callable[[Forward, Clock], Result]) -> Result:
    """What `run` makes of a forward pass and of a clock that reads the FLOPs since its start."""
    try:
        with left_as_found(model):
            return _count(run, _forward_on_meta_device(model, inputs))
    except Exception:
        # The network may have needed values. Whatever else is wrong shows again on its own device.
        return _count(run, forward_on_own_device(model, inputs))


def _count(run: Callable[[Forward, Clock], Result], forward: Forward) -> Result:
    # The counter has no formula for fused kernels: it would count nothing for attention, for a
    # transformer layer in its fast path, or for a recurrent layer on cuDNN.
    with (
        _COUNTING,
        _without_fast_path(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.cudnn.flags(enabled=False),
        FlopCounterMode(display=False, custom_mapping=_FLOPS_OF_FUSED_KERNELS) as counter,
    ):
        return run(forward, counter.get_total_flops)


#: These settings are the process's: of two threads that count, the second would put back what the first has set.
_COUNTING = threading.Lock()


@contextmanager
def _without_fast_path() -> Iterator[None]:
    found = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(found)


def _flops_of_recurrent_layer(
    inputs: Sequence[int], input_weight: Sequence[int], hidden_weight: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    n_steps, n_samples, _ = inputs
    return 2 * n_steps * n_samples * (math.prod(input_weight) + math.prod(hidden_weight))


_FLOPS_OF_FUSED_KERNELS = {torch.ops.aten.mkldnn_rnn_layer: _flops_of_recurrent_layer}


def forward_on_own_device(model: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    """A forward pass on the network's own device."""
    device = device_of(model)
    inputs = map_tensors(lambda tensor: tensor.to(device), inputs)
    return lambda: call(model, inputs)


def _forward_on_meta_device(model: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    """A forward pass that knows shapes only."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    args, kwargs = as_arguments(map_tensors(lambda tensor: tensor.to("meta"), inputs))
    return lambda: torch.func.functional_call(model, state, args, kwargs)


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Restore the random state and all that modules have: parameters, buffers, modes, counters, caches."""
    # The tensors too: torch leaves those of a module that has two names exchanged after functional_call.
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    attributes += [
        (tensors, dict(tensors)) for module in model.modules() for tensors in (module._parameters, module._buffers)
    ]
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for mapping, found in attributes:
                mapping.clear()
                mapping.update(found)
