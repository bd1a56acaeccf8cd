"""What the items of a loader hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader

from skexit.backbone._inputs import Inputs

_LABEL_NAMES = ("labels", "label")


def read_item(number: int, item: Any) -> tuple[Inputs, Any]:
    """The inputs and the labels (or None) in an item of a loader; the item's number is for messages.

    An item is ``x``, ``(x,)``, ``(x, y)`` or a dict. ``x`` is a tensor or a dict of tensors with one row per sample;
    the ``"labels"`` or ``"label"`` of a dict are its labels. A ValueError says if the item has another form.
    """
    inputs, labels = item, None
    if isinstance(item, list | tuple):
        if len(item) not in (1, 2):
            raise ValueError(f"loader: batch {number} has {len(item)} parts; give x, (x, y) or a dict.")
        inputs, labels = item if len(item) == 2 else (item[0], None)
    elif isinstance(item, Mapping):
        labels = next((item[name] for name in _LABEL_NAMES if name in item), None)
        inputs = {name: value for name, value in item.items() if name not in _LABEL_NAMES}
    values = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    if not values or not all(isinstance(value, torch.Tensor) and value.ndim for value in values):
        raise ValueError(
            f"loader: x of batch {number} has {[type(value).__name__ for value in values]}; "
            "give a tensor or a dict of tensors, with one row per sample."
        )
    return inputs, labels


def count_rows(loader: Iterable[Any]) -> int | None:
    """Number of rows that a loader gives, None where it does not say."""
    if not isinstance(loader, DataLoader) or loader.batch_size is None or not isinstance(loader.sampler, Sized):
        return None
    n_rows = len(loader.sampler)
    return n_rows - n_rows % loader.batch_size if loader.drop_last else n_rows
