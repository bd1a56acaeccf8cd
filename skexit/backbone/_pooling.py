"""What is kept of a module's output: a few numbers a sample instead of a whole feature map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d

from skexit.backbone._outputs import first_tensor

#: The `pool` parameter: a name, several names that are joined, or a function.
Pool: TypeAlias = str | Sequence[str] | Callable[[torch.Tensor], torch.Tensor]

#: What ``pool="auto"`` keeps, by the number of dimensions of the output.
DEFAULT_POOLS = {4: ("avg", "max", "grid2"), 3: ("first", "mean")}


def pool_output(output: Any, pool: Pool = "auto", mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pool the output of a module to features of shape (n_samples, n_features).

    The first tensor of the output is meant: feature maps of shape (n_samples, n_channels, height, width), token
    sequences of shape (n_samples, n_tokens, n_channels), or features, which are kept as they are. The result does not
    keep the output alive.

    Of feature maps, `pool` can be ``"avg"``, ``"max"``, ``"grid2"`` (averages on a 2 x 2 grid) or ``"grid4"``; of token
    sequences ``"first"``, ``"mean"`` or ``"max"``. Several are joined in the order given. ``"auto"`` is ``("avg",
    "max", "grid2")`` for maps and ``("first", "mean")`` for tokens. A callable takes the tensor and gives the features.
    `mask`, of shape (n_samples, n_tokens), is nonzero where a token counts in ``"mean"`` and ``"max"``.

    A ValueError says if the output has no tensor, `pool` does not fit its dimensions, or the mask its tokens.

    >>> maps = torch.arange(8.0).reshape(1, 2, 2, 2)
    >>> pool_output(maps, ("avg", "max"))
    tensor([[1.5000, 5.5000, 3.0000, 7.0000]])
    """
    tensor = first_tensor(output)
    parts = [pool(tensor)] if callable(pool) else _pooled_parts(tensor, pool, mask)
    for part in parts:
        if part.ndim != 2 or part.shape[0] != tensor.shape[0]:  # len() would fix the number of rows of a recording
            raise ValueError(
                f"pool={pool_name(pool)!r} gave shape {tuple(part.shape)} for an output of shape "
                f"{tuple(tensor.shape)}; it must give (n_samples, n_features)."
            )
    # torch.cat copies, also a single part: a view would keep the whole map alive, and would change
    # when the network goes on to work in place.
    return torch.cat(parts, dim=1)


def prepared_pool(pool: Pool, n_dimensions: int) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """What `pool_output` does to tensors that are known to fit, without checks and without a copy.

    The callable takes a tensor of that many dimensions, and the attention mask or None.
    """
    # Functions with names rather than lambdas, which cannot be pickled.
    if callable(pool):
        return partial(_call_pool, pool)
    if n_dimensions == 2:
        return _features_as_they_are
    names = DEFAULT_POOLS[n_dimensions] if pool == "auto" else _as_names(pool)
    if n_dimensions == 4 and names == ("avg",):
        return _mean_of_maps
    return partial(_join_pooled_maps if n_dimensions == 4 else _join_pooled_tokens, names)


def pool_name(pool: Pool) -> str:
    """Name of a `pool` parameter: ``"avg+max"``, or the qualified name of a callable."""
    if isinstance(pool, str):
        return pool
    if callable(pool):
        named = pool if hasattr(pool, "__qualname__") else type(pool)
        return f"{named.__module__}.{named.__qualname__}"
    return "+".join(pool)


def check_pool(pool: Pool) -> None:
    """Raise a ValueError if no output can be pooled as `pool` says."""
    names = () if callable(pool) or pool == "auto" else _as_names(pool)
    known = [*_MAP_POOLS, *(name for name in _TOKEN_POOLS if name not in _MAP_POOLS)]
    for name in names:
        if name not in known:
            raise ValueError(f"pool={pool!r}: {name!r} is not one of {known}. Give such names, 'auto' or a callable.")
    if not (names or callable(pool) or pool == "auto"):
        raise ValueError(f"pool={pool!r} is empty; give one of {known}, 'auto' or a callable.")


