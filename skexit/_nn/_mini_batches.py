"""Training by mini-batches, whose rows are read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skexit._nn._dense import DenseNetwork, build, to_dense, torch_generator, weighted_scaling
from skexit._nn._plain_torch import plain_torch
from skexit.utils._threads import one_torch_thread

if TYPE_CHECKING:
    import torch

#: Inputs of up to this many bytes are read once and stay in memory. Larger ones are read again for each batch.
_IN_MEMORY_BYTES = 2**29

#: Up to `_SHUFFLED_AT_ONCE` rows are shuffled as single rows. More rows are shuffled in blocks of `_BLOCK_ROWS`
#: neighbours, and the rows of `_MIXED_BLOCKS` blocks at a time are mixed, so that steps read rows that are near one
#: another on the disk.
_SHUFFLED_AT_ONCE, _BLOCK_ROWS, _MIXED_BLOCKS = 2**18, 64, 1024
#: Number of rows from which the mean and standard deviation of an input, or a regression on it, are computed.
_ENOUGH_ROWS = 10**5
#: With ``max_epochs="auto"``: number of rows times number of epochs.
_ENOUGH_VISITS = 1_500_000

#: Fewest steps in an epoch.
_FEWEST_STEPS = 20
#: When all rows are read in chunks, each chunk has at most so many rows and so many numbers.
_CHUNK_ROWS, _CHUNK_NUMBERS = 2048, 2**22

ReadRows = Callable[[NDArray[np.int64]], NDArray[Any]]


@dataclass(frozen=True)
class Training:
    """Settings of `train`.

    Parameters
    ----------
    learning_rate : float
        Highest learning rate of Adam. The rate rises over the first tenth of the steps and then falls to 0.
    l2 : float
        The loss is the mean loss of the rows plus ``l2 / 2`` times the squared norm of the weights.
    max_epochs : int
        Number of passes over the training rows.
    batch_size : int
        Rows per step. `with_enough_steps` lowers it if an epoch would have less than 20 steps.
    early_stopping : bool
        Hold out a tenth of the rows, and use the weights of the epoch with the lowest loss on them.
    patience : int, default=None
        With early stopping, stop after so many epochs without a lower loss. By default, all epochs run.
    """

    learning_rate: float
    l2: float
    max_epochs: int
    batch_size: int
    early_stopping: bool = False
    patience: int | None = None

    def with_enough_steps(self, n_rows: int) -> Training:
        """The same settings, with smaller batches if an epoch would have less than 20 steps."""
        return replace(self, batch_size=min(self.batch_size, -(-n_rows // _FEWEST_STEPS)))


@plain_torch()
def train(
    read: ReadRows,
    targets: NDArray[Any],
    sample_weight: NDArray[np.float64],
    *,
    hidden_layer_sizes: Sequence[int],
    n_outputs: int,
    training: Training,
    random_state: np.random.RandomState,
    offset: ReadRows | None = None,
    groups: NDArray[np.int64] | None = None,
    losses: Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor] | None = None,
    description: str | None = None,
) -> DenseNetwork:
    """Train a network by mini-batches that are read when they are needed.

    `read` takes row numbers and returns the inputs of these rows, of shape (n_rows, n_inputs). If `n_outputs` is 1, the
    targets are probabilities and the loss is the binary cross-entropy; otherwise, the targets are class indices and the
    loss is the cross-entropy. `losses` replaces this loss: it takes outputs and row numbers, and returns the loss of
    each row. `offset` takes row numbers and returns an array of shape (n_rows, n_outputs), which is added to the
    outputs of the network before the loss. Empty `hidden_layer_sizes` make a linear network. The progress bar has the
    `description`; None shows no bar.
    """
    import torch

    n_samples = len(targets)
    rows, held_out = split_rows(n_samples, training, random_state, groups)
    mean, scale = scaling(read, rows, training.batch_size)
    model = build([len(mean), *hidden_layer_sizes, n_outputs], torch_generator(random_state))
    target_type = torch.float32 if n_outputs == 1 else torch.int64

    def read_scaled(batch: NDArray[np.int64]) -> torch.Tensor:
        return torch.as_tensor((read(batch) - mean) / scale, dtype=torch.float32)

    read_inputs = keep_in_memory(read_scaled, n_samples, len(mean))
    relative_weight = sample_weight / sample_weight[rows].mean()

    def cross_entropy(outputs: torch.Tensor, batch: NDArray[np.int64]) -> torch.Tensor:
        return _losses(outputs, torch.as_tensor(targets[batch], dtype=target_type))

    row_losses = cross_entropy if losses is None else losses

    def loss(batch: NDArray[np.int64]) -> torch.Tensor:
        outputs = add_offset(model(read_inputs(batch)), offset, batch)
        # The mean weight of all rows is 1. If weights were divided by their sum in the batch, the weight of a row
        # would have no effect in a batch of one row.
        weight = torch.as_tensor(relative_weight[batch], dtype=torch.float32)
        return (row_losses(outputs, batch) * weight).mean()

    minimize(
        loss,
        list(model.parameters()),
        rows,
        held_out,
        np.ones(n_samples),  # the loss already includes the weights
        training=training.with_enough_steps(len(rows)),
        random_state=random_state,
        description=description,
    )
    return to_dense(model).after_scaling(mean, scale)


def split_rows(
    n_samples: int,
    training: Training,
    random_state: np.random.RandomState,
    groups: NDArray[np.int64] | None = None,
    fewest_held_out: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on, and with early stopping a tenth of the rows to hold out, in random order.

    No row is held out if that would be fewer than `fewest_held_out`. With `groups`, whole groups are held out: about a
    tenth of the rows, or the smallest group if all groups are larger.
    """
    rows = random_state.permutation(n_samples)
    n_held_out = n_samples // 10 if training.early_stopping else 0
    if n_held_out < fewest_held_out:
        n_held_out = 0
    if groups is None or n_held_out == 0:
        return rows[n_held_out:], rows[:n_held_out]
    is_held_out = np.isin(groups[rows], _groups_to_hold_out(groups, n_held_out, random_state))
    return rows[~is_held_out], rows[is_held_out]


