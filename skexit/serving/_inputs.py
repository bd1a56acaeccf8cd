"""Checks of the inputs of a request, before it joins a batch with other requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

#: Inputs of a request: one array, or several by name.
Arrays: TypeAlias = NDArray[Any] | dict[str, NDArray[Any]]


@dataclass(frozen=True)
class InputArray:
    """One input of the network: its name in messages, its type, and the shape of a row.

    `row_shape` is None if rows are sequences of integers, which may have any length.
    """

    name: str
    dtype: DTypeLike
    row_shape: tuple[int, ...] | None

    @classmethod
    def like(cls, name: str, example: torch.Tensor) -> InputArray:
        """The input that `example` is an example of."""
        # NumPy has no bfloat16.
        dtype = torch.float32 if example.dtype == torch.bfloat16 else example.dtype
        is_sequence = not example.is_floating_point() and example.ndim == 2
        row_shape = None if is_sequence else tuple(example.shape[1:])
        return cls(name, torch.empty(0, dtype=dtype, device="cpu").numpy().dtype, row_shape)

    def array(self, values: Any) -> NDArray[Any]:
        """The values as an array with one row per sample; raises a ValueError if they do not fit the network."""
        try:
            given = np.asarray(values)
        except ValueError as error:
            raise ValueError(f"{self.name} has rows of different lengths; {self._expected()}.") from error
        if given.dtype.kind not in "biuf":
            raise ValueError(f"{self.name} holds values that are not numbers; {self._expected()}.")
        if given.ndim != self._n_axes() or (self.row_shape is not None and given.shape[1:] != self.row_shape):
            raise ValueError(f"{self.name} has the shape {given.shape}; {self._expected()}.")
        if not len(given):
            raise ValueError(f"{self.name} has no rows; pass at least one.")
        return self._as_dtype(given)

    def _as_dtype(self, given: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):
            array = given.astype(self.dtype)
        if array.dtype.kind == "f":
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{self.name} holds NaN, infinity or values beyond {array.dtype}; leave such rows out."
                )
        elif not np.array_equal(array, given):
            raise ValueError(f"{self.name} holds values that are not of the type {array.dtype}.")
        return array

    def _n_axes(self) -> int:
        return 2 if self.row_shape is None else 1 + len(self.row_shape)

    def _expected(self) -> str:
        sizes = ["length"] if self.row_shape is None else [str(size) for size in self.row_shape]
        return f"pass numbers of shape ({', '.join(['n_samples', *sizes])})"


class InputFormat:
    """The inputs of the network: one array, or several by name.

    Parameters
    ----------
    example : tensor or dict of tensors
        The input for which the live network was prepared.
    """

    def __init__(self, example: Any) -> None:
        if isinstance(example, torch.Tensor):
            self._named: dict[str, InputArray] | None = None
            self._single = InputArray.like("inputs", example)
        elif isinstance(example, Mapping):
            self._named = {name: InputArray.like(f"inputs[{name!r}]", tensor) for name, tensor in example.items()}
        else:
            raise ValueError(
                "the live network was prepared for several inputs by position, but a request has inputs by name. "
                "Prepare it again for a dict of tensors: live.prepare({'name': tensor, ...})."
            )

    def arrays(self, inputs: Any) -> Arrays:
        """Inputs of a request as arrays; raises a ValueError if they do not fit the network."""
        if self._named is None:
            return self._single.array(inputs)
        if not isinstance(inputs, Mapping) or set(inputs) != set(self._named):
            given = sorted(inputs) if isinstance(inputs, Mapping) else f"a {type(inputs).__name__}"
            raise ValueError(f"inputs must have the names {sorted(self._named)}, but got {given}.")
        arrays = {name: like.array(inputs[name]) for name, like in self._named.items()}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"inputs have different numbers of rows: {lengths}. Pass the same samples in each.")
        return arrays


def inputs_in(body: bytes) -> Any:
    """The inputs in the body of an HTTP request; raises a ValueError if the body is not JSON of the expected form."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'the body is not JSON ({error}). Send {{"inputs": [...]}}, one row per sample.') from error
    if not isinstance(content, dict) or set(content) != {"inputs"}:
        names = f"the names {sorted(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f'the body has {names}. Send {{"inputs": [...]}}, one row per sample.')
    return content["inputs"]
