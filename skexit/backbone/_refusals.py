"""Errors for networks that cannot be divided at an exit, with the nearest places where they can be divided."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

from skexit.backbone._inputs import Inputs
from skexit.backbone._modules import split_call
from skexit.backbone._places import places_in
from skexit.backbone._tracing import trace


def refusal(model: nn.Module, inputs: Inputs, error: Exception) -> ValueError:
    """The error for a network that cannot be recorded, with the line of its code that raised, and its module."""
    place = next(filter(None, (_line_of_module(model, cause.__traceback__) for cause in _causes(error))), None)
    first_line = str(error).strip().partition("\n")[0]
    if place is None:
        where, elsewhere = "", ""
    else:
        module, line = place
        where = f"in {module!r} at {line} " if module else f"at {line} "
        elsewhere = nearest_places(model, inputs, module) if module else ""
    return ValueError(
        f"{type(model).__name__} cannot be divided at its exits: an operation {where}depends on the values or the "
        f"number of its inputs, or takes something other than tensors: {first_line.rstrip(' .')}. Move it into a "
        f"module of its own, between the exits.{elsewhere}"
    )


def nearest_places(model: nn.Module, inputs: Inputs, name: str) -> str:
    """A sentence with the last place before a module, and the first after it, where a network can be divided."""
    try:
        traced = trace(model, inputs)
    except Exception:
        return ""
    name = split_call(name)[0]
    inside = [call.end for call in traced.calls if _is_inside(call.name, name)]
    places = [place for place in places_in(traced) if place.can_divide and not _is_inside(place.name, name)]
    before = [place.name for place in places if inside and place.end < min(inside)][-1:]
    after = [place.name for place in places if inside and place.end > max(inside)][:1]
    found = [f"{place!r} before it" for place in before] + [f"{place!r} after it" for place in after]
    return f" The nearest places for an exit are {' and '.join(found)}." if found else ""


def _is_inside(name: str, parent: str) -> bool:
    return f"{split_call(name)[0]}.".startswith(f"{parent}.")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and the errors that caused it."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _line_of_module(model: nn.Module, traceback: TracebackType | None) -> tuple[str, str] | None:
    """The innermost module of the network in a traceback, and the line of its code; None if there is none."""
    names = {id(module): name for name, module in model.named_modules()}
    found = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        owner = traceback.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_varnames else None  # self
        if id(owner) in names and not code.co_filename.startswith(_NOT_ITS_CODE):
            text = linecache.getline(code.co_filename, traceback.tb_lineno).strip()
            found = names[id(owner)], f"line {traceback.tb_lineno} of {Path(code.co_filename).name}, `{text}`,"
        traceback = traceback.tb_next
    return found


#: Folders of the code that calls a network's modules.
_NOT_ITS_CODE = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
