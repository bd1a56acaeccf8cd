"""Compare the stages of a network with the network itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from skexit.backbone._channels import axes_of_rows
from skexit.backbone._inputs import Inputs, call, map_tensors, tensors_of
from skexit.backbone._modules import hook_calls
from skexit.backbone._outputs import first_tensor, logits_in, two_logits
from skexit.backbone._own_logits import OwnLogits
from skexit.backbone._rows import rows_first, select_rows
from skexit.backbone._stages import Stage

#: Number of samples in the random input. After each exit, one is dropped, as long as there are several.
_N_SAMPLES = 4
#: Largest difference that rounding may make, relative to the largest value.
_TOLERANCE = 1e-3


def check_against_plain_network(
    model: nn.Module, exits: Sequence[str], stages: Sequence[Stage], own: OwnLogits | None, example_input: Inputs
) -> None:
    """Raise a ValueError unless the stages, with samples dropped between them, give the outputs of the network.

    The inputs are random, and have the form of the example. `own` has the places of exits' logits in the network's
    output; if it is None, the logits in the output are those of the last exit.
    """
    inputs = random_inputs(example_input)
    expected, output = _run_plain(model, exits, inputs)
    axes = axes_of_rows(model, exits, inputs)
    logits = _logits_of_exits(own, len(exits), output)
    first, *side = tensors_of(inputs)
    tensors, rows = [first], torch.arange(_N_SAMPLES, device=first.device)
    for k, (name, stage) in enumerate(zip(exits, stages, strict=True)):
        tensors = stage.network(*tensors, *side)
        if not _agree(tensors[0], rows_first(expected[k], axes[name])[rows]):
            raise _not_divided(f"its part up to {name!r}")
        of_exit = logits[k]
        if (
            of_exit is not None
            and stage.logits is not None
            and not _agree(stage.logits(*tensors, *side), of_exit[rows])
        ):
            raise _not_divided(f"its logits of {name!r}")
        if len(rows) > 1:
            kept = torch.arange(len(rows) - 1, -1, -1, device=rows.device)[:-1]
            tensors, side, rows = select_rows(tensors, kept), select_rows(side, kept), rows[kept]


def _not_divided(part: str) -> ValueError:
    return ValueError(
        f"the network cannot be divided at its exits: on random inputs, {part} gives other values than the plain "
        "network. A tensor goes around an exit, the samples of a batch depend on one another, or the network draws "
        "random numbers. Name exits through which all tensors pass."
    )


def _agree(value: torch.Tensor, expected: torch.Tensor) -> bool:
    if value.shape != expected.shape:
        return False
    largest = expected.abs().max().item() if expected.numel() else 0.0
    return torch.allclose(value.float(), expected.float(), rtol=_TOLERANCE, atol=_TOLERANCE * largest, equal_nan=True)


def random_inputs(example_input: Inputs) -> Inputs:
    """Random numbers in the shapes of the example; for integers, rows of the example."""
    device = tensors_of(example_input)[0].device
    generator = torch.Generator(device).manual_seed(0)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(_N_SAMPLES, device=device) % len(tensor)
        if tensor.is_floating_point():
            noise = torch.randn(tensor[rows].shape, generator=generator, device=device)
            return noise.to(tensor.dtype)
        # Whole rows of the example, because inputs such as masks have a form.
        return tensor[rows]

    return map_tensors(draw, example_input)


def _logits_of_exits(own: OwnLogits | None, n_exits: int, output: Any) -> Sequence[torch.Tensor | None]:
    """Logits of the exits in a network's output."""
    if own is not None:
        return own.read(output)
    logits = two_logits(logits_in(output))
    return [None] * (n_exits - 1) + [logits if isinstance(logits, torch.Tensor) else None]


def _run_plain(model: nn.Module, exits: Sequence[str], inputs: Inputs) -> tuple[list[torch.Tensor], Any]:
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(first_tensor(output).clone())  # the network may change it in place afterwards

    with ExitStack() as hooks:
        for name in exits:
            hooks.enter_context(hook_calls(model, name, keep))
        output = call(model, map_tensors(torch.clone, inputs))  # it may change them in place
    return outputs, output
