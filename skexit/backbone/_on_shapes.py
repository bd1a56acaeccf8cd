"""Run a network on shapes: tensors of the meta device, with values for those that depend on integers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skexit.backbone._outputs import are_plain, tensors_among

_META = torch.device("meta")
#: Elements of the largest tensor whose values are kept.
_MAX_KNOWN = 2**22


class ShapeMode(TorchDispatchMode):
    """Operations on the meta device, each run once for the same shapes.

    Results that depend on known values alone, such as integers, are computed, so that a network can read its masks and
    positions. If it reads a value that is not known, torch raises an error.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Tensors of the meta device with their known values, by id; kept alive, because ids are used again.
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        #: Storages that were known until an unknown value was written into them.
        self._lost: set[int] = set()
        self._results: dict[Any, Any] = {}

    def enter_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the meta device for another one; the values of integers and single numbers are known."""
        if tensor.layout != torch.strided or not are_plain([type(tensor)]):
            raise TypeError("the content of such a tensor does not follow from its shape.")
        shape = torch.empty_like(tensor, device=_META, requires_grad=False)
        is_known = not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 1
        if is_known and not tensor.is_meta:
            self._know(shape, tensor.detach().cpu().clone())
        return shape

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not are_plain(types):
            return NotImplemented
        kwargs = kwargs or {}
        tensors = tensors_among((*args, *kwargs.values()))
        known = [self._value_of(tensor) for tensor in tensors]
        if any(value is None for value in known) or _n_elements(args) > _MAX_KNOWN:
            self._forget_written(function, args)
            return self._shape_of_result(function, args, kwargs)
        on_meta = kwargs["device"] == _META if kwargs.get("device") else any(tensor.is_meta for tensor in tensors)
        value = function(*_map(self._value_of, args), **_map(self._value_of, kwargs | _on_cpu(kwargs)))
        if not on_meta:
            return value
        if _is_functional(function):
            shape = _map(lambda tensor: torch.empty_like(tensor, device=_META), value)
        else:
            shape = function(*args, **kwargs)
        for one, of_one in zip(tensors_among([shape]), tensors_among([value]), strict=True):
            self._know(one, of_one)
        return shape

    def _know(self, shape: torch.Tensor, value: torch.Tensor) -> None:
        if value.numel() <= _MAX_KNOWN:
            self._known[id(shape)] = shape, value

    def _value_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        if not tensor.is_meta:
            return tensor
        _, value = self._known.get(id(tensor), (None, None))
        return None if value is None or tensor.untyped_storage()._cdata in self._lost else value

    def _forget_written(self, function: Any, args: Any) -> None:
        for argument, tensor in zip(function._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(tensor, torch.Tensor) and id(tensor) in self._known:
                self._lost.add(tensor.untyped_storage()._cdata)

    def _shape_of_result(self, function: Any, args: Any, kwargs: Any) -> Any:
        try:
            key = function, _key(args), _key(tuple(kwargs.items()))
            found = self._results.get(key)
        except (TypeError, RuntimeError, NotImplementedError):  # no hash, or not a plain tensor
            return function(*args, **kwargs)
        if found is not None:
            return _map(_empty_like, found)
        result = function(*args, **kwargs)
        if _is_functional(function) and all(tensor.is_meta for tensor in tensors_among([result])):
            self._results[key] = _map(_empty_like, result)  # a copy: storing the result itself would keep it alive
        return result


def _is_functional(function: Any) -> bool:
    """Whether an operator returns only new tensors, and changes none."""
    return all(one.alias_info is None for one in (*function._schema.arguments, *function._schema.returns))


def _n_elements(args: Any) -> int:
    """Number of elements that a factory makes, whose first argument is a size; 0 for other operators."""
    size = args[0] if args else ()
    return torch.Size(size).numel() if isinstance(size, list | tuple) and all(isinstance(n, int) for n in size) else 0


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"device": torch.device("cpu")} if kwargs.get("device") else {}


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)


def _map(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Apply a function to the tensors in arguments or results of an operator."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_map(function, part) for part in value])
    if isinstance(value, dict):
        return {name: _map(function, part) for name, part in value.items()}
    return value


def _key(value: Any) -> Any:
    """The parts of an operator's arguments on which the shape of its result depends."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return type(value), value
