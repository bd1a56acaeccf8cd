"""Whether the features of two layouts were pooled in the same way, as far as both know it."""

from __future__ import annotations

from skexit.data._layout import ExitLayout


def is_same_pool(one: str | None, other: str | None) -> bool:
    """Whether two entries of ``ExitLayout.pools`` can be the same pooling; None can be any.

    Functions are compared by name only, without the module: a script is ``__main__`` where it runs.

    >>> is_same_pool("avg", "max"), is_same_pool("avg", None), is_same_pool("__main__.corner", "pools.corner")
    (False, True, True)
    """
    return one is None or other is None or one.rpartition(".")[2] == other.rpartition(".")[2]


def name_of_exit(layout: ExitLayout, k: int) -> str:
    """Name of an exit in messages: that of the network, if it is known, or its number."""
    return f"exit {k}" if layout.exit_names is None else f"exit {layout.exit_names[k]!r}"


def pool_cure(pool: str) -> str:
    """How to pass the pooling of an entry of ``ExitLayout.pools`` to an extraction or a live network.

    >>> pool_cure("avg+max"), pool_cure("pools.corner")
    ("pool=['avg', 'max']", 'the function pools.corner as pool=')
    """
    if "." in pool:
        return f"the function {pool} as pool="
    names = pool.split("+")
    return f"pool={names if len(names) > 1 else pool!r}"


def check_same_pools(own: ExitLayout, fitted: ExitLayout, estimator: str) -> None:
    """Raise a ValueError if X was pooled otherwise than the X that an estimator was fitted on.

    The layouts have the same widths.
    """
    if own.pools is None or fitted.pools is None:
        return
    for k, (found, expected) in enumerate(zip(own.pools, fitted.pools, strict=True)):
        if expected is not None and not is_same_pool(found, expected):
            raise ValueError(
                f"the features of {name_of_exit(own, k)} in X were pooled by {found!r}, but {estimator} was fitted on "
                f"features that were pooled by {expected!r}. Extract X with {pool_cure(expected)}, or fit "
                f"{estimator} again."
            )
