"""Logits and other tensors in the output of a network or a head."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

_PLAIN = {torch.Tensor, nn.Parameter, nn.Buffer}


def logits_in(output: Any) -> Any:
    """The ``logits`` of a network's output, or the output itself if it has none; None for a dict without logits.

    In a tuple without names, such as (logits, loss) or (logits, hidden states), the logits are the first tensor, if
    it is a matrix and no other tensor has its shape.
    """
    if isinstance(output, Mapping):
        return output.get("logits")
    if isinstance(output, list | tuple) and not hasattr(output, "logits") and _begins_with_logits(output):
        return output[0]
    return getattr(output, "logits", output)


def _begins_with_logits(output: Sequence[Any]) -> bool:
    first, *others = output or [None]
    if not isinstance(first, torch.Tensor) or first.ndim != 2 or not first.is_floating_point():
        return False
    return all(tensor.shape != first.shape for tensor in tensors_in(others))


def two_logits(logits: Any) -> Any:
    """Logits [0, z] instead of the single logit z of a binary network, also in a vector; other outputs unchanged."""
    if not isinstance(logits, torch.Tensor):
        return logits
    if logits.ndim == 1:
        logits = logits.unsqueeze(1)
    return nn.functional.pad(logits, (1, 0)) if logits.shape[-1] == 1 and logits.ndim == 2 else logits


def as_logits(output: Any, source: str, advice: str) -> torch.Tensor:
    """The logits in the output of a network or a head; two if it has one.

    Raises a ValueError, which names the source and ends with the advice, if they are not a matrix.
    """
    logits = two_logits(logits_in(output))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else ""
        raise ValueError(
            f"{source} gave {type(output).__name__}{shape}, which has no logits of shape (n_samples, n_classes){advice}"
        )
    return logits


def first_tensor(output: Any) -> torch.Tensor:
    """The output itself, or the first tensor in it. Raises a ValueError if there is none."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    if isinstance(values, Sequence) or isinstance(output, Mapping):
        for value in values:
            if isinstance(value, torch.Tensor):
                return value
    raise ValueError(f"an exit gave {type(output).__name__}, which has no tensor; name another module.")


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples, mappings and dataclasses, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for part in value.values() for tensor in tensors_in(part)]
    if isinstance(value, list | tuple | set):
        return [tensor for part in value for tensor in tensors_in(part)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [tensor for field in dataclasses.fields(value) for tensor in tensors_in(getattr(value, field.name))]
    return []


def tensors_among(arguments: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors among the arguments or results of an operator, and in lists of them."""
    found: list[torch.Tensor] = []
    for value in arguments:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [part for part in value if isinstance(part, torch.Tensor)]
    return found


def are_plain(types: Iterable[type]) -> bool:
    """Whether these are torch's own types of tensors, not subclasses that call operators on inner tensors."""
    return _PLAIN.issuperset(types)
