"""Inputs of networks, and checks of them before a network runs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from skexit.backbone._wrong_inputs import PREPARE_AGAIN, cure_of_form, cure_of_parts, cure_of_shape, cure_of_type

#: Names of the labels in a batch whose parts have names.
LABEL_NAMES = ("labels", "label")
#: Main inputs of Hugging Face networks that have no `main_input_name`.
_MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")
#: Largest number of parts of a batch that a message lists.
_MAX_SHOWN = 8


def as_inputs(inputs: tuple[Any, ...], named_inputs: Mapping[str, Any], names: Sequence[str] = ()) -> Inputs:
    """Arguments of ``forward`` as one input of a network.

    `names` are those of the network's positional parameters, by which inputs by position and by name are joined.
    Raises a ValueError if the names do not suffice, or an argument is not a tensor.
    """
    if len(inputs) == 1 and isinstance(inputs[0], torch.Tensor) and not named_inputs and inputs[0].ndim:
        return inputs[0]
    if inputs and without_labels(named_inputs):
        if len(inputs) > len(names) or set(names[: len(inputs)]) & set(named_inputs):
            raise ValueError("pass the inputs of the network, either all by position or all by name.")
        named_inputs, inputs = {**dict(zip(names, inputs, strict=False)), **named_inputs}, ()
    return in_form(inputs or named_inputs, "the network")


def in_form(given: Any, source: str) -> Inputs:
    """A batch in one of the forms of a network's input: a tensor, a tuple of tensors, or a dict of tensors by name.

    Mappings and dataclasses become dicts without labels and None, lists become tuples, and a tuple of one becomes its
    element. Raises a ValueError, which names the source and the form, if the batch has another form.
    """
    if isinstance(given, list | tuple) and len(given) == 1:
        return in_form(given[0], source)
    fields = fields_of(given)
    form: Any = given
    if fields is not None:
        form = {name: value for name, value in without_labels(fields).items() if value is not None}
    elif isinstance(given, list | tuple):
        form = tuple(given)
    values = [*form.values()] if isinstance(form, dict) else form if isinstance(form, tuple) else [form]
    if not values or not all(isinstance(value, torch.Tensor) and value.ndim for value in values):
        raise ValueError(
            f"{source} takes a tensor, a tuple of tensors or a dict of tensors, with one row per sample, but got "
            f"{describe_given(form)}. {cure_of_form(form)}"
        )
    return form


def fields_of(given: Any) -> dict[str, Any] | None:
    """The parts of a mapping or a dataclass by name, None for anything else."""
    if isinstance(given, Mapping):
        return dict(given)
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        return {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    return None


def without_labels(named: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs by name without the labels, which a network does not need."""
    return {name: value for name, value in named.items() if name not in LABEL_NAMES}


def describe_given(given: Any) -> str:
    """The parts of a batch, in words."""
    if isinstance(given, torch.Tensor):
        return f"a tensor of shape {tuple(given.shape)}"
    if isinstance(given, np.ndarray):
        return f"an array of shape {given.shape} and type {given.dtype}"
    if given is None:
        return "None"
    if isinstance(given, Mapping | list | tuple) and not given:
        return "nothing"
    if isinstance(given, Mapping):
        return "{" + ", ".join(f"{name!r}: {describe_given(value)}" for name, value in given.items()) + "}"
    if isinstance(given, list | tuple) and len(given) <= _MAX_SHOWN:
        return f"a {type(given).__name__} of ({', '.join(map(describe_given, given))})"
    name = type(given).__name__
    return f"{'an' if name[0] in 'AEIOUaeio' else 'a'} {name}"


