"""Finds the axis of the channels in an exit's output: the one after the samples, or the last."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from skexit.backbone._counting import left_as_found, run_counting_flops
from skexit.backbone._inputs import Inputs, map_tensors
from skexit.backbone._modules import hook_calls, split_call, watched_modules
from skexit.backbone._outputs import first_tensor
from skexit.backbone._pooling import DEFAULT_POOLS, Pool
from skexit.backbone._rows import with_rows

#: The `channels` parameter: one value for all exits, or values by the names of exits.
Channels: TypeAlias = str | Mapping[str, str]

_FIRST, _LAST = _LAYOUTS = ("first", "last")

#: Layers of torch with channels in the axis after the samples, also in derived classes.
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Upsample,
)
#: Layers with channels in the last axis. A derived class may permute axes in its ``forward``, as LayerNorm2d does.
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


def check_channels(channels: Channels, exits: Sequence[str]) -> None:
    """Raise a ValueError unless `channels` is ``"first"``, ``"last"`` or ``"auto"``, or a dict of these by exit."""
    by_exit = {None: channels} if isinstance(channels, str) else dict(channels)
    for name, value in by_exit.items():
        if value not in (*_LAYOUTS, "auto"):
            raise ValueError(f"channels={channels!r}: {value!r} must be 'first', 'last' or 'auto'.")
        if name is not None and name not in exits:
            raise ValueError(f"channels has the key {name!r}, which is not an exit; exits={list(exits)}.")


def find_channels(
    model: nn.Module, exits: Sequence[str], example_input: Inputs, pool: Pool, channels: Channels
) -> dict[str, str]:
    """``"first"`` or ``"last"`` for each exit of a network in evaluation mode.

    For exits without a value in `channels`, it is inferred from the layers that the network calls in a pass over
    shapes: first from layers that return or read the tensor of the exit itself, then from the sizes of earlier outputs,
    last from the sizes that change with those of the input. Raises a ValueError if this is not enough.
    """
    declared = dict.fromkeys(exits, channels) if isinstance(channels, str) else dict(channels)
    found = {name: declared.get(name, "auto") for name in exits}
    unknown = [name for name, value in found.items() if value == "auto"]
    if callable(pool) or not unknown:
        return found
    calls = _watch(model, unknown, example_input)
    inferred = {name: calls.infer(name, set(model.get_submodule(split_call(name)[0]).modules())) for name in calls.ends}
    if None in inferred.values():
        inferred = _from_larger_input(model, calls, example_input, inferred)
    for name, layout in inferred.items():
        if layout is None:
            raise ValueError(
                f"exit {name!r} gave shape {calls.ends[name][1]}, and no layer around it shows whether its "
                "channels are the axis after the samples or the last one. Pass channels='first' or "
                f"channels='last', or a dict for some exits, such as {{{name!r}: 'last'}}."
            )
    return found | {name: layout for name, layout in inferred.items() if layout is not None}


def output_shapes(model: nn.Module, exits: Sequence[str], example_input: Inputs) -> dict[str, tuple[int, ...]]:
    """Shape of each exit's output for one row, if it is a sequence, map or volume."""
    return {name: shape for name, (_, shape, _) in _watch(model, exits, example_input).ends.items()}


def axes_of_rows(model: nn.Module, exits: Sequence[str], example_input: Inputs) -> dict[str, int]:
    """The axis of the samples in each exit's output: 0, or 1 as in recurrent layers.

    It is the axis whose size differs between passes over shapes with one row and with two rows.
    """
    one, two = (_watch(model, exits, example_input, n_rows).ends for n_rows in (1, 2))
    return {name: int(_has_rows_second(one, two, name)) for name in exits}


def _has_rows_second(one: dict[str, Any], two: dict[str, Any], name: str) -> bool:
    if name not in one or name not in two:
        return False
    fewer, more = one[name][1], two[name][1]
    return fewer[0] == more[0] and (fewer[1], more[1]) == (1, 2)


@dataclass(frozen=True)
class _Call:
    """A call of a layer that may show where channels are."""

    module: nn.Module
    input: Any
    output: Any
    """Weak references to tensors; those to the same tensor are one object."""
    shape: tuple[int, ...]
    """Shape of the output."""
    layout: str | None
    """Where its channels are; None if that depends on the layer's own code."""
    widths: set[int]
    """Sizes of the layer's parameters that may be numbers of channels."""

    def agreement(self, shape: Sequence[int], layout: str) -> int:
        """How many of two sizes of a shape, read in a layout, are those of the layer's output: channels, other axes."""
        n_channels, n_places = _sizes(shape, layout)
        if self.layout is None:
            return int(n_channels in self.widths)
        own_channels, own_places = _sizes(self.shape, self.layout)
        return (n_channels == own_channels) + (n_places == own_places)


def _sizes(shape: Sequence[int], layout: str) -> tuple[int, int]:
    """Number of channels, and number of places."""
    _, *sizes = shape
    n_channels = sizes.pop(0 if layout == _FIRST else -1)
    return n_channels, math.prod(sizes)


