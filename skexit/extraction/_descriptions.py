"""Describes networks and callables by texts: equal in every process, and different for different computations."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from skexit.extraction._code import (
    ANY_NAME,
    attributes_of,
    contents,
    functions_in,
    is_installed,
    names_changed,
    names_read,
    reached_names,
)

_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, range, type(...), torch.dtype, torch.memory_format)
_CONTAINERS = (list, tuple, set, frozenset, Mapping, np.ndarray, torch.Tensor)
#: Attributes of modules that torch itself sets, or that do not change the output.
_IGNORED_ATTRIBUTES = {*vars(nn.Module()), "_compiled_call_impl", "use_cache"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
#: Entries of configurations, such as those of Hugging Face, that do not change the output of a network.
_IGNORED_ENTRIES = {"use_cache", "transformers_version", "architectures", "dtype", "torch_dtype"}
#: Methods that set attributes when an object is made, not when a network runs.
_SETTING_UP = {"__init__", "__new__", "__post_init__", "__setstate__"}
#: Parts at a greater depth are left out, because some objects refer to the whole program.
_MAX_DEPTH = 30


class _Plain:
    """Its objects have no state but their attributes; objects of a larger basic size have more state."""


def model_lines(model: nn.Module) -> Iterator[str]:
    """Lines that describe a network: the code of its modules, the settings that it reads, and its values.

    Values that the code changes when the network runs are left out, as are parts that cannot be described.
    """
    return Description(_names_of(model)).module_lines(model)


def tensor_text(tensor: torch.Tensor) -> str:
    # The values are described by their CRC, which takes a third of the time of a SHA-256 digest.
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype}, {tuple(tensor.shape)}, {zlib.crc32(values.data)}"


class Description:
    """Describes values, each once. A setting of a module counts if it is in `names` and no code changes it.

    `refuse` is called with the type of a part that cannot be described, and may raise an error; otherwise the part is
    left out. `known` has texts of values by their id, together with the values, so that no other value gets the id.
    """

    def __init__(
        self,
        names: set[str],
        refuse: Callable[[str], object] = lambda kind: None,
        known: dict[int, tuple[Any, str]] | None = None,
    ) -> None:
        self._names = names
        self._refuse = refuse
        self._known = {} if known is None else known
        #: Names of attributes that the current module changes, its own and those of objects that it has.
        self._changed: frozenset[str] = frozenset()

    def of(self, value: Any, depth: int = 0) -> str:
        """The repr of a plain value, or a short digest of the description of any other value."""
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, torch.device):  # the device does not change the computation
            return "device"
        if id(value) not in self._known:
            self._known[id(value)] = (value, "one of those around it")
            text = self._describe(value, depth + 1) if depth < _MAX_DEPTH else self._leave_out(value)
            self._known[id(value)] = (value, hashlib.sha256(text.encode()).hexdigest()[:16])
        return self._known[id(value)][1]

    def module_lines(self, model: nn.Module) -> Iterator[str]:
        """A line for each parameter, buffer and module of a network."""
        # Parameters and buffers come first, so that a module with a list of them refers to them by name.
        counters = _counters(model)
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            if id(tensor) in counters:
                continue
            self._known[id(tensor)] = (tensor, _uncompiled_name(name))
            yield f"{_uncompiled_name(name)}: {tensor_text(tensor)}\n"
        modules = [(_uncompiled_name(name), module) for name, module in _named_modules(model)]
        for name, module in modules:
            self._known.setdefault(id(module), (module, f"module {name}"))
        for name, module in modules:
            known = self._known[id(module)][1]
            first = known == f"module {name}"
            yield f"{name}: {self._describe_module(module) if first else known}\n"

    def _describe(self, value: Any, depth: int) -> str:
        inner = functools.partial(self.of, depth=depth)
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(named := getattr(value, "fingerprint", None), str):
            return f"fingerprint {named!r}"
        if isinstance(value, list | tuple | set | frozenset):
            items = map(inner, value)
            return f"{kind}({', '.join(sorted(items) if isinstance(value, set | frozenset) else items)})"
        if isinstance(value, Mapping):
            return f"{kind}({', '.join(f'{inner(key)}: {inner(item)}' for key, item in value.items())})"
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__} {'' if is_installed(value) else inner(_own_parts(value))}"
        if isinstance(value, BuiltinFunctionType | np.ufunc):
            return f"{getattr(value, '__module__', '')}.{value.__name__}"
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
        if isinstance(value, torch.Tensor):
            return tensor_text(value)
        if isinstance(value, nn.Module):
            inside = Description(self._names | _names_of(value), self._refuse, self._known)
            del self._known[id(value)]
            return "".join(inside.module_lines(value))
        if isinstance(value, CodeType):
            return f"code {value.co_code.hex()} {value.co_names} {inner(value.co_consts)}"
        if isinstance(value, FunctionType):
            return f"{value.__qualname__} {self._describe_function(value, inner)}"
        if isinstance(value, MethodType):
            return f"{inner(value.__func__)} of {inner(value.__self__)}"
        if isinstance(value, functools.partial):
            return f"partial {inner(value.func)} {inner(value.args)} {inner(value.keywords)}"
        if functions := functions_in(value):  # a property or a cached function
            return f"{kind} {inner(functions)}"
        return self._describe_object(value, kind, inner)

    def _describe_function(self, function: FunctionType, inner: Callable[[Any], str]) -> str:
        """Code, defaults, closure, and the global values that the code reads, for a function of the user."""
        code = function.__code__
        cells = {name: contents(cell) for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)}
        if is_installed(function):  # perhaps a decorator around a function of the user
            return f"{function.__module__} {inner([cell for cell in cells.values() if isinstance(cell, FunctionType)])}"
        reads = {name: function.__globals__[name] for name in names_read(code) if name in function.__globals__}
        state = {name: value for name, value in sorted((reads | cells).items()) if name not in names_changed(code)}
        return " ".join(map(inner, (code, function.__defaults__, function.__kwdefaults__, state)))

    def _describe_object(self, value: Any, kind: str, inner: Callable[[Any], str]) -> str:
        if callable(getattr(value, "to_dict", None)):
            return f"{kind} {inner(_without_ignored(value.to_dict()))}"
        if dataclasses.is_dataclass(value):
            state = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        elif isinstance(value, SimpleNamespace) or (
            type(value).__basicsize__ == _Plain.__basicsize__ and _is_described(value)
        ):
            state = vars(value)
        else:
            return self._leave_out(value)
        changed = self._changed | _changed_by(type(value))
        return f"{kind} {inner(type(value))} {inner(_kept(state, type(value), changed))}"

    def _describe_module(self, module: nn.Module) -> str:
        own = {} if is_installed(type(module)) else attributes_of(type(module), own=True)
        kept = {name: value for name, value in vars(module).items() if name not in _IGNORED_ATTRIBUTES}
        hooks = [value for name in _HOOKS for value in getattr(module, name).values()]
        self._changed = _changed_by(type(module), *kept.values(), *hooks)
        read = self._names | {"forward", "__call__"} | ({*own, *kept} if ANY_NAME in self._names else set())
        parts = {k: v for k, v in sorted((own | _kept(kept, type(module), self._changed)).items()) if k in read}
        described = ", ".join(f"{name}={self._of_part(value)}" for name, value in parts.items())
        return f"{type(module).__qualname__}({described}) {[self._of_part(hook) for hook in hooks]}"

    def _of_part(self, value: Any) -> str:
        """The text of a part of a module; empty for objects that raise an error when they are read."""
        try:
            return self.of(value)
        except Exception:
            return ""

    def _leave_out(self, value: Any) -> str:
        self._refuse(f"{type(value).__module__}.{type(value).__qualname__}")
        return ""


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules, once for each of their names, without the wrappers of torch.compile."""
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module).__name__ != "OptimizedModule":
            yield name, module


