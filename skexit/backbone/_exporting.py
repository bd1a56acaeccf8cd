"""Export a network as a graph, with its inputs and its logits as flat lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import fx, nn

from skexit.backbone._counting import attributes_as_found
from skexit.backbone._inputs import Inputs, call, with_tensors
from skexit.backbone._outputs import logits_in
from skexit.backbone._own_logits import OwnLogits


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Switch off the caches that decoders of Hugging Face keep for the next token."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    changed = [config for config in configs.values() if getattr(config, "use_cache", False) is True]
    for config in changed:
        config.use_cache = False
    try:
        yield
    finally:
        for config in changed:
            config.use_cache = True


class _Unseen(list[Any]):
    """A list that torch.export does not search."""


@contextmanager
def hidden_weights(model: nn.Module) -> Iterator[None]:
    """Hide the second list of weights that recurrent layers have, of which torch.export would warn."""
    layers = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    weights = [layer._flat_weights for layer in layers]
    for layer, own in zip(layers, weights, strict=True):
        layer.__dict__["_flat_weights"] = _Unseen(own)
    try:
        yield
    finally:
        for layer, own in zip(layers, weights, strict=True):
            layer.__dict__["_flat_weights"] = own


def is_sequence(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.ndim == 2


def export(network: nn.Module, tensors: list[torch.Tensor], open_axes: Sequence[int]) -> Any:
    """The graph of a network; the size of axis 1 is left open for sequences only."""
    axes = [[axis for axis in open_axes if axis == 0 or is_sequence(tensor)] for tensor in tensors]
    shapes = {"tensors": [dict.fromkeys(own, torch.export.Dim.DYNAMIC) for own in axes]}
    exported = torch.export.export(network, (tensors,), dynamic_shapes=shapes if open_axes else None, strict=False)
    # A change through a view also changes the tensor for its other readers; decomposition makes this explicit. It also
    # writes out what is within blocks of autocast or of gradients.
    implicit = any(_changes_view(node) or node.target in _BLOCKS for node in exported.graph.nodes)
    return exported.run_decompositions({}) if implicit else exported


#: Operations that run a graph of their own with other settings.
_BLOCKS = (torch.ops.higher_order.wrap_with_autocast, torch.ops.higher_order.wrap_with_set_grad_enabled)


def _changes_view(node: fx.Node) -> bool:
    """Whether an operation changes a part of a tensor, or a tensor in another shape."""
    changed = node.args[0] if is_in_place(node) and node.args else None
    schema = getattr(getattr(changed, "target", None), "_schema", None)
    return schema is not None and any(
        result.alias_info is not None and not result.alias_info.is_write for result in schema.returns
    )


def is_in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


class WithFlatInputs(nn.Module):
    """A network that takes a list of tensors, and returns the logits in its own output."""

    def __init__(self, model: nn.Module, example: Inputs, own: OwnLogits | None, uses_output: bool) -> None:
        super().__init__()
        self.model = model
        self._example = example
        self._own, self._uses_output = own, uses_output

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        # A network that keeps tensors in attributes gets back its own: torch would warn of those of the recording.
        with attributes_as_found(self.model):
            output = call(self.model, with_tensors(self._example, tensors))
        if not self._uses_output:
            return []
        if self._own is not None:
            return [logits for logits in self._own.read(output) if logits is not None]
        logits = logits_in(output)
        if logits is None:
            raise ValueError(f"its output, a {type(output).__name__}, has no logits; pass head=None.")
        return [cast(torch.Tensor, logits)]
