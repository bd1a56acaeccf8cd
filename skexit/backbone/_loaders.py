"""Read inputs and labels from the items of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from skexit.backbone._inputs import (
    LABEL_NAMES,
    Inputs,
    check_dense,
    describe_given,
    fields_of,
    in_form,
    named_tensors,
    tensors_of,
)


def check_gives_batches(loader: Any) -> None:
    """Raise a ValueError unless a loader gives batches: it may be a batch itself, in any form, or a list of samples."""
    if isinstance(loader, str) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise ValueError(
            f"loader is {describe_given(loader)}. Pass a torch.utils.data.DataLoader, or a list of batches, such as "
            "[x] or [(x, y)]."
        )
    if isinstance(loader, np.ndarray | torch.Tensor) or _is_frame(loader):
        of_tensors = "" if isinstance(loader, torch.Tensor) else " of tensors"
        raise ValueError(
            f"loader is {describe_given(loader)}. Pass a list of batches{of_tensors}, such as [{_as_tensor(loader)}]."
        )
    if isinstance(loader, Mapping):
        raise ValueError(f"loader is one batch, {describe_given(loader)}. Pass a list of batches, such as [batch].")
    if isinstance(loader, list | tuple) and len(loader) > 1:
        _check_is_not_one_batch(loader)
        if all(isinstance(part, np.ndarray) and part.shape == loader[0].shape and part.ndim == 1 for part in loader):
            raise ValueError(
                f"loader has {len(loader)} arrays of shape {loader[0].shape}, which are samples. Pass a list of "
                f"batches of tensors, such as [{_as_tensor(list(loader), 'samples')}]."
            )


def _check_is_not_one_batch(loader: Sequence[Any]) -> None:
    """Raise a ValueError for inputs and their labels that are in no list."""
    *inputs, labels = loader
    n_rows = _n_rows(inputs[0])
    if not all(_n_rows(part) == n_rows and _has_columns(part) for part in inputs):
        return
    if labels is None and len(inputs) == 1:
        raise ValueError(
            f"loader is one batch of {n_rows} rows. Pass a list of batches, such as [{_as_tensor(inputs[0])}]."
        )
    if _n_rows(labels) == n_rows and _is_column(labels):
        names = ["x"] if len(inputs) == 1 else [f"x{i}" for i in range(len(inputs))]
        parts = ", ".join(_as_tensor(part, name) for part, name in zip(inputs, names, strict=True))
        raise ValueError(
            f"loader is one batch of {n_rows} rows and their labels. Pass a list of batches, such as [({parts}, y)]."
        )


def _is_frame(given: Any) -> bool:
    return hasattr(given, "columns") and hasattr(given, "to_numpy")


def _n_rows(given: Any) -> int | None:
    """Length of something, None if it has none: tensors of no dimension are sized, but have no length."""
    return len(given) if isinstance(given, Sized) and getattr(given, "ndim", 1) > 0 else None


def _has_columns(given: Any) -> bool:
    """Whether the rows of something are more than one number each, as far as it tells."""
    if isinstance(given, list | tuple):
        return len(given) > 0 and isinstance(given[0], np.ndarray | torch.Tensor) and given[0].ndim > 0
    return len(getattr(given, "shape", ())) > 1


def _is_column(given: Any) -> bool:
    """Whether something has one number or name per row."""
    if isinstance(given, list | tuple):
        return all(isinstance(label, Number | str) or np.ndim(label) == 0 for label in given)
    return len(getattr(given, "shape", ())) == 1


def _as_tensor(given: Any, name: str = "x") -> str:
    """Code that makes a tensor of something that is called `name`."""
    if isinstance(given, np.ndarray):
        return f"torch.from_numpy({name}){'.float()' if given.dtype == np.float64 else ''}"
    if _is_frame(given):
        return f"torch.tensor({name}.to_numpy(dtype='float32'))"
    if isinstance(given, list | tuple):
        stacked = f"numpy.stack({name})" if isinstance(given[0], np.ndarray) else f"torch.stack(tuple({name}))"
        return _as_tensor(given[0], stacked)
    return name


def read_item(number: int, item: Any) -> tuple[Inputs, Any]:
    """The inputs and the labels (or None) in an item of a loader; the item's number is for messages.

    An item is ``x``, ``(x,)``, ``(x, y)``, several inputs and y, or a dict or dataclass. ``x`` is a tensor, or several
    in a tuple or dict, with one row per sample; an entry ``labels`` or ``label`` is y. Raises a ValueError if the
    item has another form.
    """
    inputs, labels = item, None
    if isinstance(item, list | tuple) and len(item) > 1:
        inputs, labels = item[0] if len(item) == 2 else item[:-1], item[-1]
    elif (fields := fields_of(item)) is not None:
        labels = next((fields[name] for name in LABEL_NAMES if name in fields), None)
    inputs = in_form(inputs, f"loader: batch {number}: the network")
    first = tensors_of(inputs)[0]
    for name, tensor in named_tensors(inputs).items():
        check_dense(tensor, f"loader: {name} of batch {number}")
    if first.is_meta:
        raise ValueError(f"loader: batch {number} is on the device 'meta', which has shapes only. Give real inputs.")
    if isinstance(labels, torch.Tensor) and first.ndim > 1 and labels.shape == first.shape:
        raise ValueError(
            f"loader: the last part of batch {number}, which is y, has the shape {tuple(labels.shape)} of an input. "
            "Give y after the inputs, or several inputs without y as a dict or one tuple: ((x, mask),)."
        )
    return inputs, labels


def count_rows(loader: Iterable[Any]) -> int | None:
    """Number of rows of a loader, None if it is not known."""
    if not isinstance(loader, DataLoader) or loader.batch_size is None or not isinstance(loader.sampler, Sized):
        return None
    n_rows = len(loader.sampler)
    return n_rows - n_rows % loader.batch_size if loader.drop_last else n_rows
