"""What the items of a loader hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader

from skexit.backbone._inputs import Inputs

_LABEL_NAMES = ("labels", "label")


def read_item(number: int, item: Any) -> tuple[Inputs, Any]:
    """The inputs and the labels in an item of a loader.

    Parameters
    ----------
    number : int
        Of the item, for messages.
    item : tensor, (x, y), (x,) or dict
        x is a tensor or a dict of tensors; of a dict, ``"labels"`` or ``"label"`` are the labels.

    Returns
    -------
    inputs : tensor or dict of tensors
        Each with one row a sample.
    labels : object
        None where there are none.

    Raises
    ------
    ValueError
        If the item has another form.
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
            "give a tensor or a dict of tensors, with one row a sample."
        )
    return inputs, labels


def count_rows(loader: Iterable[Any]) -> int | None:
    """Number of rows that a loader gives, None where it does not say."""
    if not isinstance(loader, DataLoader) or loader.batch_size is None or not isinstance(loader.sampler, Sized):
        return None
    n_rows = len(loader.sampler)
    return n_rows - n_rows % loader.batch_size if loader.drop_last else n_rows
