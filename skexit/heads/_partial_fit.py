"""Training of heads in several calls. The state between calls consists of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skexit._nn._dense import DenseNetwork, Moments, build, hidden_units, to_dense, torch_generator
from skexit._nn._mini_batches import adam_groups, batches, weights_and_biases
from skexit._nn._plain_torch import plain_torch
from skexit.data import ExitArray
from skexit.data._validation import read_features
from skexit.heads._cascade import Cascade
from skexit.heads._distillation import Distillation, HeadLoss, distillation_of
from skexit.heads._training import HeadTraining
from skexit.utils._module_names import set_module
from skexit.utils._threads import one_torch_thread

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]

#: Smallest number of steps in a call; batches are smaller if there are few rows.
_FEWEST_STEPS = 10
#: The learning rate is proportional to ``1 / sqrt(1 + step / _SLOW_STEPS)``.
_SLOW_STEPS = 1000.0
#: Step t enters the average of the weights with a share of about this number divided by t, and at most 1. So the first
#: steps lose their influence.
_AVERAGE_WEIGHT = 9.0


@set_module("skexit.persistence")
@dataclass
class OptimizerState:
    """Adam's state, and an average of the weights over the steps.

    The average replaces a learning rate that falls to zero, because the number of steps is not known. The lists have
    one array per parameter: its value, Adam's first and second moments, and the average.
    """

    n_steps: int = 0
    parameters: list[NDArray[np.float32]] = field(default_factory=list)
    first: list[NDArray[np.float32]] = field(default_factory=list)
    second: list[NDArray[np.float32]] = field(default_factory=list)
    average: list[NDArray[np.float32]] = field(default_factory=list)


def take_steps(
    loss: Callable[[NDArray[np.int64]], torch.Tensor],
    parameters: Sequence[torch.Tensor],
    state: OptimizerState,
    rows: NDArray[np.int64],
    *,
    learning_rate: float,
    l2: float,
    batch_size: int,
    random_state: np.random.RandomState,
) -> OptimizerState:
    """Pass once over the rows in random order, starting from the state after the last call; return the new state.

    `loss` takes row numbers and returns the mean loss of these rows. Parameters are changed in place: at first to the
    values in `state`, unless it has no steps, and at the end to their average over all steps, in which late steps count
    more. Parameters with two dimensions are penalised. The learning rate falls as one over the square root of the
    steps. Batches are smaller if there would be fewer than ten steps.
    """
    import torch

    groups = adam_groups(*weights_and_biases(parameters), l2)
    optimizer = torch.optim.Adam(groups, lr=learning_rate, fused=True)
    average = [parameter.detach().clone() for parameter in parameters]
    if state.n_steps:
        _restore(optimizer, parameters, average, state)
    n_steps = state.n_steps
    batch_size = max(1, min(batch_size, -(-len(rows) // _FEWEST_STEPS)))
    with one_torch_thread():
        for batch in batches(random_state.permutation(rows), batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate / np.sqrt(1 + n_steps / _SLOW_STEPS)
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
            n_steps += 1
            share = min(1.0, _AVERAGE_WEIGHT / (n_steps + _AVERAGE_WEIGHT - 1))
            for mean, parameter in zip(average, parameters, strict=True):
                mean.lerp_(parameter.detach(), share)
    kept = OptimizerState(
        n_steps,
        _arrays(parameters),
        _arrays([optimizer.state[parameter]["exp_avg"] for parameter in parameters] if n_steps else []),
        _arrays([optimizer.state[parameter]["exp_avg_sq"] for parameter in parameters] if n_steps else []),
        _arrays(average),
    )
    for parameter, mean in zip(parameters, average, strict=True):
        parameter.data.copy_(mean)
    return kept


def _restore(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.Tensor],
    average: Sequence[torch.Tensor],
    state: OptimizerState,
) -> None:
    import torch

    for index, parameter in enumerate(parameters):
        parameter.data.copy_(torch.as_tensor(state.parameters[index]))
        average[index].copy_(torch.as_tensor(state.average[index]))
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.n_steps)),
            "exp_avg": torch.tensor(state.first[index]),
            "exp_avg_sq": torch.tensor(state.second[index]),
        }


def _arrays(tensors: Sequence[torch.Tensor]) -> list[NDArray[np.float32]]:
    return [tensor.detach().numpy().copy() for tensor in tensors]


@set_module("skexit.persistence")
@dataclass
class PartialFit:
    """State of heads between calls of ``partial_fit``.

    A row that is passed several times counts several times in `n_rows` and `total_weight`. `moments` are the moments of
    the inputs of the networks.
    """

    seed: int
    n_calls: int = 0
    n_rows: int = 0
    total_weight: float = 0.0
    optimizer: OptimizerState = field(default_factory=OptimizerState)
    moments: Moments = field(default_factory=Moments)

    @classmethod
    def start(cls, random_state: np.random.RandomState) -> PartialFit:
        """The state before the first call."""
        return cls(seed=int(random_state.randint(2**31 - 1)))

    def next_call(self, weight: Floats) -> PartialFit:
        """The state with the rows of one more call counted."""
        return replace(
            self,
            n_calls=self.n_calls + 1,
            n_rows=self.n_rows + len(weight),
            total_weight=self.total_weight + float(weight.sum()),
        )

    def standardise(self, values: NDArray[Any]) -> tuple[Moments, torch.Tensor]:
        """Moments of all inputs so far, including `values`, and `values` standardised by these moments."""
        import torch

        moments = self.moments.add(values, np.ones(len(values)))
        mean, scale = moments.scaling()
        return moments, torch.as_tensor((values - mean) / scale, dtype=torch.float32)

    def relative(self, weight: Floats) -> torch.Tensor:
        """Weights of the rows of this call, divided by the mean weight of all rows so far."""
        import torch

        return torch.as_tensor(weight / (self.total_weight / self.n_rows), dtype=torch.float32)

    def random_state(self) -> np.random.RandomState:
        """Random state of this call, which depends on the seed and the number of calls."""
        return np.random.RandomState([self.seed, self.n_calls])


class SeparateNetworks:
    """Independent networks, each on some columns of the inputs; `layers` are the widths after the inputs."""

    def __init__(
        self, columns: Sequence[slice], layers: Sequence[int], generator: torch.Generator, dropout: float
    ) -> None:
        self.columns, self.dropout, self.generator = columns, dropout, generator
        self.networks = [build([own.stop - own.start, *layers], generator) for own in columns]

    def __call__(self, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        for network, own in zip(self.networks, self.columns, strict=True):
            yield network[-1](hidden_units(network, inputs[:, own], self.dropout, self.generator))

    def parameters(self) -> list[torch.Tensor]:
        """Weights and biases of all networks."""
        return [parameter for network in self.networks for parameter in network.parameters()]

    def to_dense(self, mean: Floats, scale: Floats) -> list[DenseNetwork]:
        """The networks in NumPy, for inputs that are not standardised."""
        return [
            to_dense(network).after_scaling(mean[own], scale[own])
            for network, own in zip(self.networks, self.columns, strict=True)
        ]


@plain_torch()
def train_further(
    X: ExitArray,
    labels: NDArray[np.int64],
    weight: NDArray[np.float64],
    state: PartialFit,
    n_classes: int,
    settings: HeadTraining,
    distillation: Distillation | None,
) -> tuple[PartialFit, list[DenseNetwork | None]]:
    """Train the heads of all exits without logits in one pass over these rows; return the new state and the heads."""
    import torch

    networks: list[DenseNetwork | None] = [None] * X.layout.n_exits
    trained = [k for k in range(X.layout.n_exits) if not X.layout.has_logits(k)]
    if not trained:
        return state, networks
    hidden_layer_sizes, cascade = settings.hidden_layer_sizes, settings.cascade
    read = list(range(trained[-1] + 1)) if cascade and not hidden_layer_sizes else trained
    features = np.concatenate([read_features(X, k) for k in read], axis=1)
    moments, inputs = state.standardise(features)
    random_state = state.random_state()
    generator = torch_generator(random_state)
    widths, dropout = [X.layout.n_features[k] for k in read], settings.dropout_share(state.n_rows)
    model: Cascade | SeparateNetworks
    if cascade and hidden_layer_sizes:
        model = Cascade(widths, hidden_layer_sizes, n_classes, dropout, generator)
    else:
        ends = np.cumsum([0, *widths]).tolist()
        columns = [slice(0 if cascade else ends[read.index(k)], ends[read.index(k) + 1]) for k in trained]
        model = SeparateNetworks(columns, [*hidden_layer_sizes, n_classes], generator, dropout)
    losses = HeadLoss(labels, n_classes, distillation_of(distillation, trained))
    relative_weight = state.relative(weight)

    def loss(batch: NDArray[np.int64]) -> torch.Tensor:
        logits = torch.stack(list(model(inputs[batch])))
        return (losses(logits, batch) * relative_weight[batch]).mean()

    optimizer = take_steps(
        loss,
        model.parameters(),
        state.optimizer,
        np.arange(len(labels)),
        learning_rate=settings.learning_rate,
        l2=settings.penalty(state.n_rows),
        batch_size=settings.batch_size,
        random_state=random_state,
    )
    for k, network in zip(trained, model.to_dense(*moments.scaling()), strict=True):
        networks[k] = network
    return replace(state, optimizer=optimizer, moments=moments), networks
