"""What a live network takes, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

#: What to do with inputs that differ from the example.
_CUT_AGAIN = "Pass inputs like the example, or cut the network again by prepare(example_input)."


def as_inputs(inputs: tuple[Any, ...], named_inputs: Mapping[str, Any]) -> Inputs:
    """What was passed to ``forward``, as one input of a network.

    A ValueError says if there is no tensor, or some come by position and others by name.
    """
    if len(inputs) == 1 and isinstance(inputs[0], torch.Tensor) and not named_inputs and inputs[0].ndim:
        return inputs[0]
    if bool(inputs) == bool(named_inputs):
        raise ValueError("pass the inputs of the network, either all by position or all by name.")
    given: Any = dict(named_inputs) or (inputs[0] if len(inputs) == 1 else inputs)
    if isinstance(given, Mapping):
        given = dict(given)
    elif isinstance(given, list):
        given = tuple(given)
    values = list(given.values()) if isinstance(given, dict) else given if isinstance(given, tuple) else [given]
    if not values or not all(isinstance(value, torch.Tensor) and value.ndim for value in values):
        raise ValueError(
            f"the network takes tensors with one row per sample, but got {[type(value).__name__ for value in values]}. "
            "Convert arrays by torch.as_tensor."
        )
    return given


def named_tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    """The tensors of an input, by a name for messages."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    tensors = tensors_of(inputs)
    return {"x": tensors[0]} if len(tensors) == 1 else {f"input {i}": tensor for i, tensor in enumerate(tensors)}


def check_rows(inputs: Inputs, device: torch.device) -> None:
    """Raise a ValueError unless all tensors are on the device and have equally many rows, at least one."""
    tensors = named_tensors(inputs)
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but the network on {device}. Move one of them.")
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the inputs have different numbers of rows: {lengths}. Pass the same rows of each.")
    if not all(lengths.values()):
        raise ValueError("the inputs have no rows; pass at least one.")


def is_like(inputs: Inputs, example: Inputs) -> bool:
    """Whether the input is one tensor that plainly differs from the example in rows alone; the checks say more."""
    return (
        isinstance(inputs, torch.Tensor)
        and isinstance(example, torch.Tensor)
        and inputs.shape[1:] == example.shape[1:]
        and inputs.dtype == example.dtype
        and inputs.device == example.device
        and len(inputs) > 0
    )


def check_like(inputs: Inputs, example: Inputs) -> None:
    """Raise a ValueError unless inputs differ from the example in rows and lengths of sequences alone."""
    given, expected = named_tensors(inputs), named_tensors(example)
    if list(given) != list(expected):
        raise ValueError(f"the network was cut for the inputs {list(expected)}, but got {list(given)}. {_CUT_AGAIN}")
    for name, tensor in given.items():
        like = expected[name]
        if tensor.dtype != like.dtype:
            raise ValueError(
                f"{name} has the type {tensor.dtype}, but the network was cut for {like.dtype}. Convert it "
                f"by to({like.dtype})."
            )
        is_sequence = not like.is_floating_point() and like.ndim == 2
        if tensor.ndim != like.ndim or (not is_sequence and tensor.shape[1:] != like.shape[1:]):
            shape = ", ".join(["n", *map(str, like.shape[1:])])
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}, but the network was cut for ({shape}). {_CUT_AGAIN}"
            )


#: One input of a network: a tensor, several positional tensors, or tensors by keyword.
Inputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, Any]


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call the network on one input."""
    args, kwargs = as_arguments(inputs)
    return model(*args, **kwargs)


def as_arguments(inputs: Inputs) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Positional and keyword arguments that pass the input to a network."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs) -> Inputs:
    """Apply a function to each tensor of an input."""
    if isinstance(inputs, torch.Tensor):
        return function(inputs)
    if isinstance(inputs, tuple):
        return tuple(function(value) for value in inputs)
    return {name: function(value) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def tensors_of(inputs: Inputs) -> list[torch.Tensor]:
    """The tensors of an input."""
    args, kwargs = as_arguments(inputs)
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
