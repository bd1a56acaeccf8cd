"""Read inputs and labels from the items of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from skexit.backbone._inputs import LABEL_NAMES, Inputs, describe_given, fields_of, in_form, tensors_of


def check_gives_batches(loader: Any) -> None:
    """Raise a ValueError unless a loader gives batches: it may be a batch itself, a tensor or a pair with labels."""
    if isinstance(loader, np.ndarray):
        raise ValueError(
            f"loader is {describe_given(loader)}. Pass a list of batches of tensors, such as [torch.from_numpy(x)]."
        )
    if isinstance(loader, str) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise ValueError(
            f"loader is {describe_given(loader)}. Pass a torch.utils.data.DataLoader, or a list of batches, such as "
            "[x] or [(x, y)]."
        )
    if isinstance(loader, torch.Tensor):
        raise ValueError(f"loader is a tensor of shape {tuple(loader.shape)}. Pass a list of batches, such as [x].")
    if isinstance(loader, tuple) and len(loader) == 2 and all(isinstance(part, torch.Tensor) for part in loader):
        inputs, labels = loader
        if inputs.ndim > 1 and labels.shape == inputs.shape[:1]:
            raise ValueError(
                f"loader is one batch of {len(labels)} rows and their labels. Pass a list of batches, such as [(x, y)]."
            )


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
