"""What extraction and costs both need to know about a network: its modules, its inputs, its state."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import nn

#: One input of a network: a tensor, several positional tensors, or tensors by keyword.
Inputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, Any]

#: The `head` parameter: the network's own output, none, or one module name or None an exit.
Head: TypeAlias = str | Sequence[str | None] | None

#: The head that is the network's own output rather than a module.
NETWORK_OUTPUT = "output"


def find_modules(model: nn.Module, names: Sequence[str], parameter: str) -> list[nn.Module]:
    """Find submodules by name.

    Raises
    ------
    ValueError
        If there are no names, a name is repeated, or the network has no such module.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"{parameter}={names!r} must be a list of at least one module name.")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{parameter} names {repeated[0]!r} more than once; name each module once.")
    modules = dict(model.named_modules(remove_duplicate=False))
    modules.pop("")
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(str(name), modules, n=3, cutoff=0.0)
            raise ValueError(
                f"{parameter} names {name!r}, which the network does not have. The nearest names are {near}; "
                "model.named_modules() gives them all."
            )
    return [modules[name] for name in names]


def resolve_heads(model: nn.Module, head: Head, n_exits: int) -> list[str | None]:
    """One head for each exit: a module name, ``"output"``, or None.

    Raises
    ------
    ValueError
        If `head` has not one entry for each exit or names an unknown module.
    """
    if head is None or head == NETWORK_OUTPUT:
        return [None] * (n_exits - 1) + [head]
    if isinstance(head, str) or len(head) != n_exits:
        raise ValueError(
            f"head={head!r} must be 'output', None, or a list with a module name or None for each of {n_exits} exits."
        )
    if names := own_heads(head).values():
        find_modules(model, list(names), "head")
    return list(head)


def own_heads(heads: Sequence[str | None]) -> dict[int, str]:
    """The heads that are modules, by exit."""
    return {k: name for k, name in enumerate(heads) if name is not None and name != NETWORK_OUTPUT}


def check_called_once(called: Sequence[str], names: Sequence[str], parameter: str) -> None:
    """Raise a ValueError unless a forward pass called each of the modules exactly once."""
    counts = Counter(called)
    for name in names:
        if counts[name] != 1:
            raise ValueError(
                f"{parameter} names {name!r}, which the forward pass calls {counts[name]} times; "
                "name modules that are called exactly once for each input."
            )


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call the network on one input."""
    args, kwargs = as_arguments(inputs)
    return model(*args, **kwargs)


def as_arguments(inputs: Inputs) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Positional and keyword arguments that pass the input to a network."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def logits_in(output: Any) -> Any:
    """The ``logits`` of a network's output, or the output itself where it names none; None where a dict has none."""
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)


def as_logits(output: Any, source: str, advice: str) -> torch.Tensor:
    """The logits in what a network or a head gave.

    Raises a ValueError, which names the source and ends with the advice, if they are no matrix.
    """
    logits = logits_in(output)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else ""
        raise ValueError(
            f"{source} gave {type(output).__name__}{shape}, which has no logits of shape (n_samples, n_classes){advice}"
        )
    return logits


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


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer, the CPU for a network that has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each submodule's own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
