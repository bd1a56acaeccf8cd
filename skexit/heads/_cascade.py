"""Heads that pass their last hidden layer to the next head: one network over all exits, trained together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skexit._nn._dense import DenseNetwork, build, kept_units, torch_generator
from skexit._nn._mini_batches import ReadRows, Training, add_offset, keep_in_memory, minimize, scaling
from skexit._nn._plain_torch import plain_torch
from skexit.heads._distillation import HeadLoss

if TYPE_CHECKING:
    import torch

#: Largest absolute value of a standardised feature; half precision ends at 65504.
_LARGEST = 1e4


@plain_torch()
def train_cascade(
    read: ReadRows,
    loss: HeadLoss,
    sample_weight: NDArray[np.float64],
    *,
    widths: Sequence[int],
    hidden_layer_sizes: Sequence[int],
    n_classes: int,
    dropout: float,
    training: Training,
    random_state: np.random.RandomState,
    offset: ReadRows | None = None,
    description: str | None = None,
) -> list[DenseNetwork]:
    """Train heads whose inputs are the features of their exit and the last hidden layer of the previous head.

    The loss is the sum over all heads, so that an early layer also learns what later heads use. `read` takes row
    numbers and returns the features of all heads side by side, of shape (n_rows, sum(widths)). `offset` returns logits
    of shape (n_rows, n_classes), to which the loss adds the logits of each head. The inputs of each returned network
    but the first are the features, followed by the last hidden layer of the previous head.
    """
    import torch

    rows = np.arange(len(sample_weight))
    mean, scale = scaling(read, rows, training.batch_size)
    model = Cascade(widths, hidden_layer_sizes, n_classes, dropout, torch_generator(random_state))

    def read_scaled(batch: NDArray[np.int64]) -> torch.Tensor:
        return torch.as_tensor(np.clip((read(batch) - mean) / scale, -_LARGEST, _LARGEST), dtype=torch.float32)

    read_inputs = keep_in_memory(read_scaled, len(rows), len(mean), allow_half=True)
    relative_weight = torch.as_tensor(sample_weight / sample_weight.mean(), dtype=torch.float32)

    def mean_loss(batch: NDArray[np.int64]) -> torch.Tensor:
        logits = add_offset(model(read_inputs(batch)), offset, batch)
        return loss(logits, batch) @ relative_weight[batch] / len(batch)

    minimize(
        mean_loss,
        model.parameters(),
        rows,
        rows[:0],
        np.ones(len(rows)),  # mean_loss multiplies by the weights
        training=training.with_enough_steps(len(rows)),
        random_state=random_state,
        description=description,
    )
    return model.to_dense(mean, scale)


class Cascade:
    """The network of all heads, in torch."""

    def __init__(
        self,
        widths: Sequence[int],
        hidden_layer_sizes: Sequence[int],
        n_classes: int,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        import torch
        from torch import nn

        from skexit.heads._cascade_gradient import parts

        self.widths, self.hidden_layer_sizes = list(widths), list(hidden_layer_sizes)
        n_seen = [width + hidden_layer_sizes[-1] * (k > 0) for k, width in enumerate(widths)]
        networks = [build([n_inputs, *hidden_layer_sizes, n_classes], generator) for n_inputs in n_seen]
        layers = [[layer for layer in network if isinstance(layer, nn.Linear)] for network in networks]
        heads = [[(layer.weight, layer.bias) for layer in network] for network in layers]
        # The parameters of all heads are parts of two tensors, because each tensor takes time in every step.
        weights = torch.cat([weight.detach().flatten() for head in heads for weight, _ in head])[None]
        biases = torch.cat([bias.detach() for head in heads for _, bias in head])
        self.heads = parts(heads, weights.detach(), biases.detach())
        self._parameters = [weights.requires_grad_(), biases.requires_grad_()]
        self.dropout = dropout
        self.generator = generator

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of all heads, of shape (n_heads, n_samples, n_classes), with dropout of hidden units."""
        from skexit.heads._cascade_gradient import CascadeLogits

        sizes = [(len(features), size) for _ in self.heads for size in self.hidden_layer_sizes]
        kept = kept_units(sizes, self.dropout, self.generator)
        return CascadeLogits.apply(features.float(), self.widths, kept, self.heads, *self._parameters)

    def parameters(self) -> list[torch.Tensor]:
        """The tensor of all weights, and the tensor of all biases."""
        return self._parameters

    def to_dense(self, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> list[DenseNetwork]:
        """The heads in NumPy, for features that are not standardised."""
        dense = []
        starts = np.cumsum([0, *self.widths])
        for k, head in enumerate(self.heads):
            own, n_hidden = slice(starts[k], starts[k + 1]), head[0][0].shape[1] - self.widths[k]
            means, scales = np.append(mean[own], np.zeros(n_hidden)), np.append(scale[own], np.ones(n_hidden))
            weights = tuple(weight.numpy().T.astype(np.float64) for weight, _ in head)
            network = DenseNetwork(weights, tuple(bias.numpy().astype(np.float64) for _, bias in head))
            dense.append(network.after_scaling(means, scales))
        return dense