def main_first(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs; in a dict, the main input of the network, on which its exits depend, comes first."""
    if not isinstance(inputs, Mapping):
        return inputs
    names = [getattr(model, "main_input_name", None), *_MAIN_INPUTS, *positional_names(model)]
    first = next((name for name in names if name in inputs), None)
    return dict(inputs) if first is None else {first: inputs[first], **inputs}


def positional_names(model: nn.Module) -> list[str]:
    """Names of the network's positional parameters."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]


def parameter_names(model: nn.Module) -> list[str]:
    """Names of all parameters of the network's ``forward``."""
    return list(inspect.signature(model.forward).parameters)


def attention_mask_in(model: nn.Module, inputs: Inputs) -> int | None:
    """Index of the attention mask among the tensors of an input, by its parameter's name; None if there is none."""
    if isinstance(inputs, torch.Tensor):
        return None
    names = list(inputs) if isinstance(inputs, Mapping) else positional_names(model)[: len(inputs)]
    return names.index("attention_mask") if "attention_mask" in names else None


def named_tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    """The tensors of an input, by names for messages."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    tensors = tensors_of(inputs)
    return {"x": tensors[0]} if len(tensors) == 1 else {f"input {i}": tensor for i, tensor in enumerate(tensors)}


def check_rows(inputs: Inputs, device: torch.device) -> None:
    """Raise a ValueError unless all tensors are on the device and have the same number of rows, at least one."""
    tensors = named_tensors(inputs)
    for name, tensor in tensors.items():
        check_dense(tensor, name)
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but the network on {device}. Move one of them.")
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the inputs have different numbers of rows: {lengths}. Pass the same rows of each.")
    if not all(lengths.values()):
        raise ValueError("the inputs have no rows; pass at least one.")


def check_dense(tensor: torch.Tensor, name: str) -> None:
    """Raise a ValueError if a tensor is sparse or nested, so that its rows cannot be selected."""
    if tensor.is_nested:
        raise ValueError(f"{name} is a nested tensor. Pad it by torch.nested.to_padded_tensor(x, 0.0).")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} is a sparse tensor, {tensor.layout}. Pass x.to_dense().")


def is_like(inputs: Inputs, example: Inputs) -> bool:
    """Whether the input is one tensor that differs from the example only in rows; a fast test before the checks."""
    return (
        isinstance(inputs, torch.Tensor)
        and isinstance(example, torch.Tensor)
        and inputs.shape[1:] == example.shape[1:]
        and inputs.dtype == example.dtype
        and inputs.device == example.device
        and inputs.layout == example.layout
        and len(inputs) > 0
    )


def is_sequence(tensor: torch.Tensor) -> bool:
    """Whether an input has sequences, such as token ids, which may have any length."""
    return not tensor.is_floating_point() and tensor.ndim == 2


def like_example(inputs: Inputs, example: Inputs, names: Sequence[str] = ()) -> Inputs:
    """The inputs in the form and the order of the example.

    `names` are those of the network's positional parameters: inputs by name may stand for an example by position, and
    the other way round. Raises a ValueError if the inputs differ from the example in more than rows and lengths of
    sequences.
    """
    inputs = _by_name_or_position(inputs, example, names)
    given, expected = named_tensors(inputs), named_tensors(example)
    if set(given) != set(expected) or isinstance(inputs, Mapping) != isinstance(example, Mapping):
        raise ValueError(
            f"the network was prepared for the inputs {list(expected)}{_form(example)}, but got "
            f"{list(given)}{_form(inputs)}. {_cure_of_names(inputs, example)}"
        )
    for name, tensor in given.items():
        like = expected[name]
        if tensor.dtype != like.dtype:
            raise ValueError(
                f"{name} has the type {tensor.dtype}, but the network was prepared for {like.dtype}. "
                f"{cure_of_type(tensor, like.dtype)}"
            )
        if tensor.ndim != like.ndim or (not is_sequence(like) and tensor.shape[1:] != like.shape[1:]):
            shape = ", ".join(["n", *map(str, like.shape[1:])])
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}, but the network was prepared for ({shape}). "
                f"{cure_of_shape(name, tensor, like)}"
            )
    return {name: inputs[name] for name in expected} if isinstance(inputs, Mapping) else inputs


def _by_name_or_position(inputs: Inputs, example: Inputs, names: Sequence[str]) -> Inputs:
    """Inputs by name instead of by position, or by position instead of by name, as in the example, if names tell."""
    first = names[: len(tensors_of(example))]
    if isinstance(inputs, Mapping) and not isinstance(example, Mapping) and set(inputs) == set(first):
        by_position = tuple(inputs[name] for name in first)
        return by_position[0] if isinstance(example, torch.Tensor) else by_position
    if isinstance(example, Mapping) and not isinstance(inputs, Mapping) and set(example) == set(first):
        tensors = tensors_of(inputs)
        return dict(zip(first, tensors, strict=True)) if len(tensors) == len(first) else inputs
    return inputs


def _form(inputs: Inputs) -> str:
    return " by name" if isinstance(inputs, Mapping) else ""


def _cure_of_names(inputs: Inputs, example: Inputs) -> str:
    given, expected = named_tensors(inputs), named_tensors(example)
    if not isinstance(inputs, Mapping) and not isinstance(example, Mapping):
        return cure_of_parts(given, expected)
    if isinstance(inputs, Mapping) and set(expected) < set(given):
        return f"Leave out {[name for name in given if name not in expected]}."
    return PREPARE_AGAIN


#: One input of a network: a tensor, several positional tensors, or tensors by keyword.
Inputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call the network on one input."""
    args, kwargs = as_arguments(model, inputs)
    return model(*args, **kwargs)


def as_arguments(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that pass the input to a network.

    An input that does not fit the parameters of ``forward`` is passed as one argument, a batch, if ``forward`` has one.
    """
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    if not _takes(model, args, kwargs) and _takes(model, (inputs,), {}):
        return (inputs,), {}
    return args, kwargs


def _takes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs) -> Inputs:
    """Apply a function to each tensor of an input."""
    if isinstance(inputs, torch.Tensor):
        return function(inputs)
    if isinstance(inputs, tuple):
        return tuple(function(value) for value in inputs)
    return {name: function(value) for name, value in inputs.items()}


def with_tensors(inputs: Inputs, tensors: Sequence[torch.Tensor]) -> Inputs:
    """An input with other tensors."""
    if isinstance(inputs, torch.Tensor):
        return tensors[0]
    return dict(zip(inputs, tensors, strict=True)) if isinstance(inputs, Mapping) else tuple(tensors)


def tensors_of(inputs: Inputs) -> list[torch.Tensor]:
    """The tensors of an input."""
    if isinstance(inputs, torch.Tensor):
        return [inputs]
    return list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
