"""What a network or a head gives: its logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

_PLAIN = {torch.Tensor, nn.Parameter, nn.Buffer}


def logits_in(output: Any) -> Any:
    """The ``logits`` of a network's output, or the output itself where it names none; None where a dict has none."""
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)


def two_logits(logits: Any) -> Any:
    """Logits [0, z] in place of the one, z, of a binary network; a vector is taken for a column. Others as they are."""
    if not isinstance(logits, torch.Tensor):
        return logits
    if logits.ndim == 1:
        logits = logits.unsqueeze(1)
    return nn.functional.pad(logits, (1, 0)) if logits.shape[-1] == 1 and logits.ndim == 2 else logits


def as_logits(output: Any, source: str, advice: str) -> torch.Tensor:
    """The logits in what a network or a head gave, two where it gave one.

    Raises a ValueError, which names the source and ends with the advice, if they are no matrix.
    """
    logits = two_logits(logits_in(output))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else ""
        raise ValueError(
            f"{source} gave {type(output).__name__}{shape}, which has no logits of shape (n_samples, n_classes){advice}"
        )
    return logits


def first_tensor(output: Any) -> torch.Tensor:
    """The output itself, or the first tensor in it; a ValueError if there is none."""
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
    """Whether tensors of these types are torch's own, and none that call operators on tensors inside."""
    return _PLAIN.issuperset(types)
