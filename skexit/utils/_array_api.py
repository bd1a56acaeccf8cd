"""Namespaces of the array API, with a fast path for NumPy arrays and torch tensors.

A live network looks them up often for few rows, and the general look-up takes longer than the computation.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, cast

import array_api_compat
import array_api_compat.numpy
import numpy as np


def array_namespace(*arrays: Any) -> Any:
    """The namespace of the arrays, which must be the same for all of them."""
    return _namespace_of(cast(Any, type(arrays[0]))) or array_api_compat.array_namespace(*arrays)


@cache
def _namespace_of(kind: Any) -> Any:
    if kind is np.ndarray:
        return array_api_compat.numpy
    if (getattr(kind, "__module__", ""), getattr(kind, "__name__", "")) == ("torch", "Tensor"):
        return importlib.import_module("array_api_compat.torch")
    return None


def side_by_side(first: Any, second: Any) -> Any:
    """Columns of both arrays, either of which may be None."""
    if first is None or second is None:
        return second if first is None else first
    return array_namespace(first).concat([first, second], axis=1)


def at_least(values: Any, bound: float) -> Any:
    """The values, with smaller ones replaced by the bound; NaN stays."""
    if type(values) is np.ndarray:
        return np.maximum(values, bound, dtype=values.dtype)
    return array_namespace(values).clip(values, bound, None)


def take_in_rows(values: Any, columns: Any) -> Any:
    """The values of each row in some columns: ``values[i, columns[i, j]]``."""
    xp = array_namespace(values)
    if hasattr(xp, "gather"):  # take_along_axis of torch fixes the number of rows if it is recorded
        return xp.gather(values, 1, columns)
    return xp.take_along_axis(values, columns, axis=1)


def in_double(values: Any) -> Any:
    """Values in double precision, in which policies compute, if their device has it; without a gradient."""
    xp = _namespace_of(cast(Any, type(values)))
    if xp in (None, array_api_compat.numpy):
        return np.asarray(values, dtype=np.float64)
    return values.detach().to(xp.float32 if values.device.type == "mps" else xp.float64)


def as_like(values: Any, like: Any) -> Any:
    """Values as an array of the namespace, dtype and device of another."""
    if type(like) is np.ndarray:
        return np.asarray(values, dtype=like.dtype)
    return array_namespace(like).asarray(values, dtype=like.dtype, device=array_api_compat.device(like))