class _Calls:
    """Calls of layers in one forward pass, and the outputs of exits: their shapes, and the number of calls before."""

    def __init__(self, model: nn.Module, exits: Sequence[str], forward: Callable[[], Any]) -> None:
        self.calls: list[_Call] = []
        self.ends: dict[str, tuple[Any, tuple[int, ...], int]] = {}
        with ExitStack() as hooks:
            for _, module in watched_modules(model):
                layout, widths = _layout_of(module), _widths_of(module)
                if layout or widths:
                    keep = self._keep_call(layout, widths)
                    hooks.enter_context(module.register_forward_hook(keep, with_kwargs=True))
            for name in exits:
                hooks.enter_context(hook_calls(model, name, self._keep_end(name)))
            forward()

    def _keep_call(self, layout: str | None, widths: set[int]) -> Any:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            tensor = _tensor_in(output)
            if tensor is not None and tensor.ndim > 1:
                first = next(iter((*args, *kwargs.values())), None)
                read = weakref.ref(first) if isinstance(first, torch.Tensor) else None
                self.calls.append(_Call(module, read, weakref.ref(tensor), tuple(tensor.shape), layout, widths))

        return keep

    def _keep_end(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            tensor = _tensor_in(output)
            if tensor is not None and tensor.ndim in DEFAULT_POOLS:
                self.ends[name] = weakref.ref(tensor), tuple(tensor.shape), len(self.calls)

        return keep

    def infer(self, name: str, modules: set[nn.Module]) -> str | None:
        """Where the channels of an exit with these modules are; None if the calls do not show it."""
        output, shape, end = self.ends[name]
        touching = [call for call in self.calls if call.output is output or call.input is output]
        layouts = {call.layout for call in touching if call.layout and len(call.shape) == len(shape)}
        if len(layouts) == 1:
            return layouts.pop()
        inside = [call for call in self.calls[:end] if call.module in modules]
        return _infer_from_sizes(inside or self.calls[:end], shape, unanimous=bool(inside))


def _infer_from_sizes(calls: list[_Call], shape: Sequence[int], *, unanimous: bool) -> str | None:
    """The layout in which a shape agrees best with the calls; of the calls that agree best, the last one decides.

    If both layouts agree equally with it, its own layout decides; if `unanimous`, all of these calls must have one.
    """
    agreements = [{layout: call.agreement(shape, layout) for layout in _LAYOUTS} for call in calls]
    best = max((max(agreement.values()) for agreement in agreements), default=0)
    if best == 0:
        return None
    agreeing = [i for i, agreement in enumerate(agreements) if best in agreement.values()]
    first, last = (agreements[agreeing[-1]][layout] for layout in _LAYOUTS)
    if first != last:
        return _FIRST if first > last else _LAST
    layouts = [calls[i].layout for i in agreeing if calls[i].layout and len(calls[i].shape) == len(shape)]
    layouts = layouts if unanimous else layouts[-1:]
    return layouts[0] if len(set(layouts)) == 1 else None


def _layout_of(module: nn.Module) -> str | None:
    if isinstance(module, _CHANNELS_FIRST):
        return _FIRST
    is_plain = (type(module).forward.__module__ or "").startswith("torch.nn.")
    normalized = getattr(module, "normalized_shape", (1,))
    has_one_axis = isinstance(normalized, int) or len(normalized) == 1
    return _LAST if isinstance(module, _CHANNELS_LAST) and is_plain and has_one_axis else None


def _widths_of(module: nn.Module) -> set[int]:
    """Sizes of vectors and matrices, and numbers of kernels, among a module's own parameters."""
    shapes = [parameter.shape for parameter in module.parameters(recurse=False)]
    return {size for shape in shapes for size in (shape if len(shape) < 3 else shape[:1])}


def _tensor_in(output: Any) -> torch.Tensor | None:
    try:
        return first_tensor(output)
    except ValueError:
        return None


@torch.no_grad()
def _watch(model: nn.Module, exits: Sequence[str], inputs: Inputs, n_rows: int = 1) -> _Calls:
    """Record calls while the network runs on some rows, on shapes only if it can."""
    # Copies, because the network may change its inputs in place.
    row = map_tensors(lambda tensor: with_rows(tensor, n_rows), inputs)
    with left_as_found(model):
        return run_counting_flops(model, row, lambda forward, flops: _Calls(model, exits, forward))


def _from_larger_input(
    model: nn.Module, calls: _Calls, inputs: Inputs, inferred: dict[str, str | None]
) -> dict[str, str | None]:
    """Infer missing layouts from the axes that grow with the input; a network may take inputs of one size only."""
    try:
        larger = _watch(model, list(calls.ends), map_tensors(_enlarge, inputs))
    except Exception:
        return inferred
    return {name: layout or _fixed_axis(calls, larger, name) for name, layout in inferred.items()}


def _enlarge(tensor: torch.Tensor) -> torch.Tensor:
    """Double the size of the axes after the channels, or of the only axis besides the samples."""
    n_dimensions = tensor.ndim
    return tensor.repeat(*(2 if axis >= min(2, n_dimensions - 1) > 0 else 1 for axis in range(n_dimensions)))


def _fixed_axis(calls: _Calls, larger: _Calls, name: str) -> str | None:
    before, after = (side.ends[name][1] for side in (calls, larger))
    if len(before) != len(after) or (before[1] == after[1]) == (before[-1] == after[-1]):
        return None
    return _FIRST if before[1] == after[1] else _LAST