def _pooled_parts(tensor: torch.Tensor, pool: str | Sequence[str], mask: torch.Tensor | None) -> list[torch.Tensor]:
    if tensor.ndim == 2:
        return [tensor]
    if tensor.ndim not in DEFAULT_POOLS:
        raise ValueError(
            f"an exit gave shape {tuple(tensor.shape)}; only feature maps (4 dimensions), token sequences (3) and "
            "features (2) are pooled by name. Pass a callable as pool=."
        )
    names = DEFAULT_POOLS[tensor.ndim] if pool == "auto" else _as_names(pool)
    kind, allowed = ("feature maps", list(_MAP_POOLS)) if tensor.ndim == 4 else ("token sequences", list(_TOKEN_POOLS))
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"pool={pool!r}: {name!r} does not fit {kind} of shape {tuple(tensor.shape)}; choose from {allowed}."
            )
    if tensor.ndim == 4:
        return _pooled_maps(tensor, names)
    if mask is not None and mask.shape != tensor.shape[:2]:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)} but an exit gave tokens of shape {tuple(tensor.shape)}. "
            "Pass a callable as pool=, or leave the mask out."
        )
    return [_TOKEN_POOLS[name](tensor, mask) for name in names]


def _call_pool(
    pool: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    return pool(tensor)


def _features_as_they_are(features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return features


def _mean_of_maps(maps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return maps.mean((2, 3))


def _join_pooled_maps(names: Sequence[str], maps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return torch.cat(_pooled_maps(maps, names), dim=1)


def _join_pooled_tokens(names: Sequence[str], tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return torch.cat([_TOKEN_POOLS[name](tokens, mask) for name in names], dim=1)


def _as_names(pool: Any) -> tuple[str, ...]:
    return (pool,) if isinstance(pool, str) else tuple(pool)


def _pooled_maps(maps: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
    averages = _average_grids(maps, {_GRID_SIZES[name] for name in names if name in _GRID_SIZES})
    return [averages[_GRID_SIZES[name]] if name in _GRID_SIZES else _largest(maps) for name in names]


def _largest(maps: torch.Tensor) -> torch.Tensor:
    # A reduction over the outer dimensions in memory is slow on the CPU; pooling is not.
    if maps.is_contiguous() or maps.shape[2] * maps.shape[3] < 256:
        return maps.amax(dim=(2, 3))
    return adaptive_max_pool2d(maps, 1).flatten(1)


def _average_grids(maps: torch.Tensor, sizes: set[int]) -> dict[int, torch.Tensor]:
    """Averages on grids of the given sizes, flattened; one pass over the maps serves all where it can."""
    grids = {}
    finest = maps
    for size in sorted(sizes, reverse=True):
        grid = _average_grid(finest, size)
        grids[size] = grid.flatten(1)
        # The average of cells of equal size is the average of their averages.
        if _divides(size, maps):
            finest = grid
    return grids


def _average_grid(maps: torch.Tensor, size: int) -> torch.Tensor:
    height, width = maps.shape[2:]
    if (height, width) == (size, size):
        return maps
    if size > 1 and _divides(size, maps):
        # The same as adaptive pooling, which is slower on the CPU.
        return avg_pool2d(maps, (height // size, width // size))
    return adaptive_avg_pool2d(maps, size)


def _divides(size: int, maps: torch.Tensor) -> bool:
    return maps.shape[2] % size == 0 and maps.shape[3] % size == 0


def _first_token(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return tokens[:, 0]


def _token_mean(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return tokens.mean(dim=1)
    counted = mask.bool().unsqueeze(2)
    return tokens.masked_fill(~counted, 0).sum(dim=1) / counted.sum(dim=1)


def _token_max(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is not None:
        tokens = tokens.masked_fill(~mask.bool().unsqueeze(2), -torch.inf)
    return tokens.amax(dim=1)


_GRID_SIZES = {"avg": 1, "grid2": 2, "grid4": 4}
_MAP_POOLS = ("avg", "max", "grid2", "grid4")
_TOKEN_POOLS: dict[str, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "first": _first_token,
    "mean": _token_mean,
    "max": _token_max,
}
