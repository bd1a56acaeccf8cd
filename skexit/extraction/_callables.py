"""What a callable does, as a text that tells one from another and is the same in every process."""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from collections.abc import Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from skexit.extraction._fingerprints import input_digest, model_fingerprint

_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, range, type(...), torch.dtype, torch.device)
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class _Plain:
    """Keeps its state in its attributes alone; an object that takes more memory keeps some elsewhere."""


def callable_fingerprint(function: Any) -> str:
    """Digest of the code of a callable, of what it has closed over and reads, and of its state.

    One with an attribute `fingerprint`, a string, is known by that. A ValueError says if a part cannot be described.
    """
    return hashlib.sha256(_describe(function, ()).encode()).hexdigest()[:16]


def _describe(value: Any, outer: tuple[Any, ...]) -> str:
    """What a value is; `outer` are those that it is a part of."""
    named = getattr(value, "fingerprint", None)
    if isinstance(named, str):
        return f"fingerprint {named!r}"
    if any(value is one for one in outer):
        return "one of those around it"
    inner = functools.partial(_describe, outer=(*outer, value))
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = map(inner, value)
        return f"{kind}({', '.join(sorted(items) if isinstance(value, set | frozenset) else items)})"
    if isinstance(value, Mapping):
        return f"{kind}({', '.join(f'{inner(key)}: {inner(item)}' for key, item in value.items())})"
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, type | BuiltinFunctionType | np.ufunc):
        return f"{getattr(value, '__module__', '')}.{value.__name__}"
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, torch.Tensor):
        return input_digest(value)
    if isinstance(value, nn.Module):
        return f"{model_fingerprint(value)} {inner(type(value).forward)}"
    if isinstance(value, CodeType):
        return f"code {value.co_code.hex()} {value.co_names} {inner(value.co_consts)}"
    if isinstance(value, FunctionType):
        return f"{value.__qualname__} {_describe_function(value, inner)}"
    if isinstance(value, MethodType):
        return f"{inner(value.__func__)} of {inner(value.__self__)}"
    if isinstance(value, functools.partial):
        return f"partial {inner(value.func)} {inner(value.args)} {inner(value.keywords)}"
    if type(value).__basicsize__ == _Plain.__basicsize__ and hasattr(value, "__dict__"):
        called = [type(value).__call__] if callable(value) else []
        return f"{kind} {inner(called)} {inner(vars(value))}"
    raise ValueError(
        f"pool has a part of type {kind}, by which extractions cannot be told apart. Give the callable an attribute "
        "fingerprint, a string that names what it does: pool.fingerprint = 'mean of corners, 1'."
    )


def _describe_function(function: FunctionType, inner: Any) -> str:
    """Code, defaults and closure, and what the code reads of its module, if this is the user's own."""
    if function.__code__.co_filename.startswith(_INSTALLED):
        return function.__module__
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    reads = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    return " ".join(map(inner, (function.__code__, function.__defaults__, function.__kwdefaults__, cells, reads)))


def _names(code: CodeType) -> list[str]:
    """Names that the code, and the functions within it, look up."""
    within = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return sorted({*code.co_names, *within})
