"""Predict many inputs. Each stage runs when enough samples have reached it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from skexit.backbone._inputs import Inputs, check_rows, like_example, map_tensors, tensors_of
from skexit.backbone._loaders import check_gives_batches, count_rows, read_item
from skexit.runtime._batch import Batch
from skexit.runtime._decisions import Decisions
from skexit.runtime._kept_memory import kept_memory
from skexit.runtime._prepared import PreparedNetwork
from skexit.runtime._queues import SampleQueue
from skexit.runtime._runner import StageRunner
from skexit.utils._checks import check_positive

#: After so many errors in a row, the error of the loader is raised.
_MAX_ERRORS_IN_A_ROW = 100

#: A function that returns the prepared network. The inputs prepare it at the first call.
Prepared = Callable[[Inputs], PreparedNetwork]

#: Shapes of the tensors in a queue, without the axis of samples.
_Shapes = tuple[torch.Size, ...]


class LoaderOutput(NamedTuple):
    """Predictions for the inputs of a loader, in the order of the loader.

    Parameters
    ----------
    labels : tensor of shape (n_samples,), or ndarray if classes are names
        Predicted class of each sample.
    probabilities : tensor of shape (n_samples, n_classes)
        Class probabilities, from the exit at which the sample left.
    exits : tensor of shape (n_samples,) of int64
        Exit at which each sample left, counted from 0.
    batches : tensor of shape (n_samples,) of int64
        Number of the loader's batch that each sample is from, counted from 0. Batches that failed have no samples here.
    failures : list of (int, Exception)
        The numbers of the batches that failed, and their errors.
    """

    labels: torch.Tensor | NDArray[Any]
    probabilities: torch.Tensor
    exits: torch.Tensor
    batches: torch.Tensor
    failures: list[tuple[int, Exception]]


def predict_loader(
    prepared: Prepared,
    device: torch.device,
    loader: Iterable[Any],
    batch_size: int,
    max_wait: float | None,
    progress: bool,
) -> LoaderOutput:
    """Predict the inputs of a loader; see :meth:`EarlyExitModel.predict_loader`.

    `prepared` takes the inputs of a batch, and returns the PreparedNetwork. `device` is the device of the network.
    """
    _check_limits(batch_size, max_wait)
    check_gives_batches(loader)
    queues: _StageQueues | None = None
    failures: dict[int, Exception] = {}
    bar = tqdm(total=count_rows(loader), unit=" rows", disable=None if progress else True)
    with kept_memory(device), bar:
        for number, inputs in _read_batches(prepared, device, loader, failures):
            queues = queues or _StageQueues(prepared(inputs).used_exits, batch_size, max_wait, failures, bar.update)
            queues.add(number, inputs)
        if queues is not None:
            queues.flush()
    if queues is None or not queues.has_answers:
        raise failures[min(failures)] if failures else ValueError("loader is empty; give at least one batch.")
    return queues.output()


def _check_limits(batch_size: int, max_wait: float | None) -> None:
    check_positive("batch_size", batch_size)
    if max_wait is not None and not max_wait >= 0:
        raise ValueError(f"max_wait={max_wait} must be None or a number of seconds of at least 0.")


def _read_batches(
    prepared: Prepared, device: torch.device, loader: Iterable[Any], failures: dict[int, Exception]
) -> Iterator[tuple[int, Inputs]]:
    """Numbers and inputs of the batches that the network can take. The others are added to `failures`."""
    for number, (item, error) in enumerate(_items(loader)):
        inputs = None
        if error is None:
            inputs, error = _attempt(_read, number, item, device)
        if inputs is not None:
            # Errors are raised here, because a network that cannot be divided would fail with every batch.
            network = prepared(inputs)
            inputs, error = _attempt(like_example, inputs, network.example, network.names)
        if error is not None:
            failures[number] = error
        elif inputs is not None:
            yield number, inputs


def _items(loader: Iterable[Any]) -> Iterator[tuple[Any, Exception | None]]:
    """The batches of a loader, or the errors that it raises, one after another."""
    items, end = iter(loader), object()
    n_errors = 0
    while True:
        item, error = _attempt(next, items, end)
        if item is end:
            return
        n_errors = 0 if error is None else n_errors + 1
        if error is not None and n_errors == _MAX_ERRORS_IN_A_ROW:
            raise error
        yield item, error


def _attempt(function: Callable[..., Any], *args: Any) -> tuple[Any, Exception | None]:
    """The result of a function, or the exception that it raises."""
    try:
        return function(*args), None
    except Exception as error:
        # The traceback as text, because its frames would keep the batch in memory.
        error.add_note("It was raised in\n" + "".join(traceback.format_tb(error.__traceback__)))
        return None, error.with_traceback(None)


def _read(number: int, item: Any, device: torch.device) -> Inputs | None:
    """The inputs in an item of a loader, on the device; None if it has no rows."""
    inputs, _ = read_item(number, item)
    # A copy to the CPU must finish before its result is read.
    inputs = map_tensors(lambda tensor: tensor.to(device, non_blocking=device.type != "cpu"), inputs)
    if not any(len(tensor) for tensor in tensors_of(inputs)):
        return None
    check_rows(inputs, device)
    return inputs


class _StageQueues:
    """Queues of samples before the stages of a network.

    The network is divided into legs. A leg consists of the stages from one exit at which samples may leave to the next.
    Before each leg, there is one queue for each shape of the samples.
    """

    def __init__(
        self,
        runner: StageRunner,
        batch_size: int,
        max_wait: float | None,
        failures: dict[int, Exception],
        on_answers: Callable[[int], Any],
    ) -> None:
        # Without latency, samples that leave are always removed: a queue must not contain them.
        self._runner = replace(runner, latency=None)
        self._batch_size, self._max_wait = batch_size, max_wait
        self._failures = failures
        self._on_answers = on_answers
        legs = _find_legs(runner.decisions)
        self._is_in_place = [any(runner.is_in_place[k] for k in leg) for leg in legs]
        self._legs = [[k for k in leg if k in runner.stages] for leg in legs]
        self._queues: list[dict[_Shapes, SampleQueue]] = [{} for _ in self._legs]
        self._answers = runner.answers()
        self._n_rows = 0
        self._rows: dict[int, range] = {}
        """Rows in the output, by batch of the loader."""

    @property
    def has_answers(self) -> bool:
        """Whether at least one batch did not fail."""
        return any(number not in self._failures for number in self._rows)

    @torch.inference_mode()
    def add(self, number: int, inputs: Inputs) -> None:
        """Add a batch of the loader, and run the legs that are ready."""
        first, *side = tensors_of(inputs)
        rows = range(self._n_rows, self._n_rows + len(first))
        self._rows[number], self._n_rows = rows, rows.stop
        batch = self._runner.start(first, side, torch.arange(rows.start, rows.stop, device=first.device))
        for start in range(0, len(batch), self._batch_size):
            self._put(0, batch, slice(start, start + self._batch_size))
            self._run_ready()

    @torch.inference_mode()
    def flush(self) -> None:
        """Run the legs for all samples that still wait."""
        for leg, queues in enumerate(self._queues):
            while queues:
                self._run_next(leg, next(iter(queues)))
                self._run_ready()

    def output(self) -> LoaderOutput:
        """The predictions for the batches that did not fail."""
        rows, (labels, probabilities, exits) = self._answers.output()
        batches = self._batches_of(rows)
        if self._failures:
            kept = torch.isin(batches, torch.tensor(list(self._failures), device=batches.device), invert=True)
            labels = labels[kept.cpu().numpy()] if isinstance(labels, np.ndarray) else labels[kept]
            probabilities, exits, batches = probabilities[kept], exits[kept], batches[kept]
        return LoaderOutput(labels, probabilities, exits, batches, sorted(self._failures.items()))

    def _put(self, leg: int, batch: Batch, rows: torch.Tensor | slice) -> None:
        shapes = tuple(tensor.shape[1:] for tensor in (*batch.tensors, *batch.side))
        if isinstance(rows, slice):
            batch, rows = batch.slice(rows), slice(None)
        queue = self._queues[leg].get(shapes, SampleQueue(self._batch_size))
        queue.put(batch, rows, time.monotonic())
        self._queues[leg][shapes] = queue

    def _run_ready(self) -> None:
        while (ready := self._find_ready()) is not None:
            self._run_next(*ready)

    def _find_ready(self) -> tuple[int, _Shapes] | None:
        """The last leg for which enough samples wait, or a sample has waited long enough; None if there is none."""
        latest = -np.inf if self._max_wait is None else time.monotonic() - self._max_wait
        for leg in reversed(range(len(self._legs))):
            for shapes, queue in self._queues[leg].items():
                if len(queue) >= self._batch_size or queue.waiting_since <= latest:
                    return leg, shapes
        return None

    def _run_next(self, leg: int, shapes: _Shapes) -> None:
        queue = self._queues[leg][shapes]
        waiting = queue.first(self._batch_size)
        # A copy for stages that work in place, because the inputs may have to be run again.
        error = self._run_and_pass_on(leg, waiting.map(torch.clone) if self._is_in_place[leg] else waiting)
        failed = None if error is None else waiting.map(torch.clone)
        queue.remove(len(waiting))
        if not len(queue):
            del self._queues[leg][shapes]
        if failed is not None:
            self._find_failure(leg, failed, cast(Exception, error))

    def _run_and_pass_on(self, leg: int, batch: Batch) -> Exception | None:
        """Run a leg, and put the samples that stay into the next queue; return an error, or None."""
        n_leaving, error = _attempt(self._run, leg, batch.slice(slice(None)))
        if error is None:
            self._on_answers(n_leaving)
        return error

    def _run(self, leg: int, batch: Batch) -> int:
        """Run a leg, put the samples that stay into the next queue, and return the number of those that leave."""
        logits = leaves = None
        for k in self._legs[leg]:
            batch, logits, leaves = self._runner.compute_and_decide(k, batch)
            if logits is not None and not bool(torch.isfinite(logits).all()):
                raise ValueError(
                    f"exit {self._runner.exits[k]!r} has logits that are infinite or NaN. Check the inputs for missing "
                    "values or a wrong scale."
                )
        k = self._legs[leg][-1]
        leaving, staying = self._runner.split(k, batch, leaves)
        # Copies, because the batch may share the memory of the queue.
        answered = [] if leaving is None else [part[leaving].clone() for part in (batch.rows, cast(Any, logits))]
        # Only now: if memory is exhausted before, no sample is queued or recorded.
        if staying is not None:
            self._put(leg + 1, batch, staying)
        if not answered:
            return 0
        self._answers.add(k, *answered)
        return len(answered[0])

    def _find_failure(self, leg: int, batch: Batch, error: Exception) -> None:
        """Find the loader's batch that failed: if there are several, run the samples of each batch separately."""
        batches = self._batches_of(batch.rows)
        numbers = batches.unique().tolist()
        if len(numbers) == 1:
            self._drop(numbers[0], error)
            return
        for number in numbers:
            own = batch.select(torch.nonzero(batches == number).flatten())
            own_error = self._run_and_pass_on(leg, own)
            if own_error is not None:
                self._drop(number, own_error)

    def _drop(self, number: int, error: Exception) -> None:
        """Record that a batch of the loader failed, and remove its samples from the queues."""
        self._failures[number] = error
        for queues in self._queues:
            for shapes, queue in list(queues.items()):
                queue.drop(self._rows[number])
                if not len(queue):
                    del queues[shapes]

    def _batches_of(self, rows: torch.Tensor) -> torch.Tensor:
        """The numbers of the loader's batches that rows of the output are from."""
        lengths = [len(own) for own in self._rows.values()]
        return torch.from_numpy(np.repeat(list(self._rows), lengths)).to(rows.device)[rows]


def _find_legs(decisions: Decisions) -> list[range]:
    """The legs: ranges of stages from one exit at which samples may leave to the next."""
    ends = [k + 1 for k, is_used in enumerate(decisions.is_used) if is_used]
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