def _uncompiled_name(name: str) -> str:
    """The name that a module or parameter has without torch.compile."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _names_of(model: nn.Module) -> set[str]:
    """Names that a network may look up when it runs."""
    modules = [module for _, module in _named_modules(model)]
    values = [value for module in modules for name, value in vars(module).items() if name not in _IGNORED_ATTRIBUTES]
    hooks = [hook for module in modules for name in _HOOKS for hook in getattr(module, name).values()]
    kinds = {type(module) for module in modules}
    helpers = {type(value) for value in (*values, *hooks) if not is_installed(type(value))}
    roots = [getattr(kind, name) for kind in kinds | helpers for name in ("forward", "__call__") if hasattr(kind, name)]
    return reached_names([*roots, *values, *hooks], kinds | helpers)


@functools.lru_cache(maxsize=1000)
def _changed_by_class(kind: type) -> frozenset[str]:
    """Names of attributes that objects of a class change when they are called."""
    defined = attributes_of(kind)
    roots = [defined[name] for name in ("forward", "__call__") if name in defined]
    reached = reached_names(roots, [kind]) | {"forward", "__call__"}
    methods = [value for name, value in defined.items() if name in reached - _SETTING_UP]
    return frozenset().union(*(names_changed(each.__code__) for value in methods for each in functions_in(value)))


def _changed_by(kind: type, *callables: Any) -> frozenset[str]:
    """Names of attributes that objects of a class, and these callables, change when they are called."""
    functions = [function for value in callables for function in functions_in(value)]
    return _changed_by_class(kind).union(*(names_changed(function.__code__) for function in functions))


def _counters(model: nn.Module) -> set[int]:
    """Ids of the integer buffers that modules change when they are called."""
    return {
        id(buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not (buffer.is_floating_point() or buffer.is_complex()) and name in _changed_by(type(module))
    }


def _is_described(value: Any) -> bool:
    """Whether an object is of a user's class, callable or an estimator; others, as loggers, refer to the program."""
    return not is_installed(type(value)) or callable(value) or hasattr(value, "get_params")


def _kept(state: Mapping[str, Any], kind: type, changed: frozenset[str]) -> dict[str, Any]:
    """Attributes of an object of a class, without cached properties and those that its code changes."""
    remembered = {k for k, v in attributes_of(kind).items() if isinstance(v, functools.cached_property)}
    return {name: value for name, value in state.items() if name not in changed | remembered}


def _own_parts(kind: type) -> dict[str, Any]:
    """Functions and plain values that the user's own class defines."""
    is_generated = dataclasses.is_dataclass(kind)
    return {
        name: value
        for name, value in sorted(attributes_of(kind, own=True).items())
        if (not name.startswith("__") and isinstance(value, (*_PLAIN, *_CONTAINERS)))
        or (functions_in(value) and not (is_generated and name.startswith("__")))
    }


def _without_ignored(entries: Any) -> Any:
    """A configuration without private entries and those that do not change the output of a network."""
    if not isinstance(entries, dict):
        return entries
    return {
        name: _without_ignored(entry)
        for name, entry in entries.items()
        if name not in _IGNORED_ENTRIES and not str(name).startswith("_")
    }
