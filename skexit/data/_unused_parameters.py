"""Parameters of an estimator that have no effect because of another parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from skexit.exceptions import UnusedParameterWarning
from skexit.utils._warnings import warn


@dataclass(frozen=True)
class Unused:
    """Parameters that have no effect where `applies`, a function of the estimator, is true of the parameter `other`.

    `cure` is a sentence that says how to use them, or what to do instead.
    """

    parameters: tuple[str, ...]
    other: str
    applies: Callable[[Any], bool]
    cure: str


def warn_of_unused_parameters(estimator: Any, unused: tuple[Unused, ...]) -> None:
    """Warn of parameters that were set to another value than the default and have no effect."""
    defaults = inspect.signature(type(estimator).__init__).parameters
    for rule in unused:
        if not rule.applies(estimator):
            continue
        given = {name: getattr(estimator, name) for name in rule.parameters}
        changed = {name: value for name, value in given.items() if not _is_equal(value, defaults[name].default)}
        if changed:
            other = {rule.other: getattr(estimator, rule.other)}
            warn(UnusedParameterWarning(type(estimator).__name__, changed, other, rule.cure))


def _is_equal(value: Any, default: Any) -> bool:
    if isinstance(value, list | tuple):
        return isinstance(default, list | tuple) and list(value) == list(default)
    return value is default or ((type(value) is not bool) == (type(default) is not bool) and bool(value == default))
