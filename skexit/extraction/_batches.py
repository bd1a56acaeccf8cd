"""Reads the batches of a loader for extraction, and compares them with rows that are cached already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Number
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from skexit.backbone._inputs import Inputs, describe_given, map_tensors, tensors_of
from skexit.backbone._loaders import check_gives_batches, read_item
from skexit.backbone._other_forms import naming_other_form
from skexit.cache import FeatureCache
from skexit.extraction._fingerprints import row_checksums
from skexit.utils._warnings import warn

#: Advice for a loader whose inputs differ from those of the cached rows.
RANDOM_INPUTS = (
    "If the loader changes inputs at random, or pads them to the longest input of a batch and the batches have "
    "changed, pass check_data=False to keep the cached rows."
)


@dataclass(frozen=True)
class Batch:
    """One batch of a loader, by its number."""

    number: int
    inputs: Inputs
    y: NDArray[Any] | None
    checksums: NDArray[np.uint32]

    @property
    def n_rows(self) -> int:
        return len(tensors_of(self.inputs)[0])

    def rows(self, start: int, stop: int) -> Batch:
        labels = None if self.y is None else self.y[start:stop]
        return Batch(
            self.number, map_tensors(lambda tensor: tensor[start:stop], self.inputs), labels, self.checksums[start:stop]
        )


def read_batches(loader: Iterable[Any], classes: NDArray[Any] | None) -> Iterator[Batch]:
    """Yield the batches of a loader, without those that have no rows."""
    has_labels = None
    repeats = _Repeats(loader)
    for number, item in enumerate(loader):
        batch = _read_batch(number, item, classes)
        if has_labels is None:
            has_labels = batch.y is not None
        if has_labels != (batch.y is not None):
            raise ValueError(
                f"loader: batch {number} has {'no labels' if has_labels else 'labels'} but the batches before it have "
                f"{'some' if has_labels else 'none'}; give labels with every batch or with none."
            )
        if batch.n_rows:
            repeats.look_at(batch)
            yield batch
    repeats.look_at_all()


@contextmanager
def naming_batch(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Add to an error a note with the batch of the loader on which it was raised.

    If the network takes the inputs in another form, the error is one that names this form.
    """
    try:
        with naming_other_form(model, batch.inputs, "x", f" of batch {batch.number} of the loader"):
            yield
    except Exception as error:
        error.add_note(
            f"The network was run on batch {batch.number} of the loader: {describe_given(batch.inputs)}. A loader "
            "yields batches, x or (x, y), like torch.utils.data.DataLoader."
        )
        raise


class _Repeats:
    """Warns if every worker of a loader yields all items of an IterableDataset."""

    def __init__(self, loader: Iterable[Any]) -> None:
        is_stream = isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)
        self._n_workers = loader.num_workers if is_stream and isinstance(loader, DataLoader) else 0
        self._checksums: list[NDArray[np.uint32]] = []

    def look_at(self, batch: Batch) -> None:
        """Compare the first batches, which come from different workers."""
        if self._n_workers < 2:
            return
        if batch.number < self._n_workers and any(map(partial(np.array_equal, batch.checksums), self._checksums)):
            self._warn()
        else:
            self._checksums.append(batch.checksums)

    def look_at_all(self) -> None:
        """Compare all rows, as workers may yield the same items in different orders."""
        if self._n_workers > 1 and self._checksums:
            _, counts = np.unique(np.concatenate(self._checksums), return_counts=True)
            if not (counts % self._n_workers).any():
                self._warn()

    def _warn(self) -> None:
        warn(
            f"loader: its {self._n_workers} workers give the same rows, so each row is cached {self._n_workers} times. "
            "Divide the items of the IterableDataset among the workers by torch.utils.data.get_worker_info(), or pass "
            "num_workers=0; then extract into another folder."
        )
        self._n_workers = 0


def _read_batch(number: int, item: Any, classes: NDArray[Any] | None) -> Batch:
    if isinstance(item, list | tuple) and len(item) > 1:
        _check_labels(number, item[-1])  # before its inputs, which are then those of a sample
    inputs, y = read_item(number, item)
    values = tensors_of(inputs)
    _check_labels(number, y)
    labels = None if y is None else np.asarray(y.cpu() if isinstance(y, torch.Tensor) else y)
    lengths = [len(value) for value in values] + ([] if labels is None else [len(labels)])
    if len(set(lengths)) > 1:
        raise ValueError(
            f"loader: the parts of batch {number} have different numbers of rows: {lengths}. Give inputs and labels of "
            "the same rows. For graphs, collect the output of each exit by forward hooks and pass it to "
            "skexit.stack_exits; see 'Graph networks' in the guide."
        )
    if labels is not None and classes is not None:
        labels = _as_classes(labels, classes, number)
    return Batch(number, inputs, labels, row_checksums(inputs))


