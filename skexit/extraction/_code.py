"""Finds the names that code reads and changes, and the functions that a call may reach."""

from __future__ import annotations

import dis
import functools
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_STORES = ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "STORE_DEREF")
_CACHED_FUNCTION = type(functools.lru_cache(len))
_LOADS = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_NAME")
#: Stands for all names, if code looks up names that only a run determines.
ANY_NAME = "*"
#: Methods that change a container; those of tensors end with an underscore.
_CHANGES = frozenset(
    ("append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard")
)


def is_installed(value: Any) -> bool:
    """Whether a function or class comes from an installed package or from Python itself."""
    if isinstance(value, FunctionType):
        return value.__code__.co_filename.startswith(_INSTALLED)
    module = sys.modules.get(value.__module__)
    # Notebooks and built-in modules have no file.
    file = getattr(module, "__file__", None)
    return file.startswith(_INSTALLED) if file else value.__module__ != "__main__"


@functools.lru_cache(maxsize=10_000)
def names_read(code: CodeType) -> frozenset[str]:
    """Names that code and the functions inside it look up, with `ANY_NAME` if code of the user computes names.

    Strings count as names, because of calls such as ``getattr(self, "scale")``.
    """
    constants = [part for one in code.co_consts for part in (one if isinstance(one, tuple) else (one,))]
    texts = {text for text in constants if isinstance(text, str) and text.isidentifier()}
    names = {*code.co_names, *code.co_freevars}
    computes_names = "getattr" in names and (
        not texts or any(one.opname == "BUILD_STRING" for one in dis.get_instructions(code))
    )
    if not code.co_filename.startswith(_INSTALLED) and (computes_names or names & {"vars", "__dict__"}):
        names.add(ANY_NAME)
    within = [names_read(constant) for constant in constants if isinstance(constant, CodeType)]
    return frozenset(names.union(texts, *within))


@functools.lru_cache(maxsize=10_000)
def names_changed(code: CodeType) -> frozenset[str]:
    """Names of attributes and variables that code and the functions inside it assign or change in place."""
    texts = [constant for constant in code.co_consts if isinstance(constant, str)]
    names = set(texts) if {"setattr", "delattr"} & {*code.co_names} else set()
    #: By the position where an expression begins, the last name that it loads: `cache` for ``self.cache[key]``.
    loaded: dict[Any, str] = {}
    for one in dis.get_instructions(code):
        begin = one.positions and (one.positions.lineno, one.positions.col_offset)
        is_change = one.opname in ("LOAD_ATTR", "LOAD_METHOD") and (
            one.argval in _CHANGES or (one.argval.endswith("_") and not one.argval.endswith("__"))
        )
        if one.opname in _STORES:
            names.add(one.argval)
        elif (is_change or one.opname in ("STORE_SUBSCR", "DELETE_SUBSCR")) and begin in loaded:
            names.add(loaded[begin])
        elif one.opname in _LOADS:
            loaded[begin] = one.argval
    within = [names_changed(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(names.union(*within))


def functions_in(value: Any) -> list[FunctionType]:
    """The Python functions inside a callable or an attribute of a class, and the functions in their closures."""
    found: list[FunctionType] = []
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, FunctionType):
            if one not in found:
                found.append(one)
                todo += map(contents, one.__closure__ or ())
        elif isinstance(one, property):
            todo.append(one.fget)
        elif isinstance(one, MethodType | staticmethod | classmethod):
            todo.append(one.__func__)
        elif isinstance(one, functools.partial | functools.partialmethod | functools.cached_property):
            todo.append(one.func)
        elif isinstance(one, _CACHED_FUNCTION):
            todo.append(one.__wrapped__)
    return found


def contents(cell: Any) -> Any:
    """The value in a cell of a closure, or None if the cell is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def attributes_of(kind: type, *, own: bool = False) -> dict[str, Any]:
    """Attributes of a class, without those of nn.Module and object; if `own`, only those of the user's classes."""
    bases = [base for base in kind.__mro__ if base not in (nn.Module, object) and not (own and is_installed(base))]
    return {name: value for base in reversed(bases) for name, value in vars(base).items()}


def reached_names(roots: Iterable[Any], classes: Iterable[type]) -> set[str]:
    """Names that callables look up, and the functions that they may call: those in their modules and in `classes`."""
    methods = defaultdict(list)
    for kind in classes:
        for name, value in attributes_of(kind).items():
            methods[name].append(value)
    names: set[str] = set()
    todo = [function for root in roots for function in functions_in(root)]
    seen = set()
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        read = names_read(function.__code__)
        for name in read:
            called = function.__globals__.get(name)
            if isinstance(called, FunctionType) and (
                not is_installed(called) or called.__globals__ is function.__globals__
            ):
                todo.append(called)
        todo += [method for name in read - names for value in methods[name] for method in functions_in(value)]
        names |= read
    return names
