"""Heads that pass on what they have seen: one network over all exits, trained together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skexit._nn._dense import DenseNetwork, build, hidden_units, to_dense, torch_generator
from skexit._nn._mini_batches import ReadRows, Training, add_offset, keep_in_memory, minimize, scaling

if TYPE_CHECKING:
    import torch

#: Largest size of a standardised feature; half precision ends at 65504.
_LARGEST = 1e4


def train_cascade(
    read: ReadRows,
    targets: NDArray[np.int64],
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
    """Train heads whose hidden layers see the features of their exit and the last hidden layer before.

    The loss is the sum of the cross-entropies of all heads, so that an early layer also learns what later heads make
    use of. `read` takes row numbers and returns the features of all heads side by side, of shape (n_rows, sum(widths));
    `offset` returns what the logits of each head are added to in the loss, of shape (n_rows, n_classes). After the
    first network, inputs are the features and the last hidden layer of the head before.
    """
    import torch
    from torch.nn import functional

    rows = np.arange(len(targets))
    mean, scale = scaling(read, rows, training.batch_size)
    model = Cascade(widths, hidden_layer_sizes, n_classes, dropout, torch_generator(random_state))

    def read_scaled(batch: NDArray[np.int64]) -> torch.Tensor:
        return torch.as_tensor(np.clip((read(batch) - mean) / scale, -_LARGEST, _LARGEST), dtype=torch.float32)

    read_inputs = keep_in_memory(read_scaled, len(targets), len(mean), allow_half=True)
    relative_weight = torch.as_tensor(sample_weight / sample_weight.mean(), dtype=torch.float32)

    def loss(batch: NDArray[np.int64]) -> torch.Tensor:
        target = torch.as_tensor(targets[batch])
        outputs = [add_offset(logits, offset, batch) for logits in model(read_inputs(batch))]
        losses = [functional.cross_entropy(logits, target, reduction="none") for logits in outputs]
        return (sum(losses) * relative_weight[batch]).mean()

    minimize(
        loss,
        model.parameters(),
        rows,
        rows[:0],
        np.ones(len(targets)),  # the loss has the weights
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
        self.widths = list(widths)
        self.n_seen = [width + hidden_layer_sizes[-1] * (k > 0) for k, width in enumerate(widths)]
        self.heads = [build([n_seen, *hidden_layer_sizes, n_classes], generator) for n_seen in self.n_seen]
        self.dropout = dropout
        self.generator = generator

    def __call__(self, features: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits of one head after another, with some hidden units left out."""
        import torch

        hidden = features[:, :0].float()
        for head, own in zip(self.heads, features.split(self.widths, dim=1), strict=True):
            hidden = hidden_units(head, torch.cat([own.float(), hidden], dim=1), self.dropout, self.generator)
            yield head[-1](hidden)

    def parameters(self) -> list[torch.Tensor]:
        return [parameter for head in self.heads for parameter in head.parameters()]

    def to_dense(self, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> list[DenseNetwork]:
        """The heads for features that are not standardised, as plain NumPy."""
        dense = []
        starts = np.cumsum([0, *self.widths])
        for k, head in enumerate(self.heads):
            own = slice(starts[k], starts[k + 1])
            n_hidden = self.n_seen[k] - self.widths[k]
            means, scales = np.append(mean[own], np.zeros(n_hidden)), np.append(scale[own], np.ones(n_hidden))
            dense.append(to_dense(head).after_scaling(means, scales))
        return dense
