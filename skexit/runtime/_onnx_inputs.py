"""Checks of the inputs of a network in an ONNX file, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray


class ExpectedInput(TypedDict):
    """An input of the file: its name, its type, and its shape, in which None is any size."""

    name: str
    dtype: str
    shape: list[int | None]


def checked_arrays(given: Any, expected: Sequence[ExpectedInput], *, by_name: bool) -> list[NDArray[Any]]:
    """The inputs as arrays in the order of the file. A ValueError says if the network cannot take them."""
    names = [each["name"] for each in expected]
    if by_name:
        found = list(given) if isinstance(given, Mapping) else type(given).__name__
        if not isinstance(given, Mapping) or set(given) != set(names):
            raise ValueError(f"the network needs the inputs {names} by name, but got {found}. Pass a dict of them.")
        arrays = [_as_array(given[name], name) for name in names]
    else:
        parts = given if isinstance(given, tuple | list) else [given]
        if len(parts) != len(names):
            raise ValueError(
                f"the network needs {len(names)} inputs, but got {len(parts)}. {_cure_of_parts(parts, expected)}"
            )
        arrays = [_as_array(part, name) for part, name in zip(parts, names, strict=True)]
    for each, array in zip(expected, arrays, strict=True):
        _check_array(array, **each)
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1 or lengths[0] == 0:
        raise ValueError(f"the inputs have {lengths} rows; all must have the same number of rows, at least one.")
    return arrays


def _as_array(given: Any, name: str) -> NDArray[Any]:
    images = given if isinstance(given, list | tuple) and given else [given]
    if any(type(image).__module__.partition(".")[0] == "PIL" for image in images):
        raise ValueError(
            f"the input {name} is an image of PIL. Convert images by the transform of the network, and pass an array "
            "with one row per image: numpy.stack([transform(image) for image in images])."
        )
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ValueError(
            f"the input {name} has rows of different shapes. Resize or pad them to one shape, and pass one array."
        ) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"the input {name} is of type {type(given).__name__}, which holds no numbers. Pass a NumPy array with one "
            "row per sample, one batch at a time."
        )
    return array


def _cure_of_parts(parts: Sequence[Any], expected: Sequence[ExpectedInput]) -> str:
    """What to pass instead of another number of inputs than the file has."""
    shapes = [getattr(part, "shape", None) for part in parts]
    last = shapes[-1] if shapes else None
    if len(parts) == len(expected) + 1 and last is not None and len(last) == 1:
        return "The last one looks like labels; leave it out."
    row = tuple(expected[0]["shape"][1:])
    if len(expected) == 1 and parts and all(shape is not None and tuple(shape) == row for shape in shapes):
        return "Each has the shape of one sample: pass numpy.stack(samples), a batch."
    if len(expected) == 1 and parts and all(shape is not None and tuple(shape[1:]) == row for shape in shapes):
        return "Each is a batch of its own: pass one at a time, or numpy.concatenate(batches)."
    return f"Pass them in the order {[each['name'] for each in expected]}."


def _check_array(array: NDArray[Any], name: str, dtype: str, shape: Sequence[int | None]) -> None:
    if array.dtype != dtype:
        cure = f"Pass {name}.astype({dtype!r})."
        if array.dtype == np.uint8 and np.dtype(dtype).kind == "f":
            cure = f"Convert it as the training data were converted, for example by {name}.astype({dtype!r}) / 255."
        raise ValueError(
            f"the input {name} has the type {array.dtype}, but the network was exported for {dtype}. {cure}"
        )
    if not _fits(array.shape, shape):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"the input {name} has the shape {array.shape}, but the network was exported for ({wanted}). "
            f"{_cure_of_shape(name, array.shape, shape)}"
        )


def _cure_of_shape(name: str, given: tuple[int, ...], shape: Sequence[int | None]) -> str:
    row = list(shape[1:])
    if _fits(given, row):
        return f"That is the shape of one sample: pass {name}[None], a batch of one."
    if len(row) == 3 and _fits(given, [shape[0], row[1], row[2], row[0]]):
        return f"Its channels are last: pass {name}.transpose(0, 3, 1, 2)."
    if len(row) == 3 and row[0] == 1 and _fits(given, [shape[0], *row[1:]]):
        return f"The axis of the channels is missing: pass {name}[:, None]."
    return "Pass inputs of this shape, or export the network with an example_input of the other shape."


def _fits(given: tuple[int, ...], shape: Sequence[int | None]) -> bool:
    return len(given) == len(shape) and all(size in (None, found) for size, found in zip(shape, given, strict=True))
