"""Errors for what is passed to an estimator in place of X and y."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from skexit.data._layout import ExitLayout

_OUTPUTS = (
    "X has the outputs of a network's exits: pass the X of a cache, as ExitExtractor(network).extract(loader, path).X, "
    "or stack_exits(logits)."
)


def check_is_not_input(X: Any) -> None:
    """Raise a ValueError if X is an input of a network, such as images, or a cache or its path instead of its X."""
    if isinstance(X, str | PurePath):
        raise ValueError(f"X is {str(X)!r}; pass the X of the cache in this folder, skexit.FeatureCache({str(X)!r}).X.")
    if X is None:
        raise ValueError(f"X is None. {_OUTPUTS}")
    if isinstance(getattr(getattr(X, "X", None), "layout", None), ExitLayout):
        raise ValueError(f"X is a {type(X).__name__}; pass its X, cache.X.")
    shape = _shape(X)
    if len(shape) > 3:
        raise ValueError(
            f"X has the shape {shape}, as images have. {_OUTPUTS} Images are for a live network, "
            "skexit.runtime.EarlyExitModel(network, exits, policy)."
        )


def _shape(X: Any) -> tuple[int, ...]:
    """The shape of an array or a list of arrays; empty for anything else."""
    if isinstance(X, list | tuple) and len(X):
        return (len(X), *getattr(X[0], "shape", ()))
    shape = getattr(X, "shape", ())
    return tuple(shape) if isinstance(shape, tuple) else ()
