"""Batches of a loader, as extraction reads them: inputs, labels, and what is cached already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from skexit.backbone._inputs import Inputs, map_tensors, tensors_of
from skexit.backbone._loaders import read_item
from skexit.cache import FeatureCache


@dataclass(frozen=True)
class Batch:
    """One batch of a loader, by its number."""

    number: int
    inputs: Inputs
    y: NDArray[Any] | None

    @property
    def n_rows(self) -> int:
        return len(tensors_of(self.inputs)[0])

    def rows(self, start: int, stop: int) -> Batch:
        labels = None if self.y is None else self.y[start:stop]
        return Batch(self.number, map_tensors(lambda tensor: tensor[start:stop], self.inputs), labels)


def read_batches(loader: Iterable[Any], classes: NDArray[Any] | None) -> Iterator[Batch]:
    """The batches of a loader that have rows."""
    has_labels = None
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
            yield batch


def _read_batch(number: int, item: Any, classes: NDArray[Any] | None) -> Batch:
    inputs, y = read_item(number, item)
    values = tensors_of(inputs)
    labels = None if y is None else np.asarray(y.cpu() if isinstance(y, torch.Tensor) else y)
    lengths = [len(value) for value in values] + ([] if labels is None else [len(np.atleast_1d(labels))])
    if len(set(lengths)) > 1:
        raise ValueError(f"loader: the parts of batch {number} have different numbers of rows: {lengths}.")
    if labels is not None and classes is not None:
        labels = _as_classes(labels, classes, number)
    return Batch(number, inputs, labels)


def _as_classes(labels: NDArray[Any], classes: NDArray[Any], number: int) -> NDArray[Any]:
    """The labels, checked to be among the classes; indices of classes with names become names."""
    if labels.dtype.kind in "iu" and classes.dtype.kind not in "iuf":
        known = (labels >= 0) & (labels < len(classes))
        named = classes[np.where(known, labels, 0)]
    else:
        known, named = np.isin(labels, classes), labels
    if not known.all():
        raise ValueError(
            f"loader: batch {number} has the label {labels[~known].tolist()[0]!r}, which is none of "
            f"classes={classes.tolist()}."
        )
    return named


def check_fixed_order(loader: Iterable[Any]) -> None:
    samplers = [getattr(source, "sampler", None) for source in (loader, getattr(loader, "batch_sampler", None))]
    for sampler in samplers:
        if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
            raise ValueError(
                f"loader draws its rows with {type(sampler).__name__}, in another order each time. Pass "
                "shuffle=False; to extract some rows only, wrap the data set in torch.utils.data.Subset."
            )
        if isinstance(sampler, DistributedSampler):
            raise ValueError(
                "loader has a DistributedSampler, which gives each process other rows. Pass the loader of all rows, "
                "and worker='torchrun'."
            )


def skip_cached_rows(batches: Iterator[Batch], found: FeatureCache | None) -> Iterator[Batch]:
    """The batches, without the rows that the cache has already."""
    n_cached = 0 if found is None else found.n_rows
    start = 0
    for batch in batches:
        n_skipped = min(max(n_cached - start, 0), batch.n_rows)
        if found is not None and n_skipped:
            check_same_labels(batch.rows(0, n_skipped), found, start)
        if n_skipped < batch.n_rows:
            yield batch.rows(n_skipped, batch.n_rows) if n_skipped else batch
        start += batch.n_rows
    if start < n_cached:
        raise ValueError(
            f"loader gave {start} rows but the cache has {n_cached} already: it holds other data. Give another folder."
        )


def check_same_labels(batch: Batch, found: FeatureCache, start: int) -> None:
    """Raise a ValueError unless the batch has the labels that the cache has from row `start` on."""
    if found.y is None or batch.y is None:
        agree = found.y is None and batch.y is None
    else:
        agree = np.array_equal(found.y[start : start + batch.n_rows], batch.y)
    if not agree:
        raise ValueError(
            f"loader: the labels of batch {batch.number} are not those that the cache {str(found.path)!r} has for the "
            "same rows. Give the loader it was begun with, or another folder."
        )