def _groups_to_hold_out(
    groups: NDArray[np.int64], n_held_out: int, random_state: np.random.RandomState
) -> list[np.int64]:
    """Random groups with at most `n_held_out` rows in total, or the smallest group if all have more.

    No group is chosen if there is only one.
    """
    numbers, sizes = np.unique(groups, return_counts=True)
    if len(numbers) == 1:
        return []
    chosen, left = [], max(n_held_out, sizes.min())
    for index in random_state.permutation(len(numbers)):
        if sizes[index] <= left:
            chosen.append(numbers[index])
            left -= sizes[index]
    return chosen


def add_offset(outputs: torch.Tensor, offset: ReadRows | None, rows: NDArray[np.int64]) -> torch.Tensor:
    """Outputs of a network for some rows, plus what `offset` returns for the numbers of these rows."""
    import torch

    return outputs if offset is None else outputs + torch.as_tensor(offset(rows), dtype=outputs.dtype)


def minimize(
    loss: Callable[[NDArray[np.int64]], torch.Tensor],
    parameters: Sequence[torch.Tensor],
    rows: NDArray[np.int64],
    held_out: NDArray[np.int64],
    sample_weight: NDArray[np.float64],
    *,
    training: Training,
    random_state: np.random.RandomState,
    description: str | None = None,
    one_thread: bool = True,
) -> int:
    """Minimise a loss by mini-batches, and return the number of the best epoch.

    `loss` takes row numbers and returns the mean loss of these rows. `parameters` are changed in place, and have the
    values of the best epoch at the end; those with two dimensions or more are penalised. The best epoch has the
    smallest weighted mean loss on the `held_out` rows; without held-out rows, it is the last epoch. Epochs count from
    1; the number is 0 if the initial parameters were best. The `batch_size` is used unchanged. Large networks train
    faster with ``one_thread=False``.
    """
    n_batches = -(-len(rows) // training.batch_size)
    optimizer, schedule = adam(parameters, training, n_batches * training.max_epochs)
    best_loss, best_epoch, best = np.inf, training.max_epochs, []
    epochs = tqdm(range(training.max_epochs), desc=description, unit="epoch", disable=description is None, leave=False)
    with one_torch_thread() if one_thread else nullcontext():
        if len(held_out):
            best_loss, best_epoch = _mean_loss(loss, held_out, sample_weight, training.batch_size), 0
            best = _values(parameters)
        for epoch in epochs:
            for batch in batches(shuffled(rows, random_state), training.batch_size):
                optimizer.zero_grad()
                loss(batch).backward()
                optimizer.step()
                schedule.step()
            if len(held_out):
                held_out_loss = _mean_loss(loss, held_out, sample_weight, training.batch_size)
                epochs.set_postfix(held_out_loss=f"{held_out_loss:.4f}")
                if held_out_loss < best_loss:
                    best_loss, best_epoch, best = held_out_loss, epoch + 1, _values(parameters)
                elif training.patience is not None and epoch + 1 - best_epoch >= training.patience:
                    break
    for parameter, value in zip(parameters, best, strict=False):
        parameter.data.copy_(value)
    return best_epoch


def shuffled(rows: NDArray[np.int64], random_state: np.random.RandomState) -> NDArray[np.int64]:
    """The rows in random order.

    More than 2**18 rows are divided into blocks of 64 neighbours. The order of the blocks is random, and the rows of
    1,024 blocks at a time are shuffled, so that rows can be read from a disk quickly.
    """
    if len(rows) <= _SHUFFLED_AT_ONCE:
        return random_state.permutation(rows)
    rows = np.sort(rows)
    blocks = random_state.permutation(-(-len(rows) // _BLOCK_ROWS))
    order = np.concatenate([rows[block * _BLOCK_ROWS : (block + 1) * _BLOCK_ROWS] for block in blocks])
    for start in range(0, len(order), _BLOCK_ROWS * _MIXED_BLOCKS):
        random_state.shuffle(order[start : start + _BLOCK_ROWS * _MIXED_BLOCKS])
    return order


def number_of_epochs(
    max_epochs: int | str, n_rows: int, fewest: int, most: int, enough_visits: int = _ENOUGH_VISITS
) -> int:
    """Number of passes over the rows.

    For ``"auto"``, this is `enough_visits` divided by the number of rows, limited to the range from `fewest` to `most`.
    """
    return int(np.clip(enough_visits // n_rows, fewest, most)) if max_epochs == "auto" else int(max_epochs)


def adam(
    parameters: Sequence[torch.Tensor], training: Training, n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam, and a learning rate that rises over the first tenth of the steps and then falls to 0.

    Parameters with two dimensions or more are penalised.
    """
    import torch

    groups = adam_groups(*weights_and_biases(parameters), training.l2)
    optimizer = torch.optim.Adam(groups, lr=training.learning_rate, fused=True)
    return optimizer, one_cycle(optimizer, training.learning_rate, n_steps)


def adam_groups(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], l2: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Groups of parameters for Adam: weights with the penalty `l2`, and biases without a penalty."""
    return {"params": list(weights), "weight_decay": l2}, {"params": list(biases), "weight_decay": 0.0}


def weights_and_biases(parameters: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The parameters with two dimensions or more, and the parameters with one dimension."""
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim == 1]


def one_cycle(optimizer: torch.optim.Optimizer, learning_rate: float | list[float], n_steps: int) -> Any:
    """A learning rate that rises to `learning_rate` over the first tenth of the steps, and then falls to 0.

    `learning_rate` is one number, or a list with one number per group of parameters.
    """
    from torch.optim.lr_scheduler import OneCycleLR

    n_steps += 1  # the schedule also counts a step after the last one
    # OneCycleLR divides by zero if the rise ends at step 0.
    return OneCycleLR(optimizer, learning_rate, total_steps=n_steps, pct_start=max(0.1, 1.5 / n_steps))


def _values(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def scaling(read: ReadRows, rows: NDArray[np.int64], batch_size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation of the inputs, from at most 100,000 of the rows; 1 for a constant input."""
    chunks = batches(enough_in_order(rows), max(batch_size, _CHUNK_ROWS))
    return weighted_scaling((read(chunk).astype(np.float64), np.ones(len(chunk))) for chunk in chunks)


def enough_in_order(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows in ascending order. If there are more than 100,000, these are 100,000 of them at equal distances."""
    rows = np.sort(rows)
    if len(rows) <= _ENOUGH_ROWS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, _ENOUGH_ROWS).astype(np.intp)]


def keep_in_memory(
    read: Callable[[NDArray[np.int64]], torch.Tensor], n_samples: int, n_inputs: int, *, allow_half: bool = False
) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    """A function like `read` that returns inputs from memory, if all inputs need at most 512 MiB; otherwise `read`.

    With `allow_half`, inputs that are small enough only in half precision are stored in half precision.
    """
    import torch

    types = [torch.float32, torch.float16] if allow_half else [torch.float32]
    kept_type = next((kind for kind in types if kind.itemsize * n_samples * n_inputs <= _IN_MEMORY_BYTES), None)
    if kept_type is None:
        return read
    inputs = torch.empty(n_samples, *read(np.arange(1)).shape[1:], dtype=kept_type)
    for chunk in batches(np.arange(n_samples), max(1, min(_CHUNK_ROWS, _CHUNK_NUMBERS // n_inputs))):
        inputs[chunk] = read(chunk).to(kept_type)
    return lambda batch: inputs[batch]


def batches(rows: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Successive parts of the rows, each with `batch_size` rows; the last may have fewer."""
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def _losses(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    if outputs.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")
    return functional.cross_entropy(outputs, targets, reduction="none")


def _mean_loss(loss: Callable[..., Any], rows: NDArray[np.int64], weight: NDArray[Any], batch_size: int) -> float:
    import torch

    with torch.no_grad():
        losses = [loss(batch).item() for batch in batches(rows, batch_size)]
    return float(np.average(losses, weights=[weight[batch].sum() for batch in batches(rows, batch_size)]))