def _check_labels(number: int, y: Any) -> None:
    """Raise a ValueError if the labels of a batch are a single label, or a dict."""
    if isinstance(y, Mapping):
        raise ValueError(
            f"loader: the last part of batch {number}, which is y, is a dict with the keys {list(y)}. Give one label "
            f"per row, such as [(x, y[{next(iter(y), 'label')!r}]) for x, y in loader]."
        )
    is_scalar = isinstance(y, Number | str) or (isinstance(y, np.ndarray | np.generic | torch.Tensor) and y.ndim == 0)
    if is_scalar:
        label = y.item() if hasattr(y, "item") else y
        raise ValueError(
            f"loader: batch {number} has only one label, {label!r}, so it is a sample and not a batch. Pass "
            "batches: torch.utils.data.DataLoader(dataset, batch_size=64) makes them from a data set."
        )


def _as_classes(labels: NDArray[Any], classes: NDArray[Any], number: int) -> NDArray[Any]:
    """Check that the labels are among the classes, and replace indices of named classes by the names."""
    if labels.dtype.kind in "iu" and classes.dtype.kind not in "iuf":
        known = (labels >= 0) & (labels < len(classes))
        named = classes[np.where(known, labels, 0)]
    else:
        known, named = np.isin(labels, classes), labels
    if not known.all():
        raise ValueError(
            f"loader: batch {number} has the label {labels[~known].tolist()[0]!r}, which is not in "
            f"classes={classes.tolist()}. Give the classes of all labels."
        )
    return named


def check_loader(loader: Iterable[Any]) -> None:
    """Raise a ValueError unless the loader gives batches, in the same order each time."""
    check_gives_batches(loader)
    samplers = [getattr(source, "sampler", None) for source in (loader, getattr(loader, "batch_sampler", None))]
    for sampler in samplers:
        if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
            raise ValueError(
                f"loader draws its rows with {type(sampler).__name__}, in a different order each time. Pass "
                "shuffle=False; to extract some rows only, wrap the data set in torch.utils.data.Subset."
            )
        if isinstance(sampler, DistributedSampler):
            raise ValueError(
                "loader has a DistributedSampler, which gives each process different rows. Pass a loader of all rows, "
                "and worker='torchrun'."
            )


def skip_cached_rows(batches: Iterator[Batch], found: FeatureCache | None, check: bool) -> Iterator[Batch]:
    """Yield the batches without the rows that are cached already; if `check`, compare these rows with the cache."""
    n_cached = 0 if found is None else found.n_rows
    start = 0
    for batch in batches:
        n_skipped = min(max(n_cached - start, 0), batch.n_rows)
        if found is not None and n_skipped and check:
            _check_same_rows(batch.rows(0, n_skipped), found, start)
        if n_skipped < batch.n_rows:
            yield batch.rows(n_skipped, batch.n_rows) if n_skipped else batch
        start += batch.n_rows
    if start < n_cached:
        raise ValueError(
            f"loader gave {start} rows but the cache has {n_cached} already, so the cache is of other data. Give the "
            "loader that the cache was started with, or another folder."
        )


def _check_same_rows(batch: Batch, found: FeatureCache, start: int) -> None:
    """Raise a ValueError unless the batch has the labels and inputs that the cache has from row `start` on."""
    if found.y is None or batch.y is None:
        agree = found.y is None and batch.y is None
    else:
        agree = np.array_equal(found.y[start : start + batch.n_rows], batch.y)
    if not agree:
        raise ValueError(
            f"loader: the labels of batch {batch.number} differ from those of the same rows in the cache "
            f"{str(found.path)!r}. Give the loader that the cache was started with, or another folder."
        )
    if found.inputs is not None and not np.array_equal(found.inputs[start : start + batch.n_rows], batch.checksums):
        raise ValueError(
            f"loader: the inputs of batch {batch.number} differ from those of the same rows in the cache "
            f"{str(found.path)!r}. Give the loader that the cache was started with, or another folder. {RANDOM_INPUTS}"
        )
