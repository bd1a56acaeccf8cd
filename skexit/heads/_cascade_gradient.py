"""Logits of a cascade of heads, and their gradient. torch's autograd would take longer than the computation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

#: Weights and biases of the layers of a head.
Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]


class CascadeLogits(torch.autograd.Function):
    """Logits of all heads, of shape (n_heads, n_samples, n_classes).

    `features` has the features of all heads side by side, with the given `widths`; they get no gradient. `kept` has the
    factors of the units of each hidden layer, zero for a unit that dropout leaves out. The parameters of `heads` are
    parts of `weights`, of shape (1, n_weights), and of `biases`, of shape (n_biases,), in this order.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        widths: Sequence[int],
        kept: Sequence[torch.Tensor],
        heads: Sequence[Layers],
        weights: torch.Tensor,
        biases: torch.Tensor,
    ) -> torch.Tensor:
        ctx.heads, ctx.widths, ctx.sizes = heads, widths, (weights.shape, biases.shape)
        ctx.inputs, ctx.slopes, logits = [], [], []
        remaining, hidden = iter(kept), features[:, :0]
        for own, (*rectified, last) in zip(features.split(list(widths), dim=1), heads, strict=True):
            inputs, slopes = [torch.cat([own, hidden], dim=1)], []
            for weight, bias in rectified:
                units = torch.addmm(bias, inputs[-1], weight.t())
                slopes.append(next(remaining) * (units > 0))
                inputs.append(units.mul_(slopes[-1]))
            hidden = inputs[-1]
            ctx.inputs.append(inputs)
            ctx.slopes.append(slopes)
            logits.append(torch.addmm(last[1], hidden, last[0].t()))
        return torch.stack(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logits: torch.Tensor) -> tuple[Any, ...]:
        of_weights, of_biases = (torch.empty(size, dtype=torch.float32) for size in ctx.sizes)
        of_heads = parts(ctx.heads, of_weights, of_biases)
        of_hidden: torch.Tensor | None = None  # gradient that comes from the next head
        for k in reversed(range(len(ctx.heads))):
            of_outputs = of_logits[k]
            for layer in reversed(range(len(ctx.heads[k]))):
                weight, inputs = ctx.heads[k][layer][0], ctx.inputs[k][layer]
                torch.mm(of_outputs.t(), inputs, out=of_heads[k][layer][0])
                torch.sum(of_outputs, dim=0, out=of_heads[k][layer][1])
                if layer:
                    of_inputs = of_outputs @ weight
                    if of_hidden is not None:
                        of_inputs += of_hidden
                        of_hidden = None
                    of_outputs = of_inputs.mul_(ctx.slopes[k][layer - 1])
                elif k:
                    of_hidden = of_outputs @ weight[:, ctx.widths[k] :]
        return None, None, None, None, of_weights, of_biases


def parts(heads: Sequence[Layers], weights: torch.Tensor, biases: torch.Tensor) -> list[Layers]:
    """Split flat weights and biases into parts with the shapes of the parameters of the heads."""
    layers = [layer for head in heads for layer in head]
    split_weights = weights[0].split([weight.numel() for weight, _ in layers])
    remaining = zip(split_weights, biases.split([len(bias) for _, bias in layers]), strict=True)
    return [
        [(part.view_as(weight), bias) for (weight, _), (part, bias) in zip(head, remaining, strict=False)]
        for head in heads
    ]
