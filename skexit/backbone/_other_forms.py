"""Find the form in which a network takes an input that it cannot take as it is, for errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from skexit.backbone._counting import left_as_found
from skexit.backbone._inputs import Inputs, call, map_tensors, parameter_names
from skexit.backbone._modules import device_of, evaluating
from skexit.backbone._wrong_inputs import are_labels, cure_of_type


@contextmanager
def naming_other_form(model: nn.Module, inputs: Inputs, name: str = "example_input", where: str = "") -> Iterator[None]:
    """Turn an error of a network into a ValueError, if the network takes the input in another form.

    `name` is what the message calls the input, and `where` tells what it is a part of.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or _runs(model, inputs):
            raise
        for fault, cure, other in _other_forms(model, inputs, name):
            if _runs(model, other):
                raise ValueError(f"{name}{where} {fault} {cure}") from error
        raise


def _other_forms(model: nn.Module, inputs: Inputs, name: str) -> Iterator[tuple[str, str, Inputs]]:
    """What may be wrong with an input, what to pass instead, and the input in that form."""
    if isinstance(inputs, torch.Tensor):
        shape = f"has the shape {tuple(inputs.shape)}"
        fault = f"{shape}, which is that of one sample; the network takes a batch."
        yield fault, f"Pass {name}[None], a batch of one sample.", inputs[None]
        if inputs.ndim == 4:
            fault = f"{shape}; the network takes channels first."
            yield fault, f"Pass {name}.permute(0, 3, 1, 2).", inputs.permute(0, 3, 1, 2)
        dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), inputs.dtype)
        if dtype != inputs.dtype:
            fault = f"has the type {inputs.dtype}, but the network {dtype}."
            yield fault, cure_of_type(inputs, dtype), inputs.to(dtype)
    elif isinstance(inputs, Mapping):
        taken = {name: tensor for name, tensor in inputs.items() if name in parameter_names(model)}
        if taken and len(taken) < len(inputs):
            fault = f"has the parts {[name for name in inputs if name not in taken]}, which the network does not take."
            yield fault, "Leave them out, and name labels 'labels' or 'label'.", taken
    else:
        first, *others = inputs
        if are_labels(inputs[-1]):
            fewer = first if len(others) == 1 else inputs[:-1]
            yield f"has {len(inputs)} parts, of which the last looks like labels.", "Leave it out.", fewer
        if all(tensor.shape[1:] == first.shape[1:] for tensor in others):
            fault = f"has {len(inputs)} parts, of which each is a batch; the network takes one at a time."
            yield fault, "Join them by torch.cat(batches).", torch.cat(inputs)
        if all(tensor.shape == first.shape for tensor in others):
            fault = f"has {len(inputs)} parts, of which each is one sample; the network takes a batch."
            yield fault, "Join them by torch.stack(samples).", torch.stack(inputs)


@torch.no_grad()
def _runs(model: nn.Module, inputs: Inputs) -> bool:
    try:
        with left_as_found(model), evaluating(model):
            call(model, map_tensors(lambda tensor: tensor.to(device_of(model)), inputs))
    except Exception:
        return False
    return True
