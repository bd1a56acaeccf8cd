"""Small fully connected networks: trained with torch, kept and applied without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray
from tqdm.auto import tqdm

if TYPE_CHECKING:
    import torch

#: Up to this many bytes of inputs are read once and kept; more are read for each batch.
_IN_MEMORY_BYTES = 2**30

_FEWEST_STEPS = 20

ReadRows = Callable[[NDArray[np.int64]], NDArray[Any]]


@dataclass(frozen=True)
class DenseNetwork:
    """A fully connected network with rectified linear units between its layers.

    Parameters
    ----------
    weights : tuple of ndarray of shape (n_inputs, n_outputs), one a layer
    biases : tuple of ndarray of shape (n_outputs,), one a layer
    """

    weights: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]

    def __call__(self, inputs: Any) -> Any:
        """Outputs of the last layer, as an array of the inputs' namespace, dtype and device.

        Parameters
        ----------
        inputs : array of shape (n_samples, n_inputs)

        Returns
        -------
        array of shape (n_samples, n_outputs)
        """
        xp = array_namespace(inputs)
        like = {"dtype": inputs.dtype, "device": device(inputs)}
        hidden = inputs
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                hidden = xp.where(hidden > 0, hidden, xp.zeros_like(hidden))
            hidden = hidden @ xp.asarray(weight, **like) + xp.asarray(bias, **like)
        return hidden

    @property
    def n_multiply_adds(self) -> int:
        """Multiply-adds that one sample takes."""
        return sum(weight.size for weight in self.weights)

    def after_scaling(self, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> DenseNetwork:
        """The network that takes raw inputs where this one takes ``(inputs - mean) / scale``."""
        first = self.weights[0] / scale[:, None]
        bias = self.biases[0] - mean @ first
        return DenseNetwork((first, *self.weights[1:]), (bias, *self.biases[1:]))


@dataclass(frozen=True)
class Training:
    """How `train` trains a network.

    Parameters
    ----------
    learning_rate : float
        Highest learning rate of Adam; it rises over a tenth of the steps and falls to zero.
    alpha : float
        The loss is the mean loss of the rows plus ``alpha / 2`` times the squared norm of the
        weights.
    max_epochs : int
        Passes over the training rows.
    batch_size : int
        Rows in a step; fewer where there would be less than 20 steps in an epoch.
    early_stopping : bool
        Hold out a tenth of the rows, and keep the weights of the epoch with the lowest loss there.
    """

    learning_rate: float
    alpha: float
    max_epochs: int
    batch_size: int
    early_stopping: bool = False


def train(
    read: ReadRows,
    targets: NDArray[Any],
    sample_weight: NDArray[np.float64],
    *,
    hidden: Sequence[int],
    n_outputs: int,
    training: Training,
    random_state: np.random.RandomState,
    description: str | None = None,
) -> DenseNetwork:
    """Train a network by mini-batches that are read when they are needed.

    Parameters
    ----------
    read : callable
        Takes row numbers and returns the inputs of these rows, of shape (n_rows, n_inputs).
    targets : ndarray of shape (n_samples,)
        Class indices, for the cross-entropy, or when `n_outputs` is 1 probabilities, for the
        binary cross-entropy.
    sample_weight : ndarray of shape (n_samples,)
    hidden : sequence of int
        Width of each hidden layer; none gives a linear network.
    n_outputs : int
    training : Training
    random_state : RandomState
    description : str, default=None
        Label of a progress bar; None shows none.

    Returns
    -------
    DenseNetwork
    """
    import torch

    n_samples = len(targets)
    rows = random_state.permutation(n_samples)
    n_held_out = n_samples // 10 if training.early_stopping else 0
    held_out, rows = rows[:n_held_out], rows[n_held_out:]
    mean, scale = _scaling(read, rows, training.batch_size)
    generator = torch.Generator().manual_seed(int(random_state.randint(2**31 - 1)))
    model = _build([len(mean), *hidden, n_outputs], generator)
    target_type = torch.float32 if n_outputs == 1 else torch.int64

    def read_scaled(batch: NDArray[np.int64]) -> torch.Tensor:
        return torch.as_tensor((read(batch) - mean) / scale, dtype=torch.float32)

    read_inputs = _keep_in_memory(read_scaled, n_samples, len(mean))

    def loss(batch: NDArray[np.int64]) -> torch.Tensor:
        inputs = read_inputs(batch)
        target = torch.as_tensor(targets[batch], dtype=target_type)
        weight = torch.as_tensor(sample_weight[batch], dtype=torch.float32)
        return (_losses(model(inputs), target) * weight).sum() / weight.sum()

    batch_size = min(training.batch_size, -(-len(rows) // _FEWEST_STEPS))
    n_batches = -(-len(rows) // batch_size)
    n_steps = n_batches * training.max_epochs + 1
    parameters = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": training.alpha},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.Adam(parameters, lr=training.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=training.learning_rate,
        total_steps=n_steps,
        pct_start=max(0.1, 1.5 / n_steps),  # where the rise would end at step 0, OneCycleLR divides by zero
    )
    best_loss, best = np.inf, _to_dense(model)
    epochs = tqdm(range(training.max_epochs), desc=description, unit="epoch", disable=description is None, leave=False)
    with one_thread():
        for _ in epochs:
            for batch in _batches(random_state.permutation(rows), batch_size):
                optimizer.zero_grad()
                loss(batch).backward()
                optimizer.step()
                schedule.step()
            if n_held_out:
                held_out_loss = _mean_loss(loss, held_out, sample_weight, training.batch_size)
                epochs.set_postfix(held_out_loss=f"{held_out_loss:.4f}")
                if held_out_loss < best_loss:
                    best_loss, best = held_out_loss, _to_dense(model)
    return (best if n_held_out else _to_dense(model)).after_scaling(mean, scale)


@contextmanager
def one_thread() -> Iterator[None]:
    """Small steps gain nothing from threads, and the result then does not depend on their number."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def weighted_scaling(
    batches: Iterator[tuple[NDArray[Any], NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean and standard deviation of columns, in one pass; 1 where a column is constant.

    Parameters
    ----------
    batches : iterator of (ndarray of shape (n_rows, n_columns), ndarray of shape (n_rows,))
        Rows and their weights.

    Returns
    -------
    mean, scale : ndarray of shape (n_columns,)
    """
    total, mean, squares = 0.0, np.zeros(0), np.zeros(0)
    for values, weight in batches:
        if not len(mean):
            mean, squares = np.zeros(values.shape[1]), np.zeros(values.shape[1])
        # Chan, Golub and LeVeque's update: no cancellation, whatever the mean.
        mass = weight.sum()
        batch_mean = weight @ values / mass
        deviation = batch_mean - mean
        squares += weight @ (values - batch_mean) ** 2 + deviation**2 * total * mass / (total + mass)
        mean += deviation * mass / (total + mass)
        total += mass
    scale = np.sqrt(squares / total)
    constant = scale <= 10 * np.finfo(np.float64).eps * np.maximum(np.abs(mean), 1)
    return mean, np.where(constant, 1.0, scale)


def _scaling(read: ReadRows, rows: NDArray[np.int64], batch_size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    chunks = _batches(np.sort(rows), max(batch_size, 4096))
    return weighted_scaling((read(chunk).astype(np.float64), np.ones(len(chunk))) for chunk in chunks)


def _keep_in_memory(
    read: Callable[[NDArray[np.int64]], torch.Tensor], n_samples: int, n_inputs: int
) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    if 4 * n_samples * n_inputs > _IN_MEMORY_BYTES:
        return read
    inputs = read(np.arange(n_samples))
    return lambda batch: inputs[batch]


def _batches(rows: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def _build(sizes: Sequence[int], generator: torch.Generator) -> torch.nn.Sequential:
    from torch import nn

    layers: list[nn.Module] = []
    for n_inputs, n_outputs in pairwise(sizes):
        # Without skip_init, the default initialisation draws from torch's global generator.
        layer = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs)
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _losses(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    if outputs.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")
    return functional.cross_entropy(outputs, targets, reduction="none")


def _mean_loss(loss: Callable[..., Any], rows: NDArray[np.int64], weight: NDArray[Any], batch_size: int) -> float:
    import torch

    with torch.no_grad():
        losses = [loss(batch).item() for batch in _batches(rows, batch_size)]
    return float(np.average(losses, weights=[weight[batch].sum() for batch in _batches(rows, batch_size)]))


def _to_dense(model: torch.nn.Sequential) -> DenseNetwork:
    from torch import nn

    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    return DenseNetwork(
        tuple(layer.weight.detach().numpy().T.astype(np.float64) for layer in linear),
        tuple(layer.bias.detach().numpy().astype(np.float64) for layer in linear),
    )
