"""Training by mini-batches whose rows are read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skexit._nn._dense import DenseNetwork, build, to_dense, torch_generator, weighted_scaling
from skexit.utils._threads import one_torch_thread

if TYPE_CHECKING:
    import torch

#: Up to this many bytes of inputs are read once and kept; more are read for each batch.
_IN_MEMORY_BYTES = 2**29

#: From so many rows on, they are shuffled by blocks of neighbours, of which so many are mixed: what is read for a step
#: is then near to what is read for those before and after.
_SHUFFLED_AT_ONCE, _BLOCK_ROWS, _MIXED_BLOCKS = 2**18, 64, 1024
#: Rows that are enough for the mean and the standard deviation of an input, or a regression on it.
_ENOUGH_ROWS = 10**5
#: ``max_epochs="auto"``: rows that are seen, each time counted.
_ENOUGH_VISITS = 1_500_000

_FEWEST_STEPS = 20
#: Rows, and numbers, that are read at a time where all are.
_CHUNK_ROWS, _CHUNK_NUMBERS = 2048, 2**22

ReadRows = Callable[[NDArray[np.int64]], NDArray[Any]]


@dataclass(frozen=True)
class Training:
    """How `train` trains a network.

    Parameters
    ----------
    learning_rate : float
        Highest learning rate of Adam; it rises over a tenth of the steps and falls to zero.
    l2 : float
        The loss is the mean loss of the rows plus ``l2 / 2`` times the squared norm of the weights.
    max_epochs : int
        Passes over the training rows.
    batch_size : int
        Rows in a step; fewer where there would be less than 20 steps in an epoch.
    early_stopping : bool
        Hold out a tenth of the rows, and keep the weights of the epoch with the lowest loss there.
    patience : int, default=None
        With early stopping, stop after so many epochs without a lower loss. By default never.
    """

    learning_rate: float
    l2: float
    max_epochs: int
    batch_size: int
    early_stopping: bool = False
    patience: int | None = None

    def with_enough_steps(self, n_rows: int) -> Training:
        """With smaller batches where there would be less than 20 steps in an epoch."""
        return replace(self, batch_size=min(self.batch_size, -(-n_rows // _FEWEST_STEPS)))


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

    `read` takes row numbers and returns the inputs of these rows, of shape (n_rows, n_inputs). Targets are class
    indices, for the cross-entropy, or when `n_outputs` is 1 probabilities, for the binary cross-entropy. `offset`
    returns what the outputs of rows are added to before they are compared with the targets, of shape (n_rows,
    n_outputs). `losses` takes outputs and row numbers, and gives the loss of each row in place of the cross-entropy. No
    `hidden_layer_sizes` give a linear network; no `description` shows no progress bar.
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
        # The mean over all rows is one: divided by the sum of a batch, weights would vanish in one of a single row.
        weight = torch.as_tensor(relative_weight[batch], dtype=torch.float32)
        return (row_losses(outputs, batch) * weight).mean()

    minimize(
        loss,
        list(model.parameters()),
        rows,
        held_out,
        np.ones(n_samples),  # the loss has the weights
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
    """Rows to train on, and with early stopping a tenth to hold out, or none where that is too few; in random order.

    Rows of a group stay together: those held out are whole groups, about a tenth of the rows or the smallest group.
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
    """Random groups of no more rows in all, or the smallest where each has more; none where there is one group."""
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
    """Outputs of a network for some rows, added to what `offset`, which takes row numbers, returns for them."""
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
    """Minimise a loss by mini-batches, and leave the parameters at their best; gives the number of epochs until then.

    The number is 0 where the start was best. `loss` takes row numbers and returns the mean loss of these rows.
    Parameters are changed in place; those with two dimensions or more are penalised. The mean loss of the `held_out`
    rows, by their weights, says which epoch was best; where there are none, it is the last. The `batch_size` is used as
    it is. Steps of large networks gain by more than `one_thread`.
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
    """The rows in random order: at once, or many by blocks, so that they can be read from a disk.

    Of many rows, 1,024 random blocks of 64 neighbours are mixed, then 1,024 others.
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
    """Passes over the rows: those given, or until so many rows have been seen that more would teach little.

    ``"auto"`` gives `enough_visits` divided by the rows, from `fewest` to `most`.
    """
    return int(np.clip(enough_visits // n_rows, fewest, most)) if max_epochs == "auto" else int(max_epochs)


def adam(
    parameters: Sequence[torch.Tensor], training: Training, n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam, and a learning rate that rises over a tenth of the steps and falls to zero.

    Parameters with two dimensions or more are penalised.
    """
    import torch

    groups = adam_groups(*weights_and_biases(parameters), training.l2)
    optimizer = torch.optim.Adam(groups, lr=training.learning_rate, fused=True)
    return optimizer, one_cycle(optimizer, training.learning_rate, n_steps)


def adam_groups(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], l2: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Groups of parameters for Adam: weights, which are penalised, and biases, which are not."""
    return {"params": list(weights), "weight_decay": l2}, {"params": list(biases), "weight_decay": 0.0}


def weights_and_biases(parameters: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Parameters of layers: those with two dimensions or more, and those with one."""
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim == 1]


def one_cycle(optimizer: torch.optim.Optimizer, learning_rate: float | list[float], n_steps: int) -> Any:
    """A learning rate that rises over a tenth of the steps to its highest, and falls to zero.

    The highest is one for each group of parameters, or one for all.
    """
    from torch.optim.lr_scheduler import OneCycleLR

    n_steps += 1  # the schedule also counts the step that would come after the last
    # Where the rise would end at step 0, OneCycleLR divides by zero.
    return OneCycleLR(optimizer, learning_rate, total_steps=n_steps, pct_start=max(0.1, 1.5 / n_steps))


def _values(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def scaling(read: ReadRows, rows: NDArray[np.int64], batch_size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation of the inputs of the given rows, or enough of them; 1 where an input is constant."""
    chunks = batches(enough_in_order(rows), max(batch_size, _CHUNK_ROWS))
    return weighted_scaling((read(chunk).astype(np.float64), np.ones(len(chunk))) for chunk in chunks)


def enough_in_order(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows in rising order; of many, 100,000 at even distances, which are enough for a few numbers."""
    rows = np.sort(rows)
    if len(rows) <= _ENOUGH_ROWS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, _ENOUGH_ROWS).astype(np.intp)]


def keep_in_memory(
    read: Callable[[NDArray[np.int64]], torch.Tensor], n_samples: int, n_inputs: int, *, allow_half: bool = False
) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    """Read all inputs now, where they are small; later calls then only look them up.

    With `allow_half`, inputs that are small enough in half precision only are kept in that.
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
    """Parts of the rows, of `batch_size` but for the last."""
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
