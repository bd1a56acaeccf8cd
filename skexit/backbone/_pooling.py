"""Pooling: a few numbers per sample from a module's output, instead of a whole feature map."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, adaptive_max_pool2d, avg_pool2d, avg_pool3d

from skexit.backbone._masks import TokenCounts, fit_mask
from skexit.backbone._moments import is_moments, n_moments, second_moments
from skexit.backbone._outputs import first_tensor

#: The `pool` parameter: a name, several names that are joined, or a function.
Pool: TypeAlias = str | Sequence[str] | Callable[[torch.Tensor], torch.Tensor]

#: What ``pool="auto"`` keeps, by the number of dimensions of the output.
DEFAULT_POOLS = {3: ("first", "mean"), 4: ("avg", "max", "grid2"), 5: ("avg", "max", "grid2")}


def pool_output(
    output: Any,
    pool: Pool = "auto",
    mask: torch.Tensor | None = None,
    channels: str | None = None,
    counts: TokenCounts | None = None,
) -> torch.Tensor:
    """Pool the output of a module to features of shape (n_samples, n_features).

    The first tensor of the output is meant: feature maps of shape (n_samples, n_channels, height, width), volumes with
    a depth before the height, sequences of shape (n_samples, n_tokens, n_channels), or features, which are kept as they
    are. `channels` says where the channels are instead, ``"first"`` (after the samples) or ``"last"``. The result does
    not keep the output alive.

    Of feature maps, `pool` can be ``"avg"``, ``"max"``, or ``"grid2"``, ``"grid8"`` and the like: averages on a 2 x 2
    or an 8 x 8 grid; of volumes the same (2 x 2 x 2); of sequences ``"first"``, ``"mean"``, ``"max"`` or ``"last"``; of
    all ``"cov"``, the second moments of channels, and ``"cov32"``, those of 32 projections. Several are joined in the
    order given. ``"auto"`` is ``("avg", "max", "grid2")`` for maps and volumes, and ``("first", "mean")``
    for sequences. A callable takes the tensor and gives the features. `mask` is nonzero where a token counts;
    `fit_mask` fits it, with `counts`, to the tokens.

    A ValueError says if the output has no tensor, `pool` does not fit its dimensions, or the mask its tokens.

    >>> maps = torch.arange(8.0).reshape(1, 2, 2, 2)
    >>> pool_output(maps, ("avg", "max"))
    tensor([[1.5000, 5.5000, 3.0000, 7.0000]])
    """
    tensor = first_tensor(output)
    parts = [pool(tensor)] if callable(pool) else _pooled_parts(tensor, pool, mask, channels, counts)
    for part in parts:
        if part.ndim != 2 or part.shape[0] != tensor.shape[0]:  # len() would fix the number of rows of a recording
            raise ValueError(
                f"pool={pool_name(pool)!r} gave shape {tuple(part.shape)} for an output of shape "
                f"{tuple(tensor.shape)}; it must give (n_samples, n_features)."
            )
    # torch.cat copies, also a single part: a view would keep the whole map alive, and would change
    # when the network goes on to work in place.
    return torch.cat(parts, dim=1)


def prepared_pool(
    pool: Pool, n_dimensions: int, channels: str | None = None, counts: TokenCounts | None = None
) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """What `pool_output` does to tensors that are known to fit, without checks of `pool` and without a copy.

    The callable takes a tensor of that many dimensions, and the attention mask or None.
    """
    # Functions with names rather than lambdas, which cannot be pickled.
    if callable(pool):
        return partial(_call_pool, pool)
    if n_dimensions == 2:
        return _features_as_they_are
    names = _names_for(pool, n_dimensions)
    if n_dimensions == 3:
        return partial(_join_pooled_sequences, names, channels, counts)
    if names == ("avg",):
        return partial(_mean_over, _spatial_axes(n_dimensions, channels))
    return partial(_join_pooled_maps, names, channels)


def is_for_maps(pool: Pool, n_dimensions: int) -> bool:
    """Whether `pool` is our own, for tensors that have no tokens."""
    return not callable(pool) and n_dimensions != 3


def pool_name(pool: Pool) -> str:
    """Name of a `pool` parameter: ``"avg+max"``, or the qualified name of a callable."""
    if isinstance(pool, str):
        return pool
    if callable(pool):
        named = pool if hasattr(pool, "__qualname__") else type(pool)
        return f"{named.__module__}.{named.__qualname__}"
    return "+".join(pool)


def pool_of_output(pool: Pool, n_dimensions: int) -> str | None:
    """What a `pool` parameter does to outputs of that many dimensions: ``"avg+max+grid2"``; None if nothing.

    It is the same for parameters that have the same effect, such as ``"auto"`` and the names that it stands for.
    """
    if callable(pool):
        return pool_name(pool)
    if n_dimensions not in DEFAULT_POOLS:
        return None
    return "+".join("avg" if name == "grid1" else name for name in _names_for(pool, n_dimensions))


def check_pool(pool: Pool) -> None:
    """Raise a ValueError if no output can be pooled as `pool` says."""
    names = () if callable(pool) or pool == "auto" else _as_names(pool)
    known = [*_MAP_POOLS, *(name for name in _SEQUENCE_POOLS if name not in _MAP_POOLS)]
    for name in names:
        if name not in known and not _is_numbered(name):
            raise ValueError(f"pool={pool!r}: {name!r} is not one of {known}. Give such names, 'auto' or a callable.")
    if not (names or callable(pool) or pool == "auto"):
        raise ValueError(f"pool={pool!r} is empty; give one of {known}, 'auto' or a callable.")


def grid_size(name: Any) -> int:
    """How many cells a pool such as ``"grid8"`` has along each side; 0 where it is no grid."""
    match = _GRID.fullmatch(name) if isinstance(name, str) else None
    return int(match[1]) if match else 0


def pooled_map(pool: Pool, shape: Sequence[int], channels: str | None = None) -> tuple[int, int, int, int] | None:
    """Where the pooled features of an output hold a map: the first one, and the map's channels, height and width.

    `shape` is that of the output, with the samples. The map is the finest grid; None if there is no grid.
    """
    if callable(pool) or len(shape) != 4:
        return None
    names, n_channels = _names_for(pool, 4), int(shape[-1 if channels == "last" else 1])
    sizes = [grid_size(name) for name in names]
    finest = max(sizes)
    if finest == 0:
        return None
    before = names[: sizes.index(finest)]
    return sum(_width(name, n_channels) for name in before), n_channels, finest, finest


def _width(name: str, n_channels: int) -> int:
    """How many features a pool makes of a map."""
    if is_moments(name):
        return n_moments(name, n_channels)
    return n_channels * max(grid_size(name), 1) ** 2


def _is_numbered(name: Any) -> bool:
    """Whether a pool is a grid, or second moments, of any number."""
    return is_moments(name) or grid_size(name) > 0


def moments_of(pool: Pool) -> list[str]:
    """The names of second moments in a `pool` parameter."""
    return [] if callable(pool) else [name for name in _as_names(pool) if is_moments(name)]


def _pooled_parts(
    tensor: torch.Tensor,
    pool: str | Sequence[str],
    mask: torch.Tensor | None,
    channels: str | None,
    counts: TokenCounts | None,
) -> list[torch.Tensor]:
    if tensor.ndim == 2:
        return [tensor]
    if tensor.ndim not in DEFAULT_POOLS:
        raise ValueError(
            f"an exit gave shape {tuple(tensor.shape)}; only volumes (5 dimensions), feature maps (4), sequences (3) "
            "and features (2) are pooled by name. Pass a callable as pool=."
        )
    names = _names_for(pool, tensor.ndim)
    kind, allowed = _KINDS[tensor.ndim]
    for name in names:
        if name not in allowed and not is_moments(name) and not (tensor.ndim > 3 and grid_size(name)):
            raise ValueError(
                f"pool={pool!r}: {name!r} does not fit {kind} of shape {tuple(tensor.shape)}; choose from {allowed}."
            )
    if tensor.ndim == 3:
        return _pooled_sequences(names, channels, counts, tensor, mask)
    return _pooled_maps(_channels_first(tensor, channels), names)


def _names_for(pool: str | Sequence[str], n_dimensions: int) -> tuple[str, ...]:
    return DEFAULT_POOLS[n_dimensions] if pool == "auto" else _as_names(pool)


def _as_names(pool: Any) -> tuple[str, ...]:
    return (pool,) if isinstance(pool, str) else tuple(pool)


def _call_pool(
    pool: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    return pool(tensor)


def _features_as_they_are(features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return features


def _mean_over(axes: tuple[int, ...], maps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return _summable(maps).mean(axes)


def _spatial_axes(n_dimensions: int, channels: str | None) -> tuple[int, ...]:
    return tuple(range(1, n_dimensions - 1) if channels == "last" else range(2, n_dimensions))


def _join_pooled_maps(
    names: Sequence[str], channels: str | None, maps: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    return torch.cat(_pooled_maps(_channels_first(maps, channels), names), dim=1)


def _channels_first(maps: torch.Tensor, channels: str | None) -> torch.Tensor:
    return maps.movedim(-1, 1) if channels == "last" else maps


def _join_pooled_sequences(
    names: Sequence[str],
    channels: str | None,
    counts: TokenCounts | None,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    return torch.cat(_pooled_sequences(names, channels, counts, tokens, mask), dim=1)


def _pooled_sequences(
    names: Sequence[str],
    channels: str | None,
    counts: TokenCounts | None,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
) -> list[torch.Tensor]:
    if channels == "first":
        tokens = tokens.transpose(1, 2)
    counted = None if mask is None else fit_mask(mask, tokens, counts)
    return [
        second_moments(_summable(tokens), name, counted) if is_moments(name) else _SEQUENCE_POOLS[name](tokens, counted)
        for name in names
    ]


def _pooled_maps(maps: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
    sizes = [1 if name == "avg" else grid_size(name) for name in names]
    averages = _average_grids(maps, {*sizes} - {0})
    return [averages[size] if size else _pooled_map(maps, name) for name, size in zip(names, sizes, strict=True)]


def _pooled_map(maps: torch.Tensor, name: str) -> torch.Tensor:
    if name == "max":
        return _largest(maps)
    return second_moments(_summable(maps).flatten(2).transpose(1, 2), name)


def _largest(maps: torch.Tensor) -> torch.Tensor:
    # A reduction over the outer dimensions in memory is slow on the CPU; pooling is not.
    if maps.ndim == 5 or maps.is_contiguous() or maps.shape[2] * maps.shape[3] < 256:
        return maps.amax(dim=_spatial_axes(maps.ndim, "first"))
    return adaptive_max_pool2d(maps, 1).flatten(1)


def _average_grids(maps: torch.Tensor, sizes: set[int]) -> dict[int, torch.Tensor]:
    """Averages on grids of the given sizes, flattened; one pass over the maps serves all where it can."""
    grids = {}
    finest = maps = _summable(maps) if sizes else maps
    for size in sorted(sizes, reverse=True):
        # The average of cells of equal size is the average of their averages.
        grid = _average_grid(finest if _divides(size, finest) else maps, size)
        grids[size] = grid.flatten(1)
        if _divides(size, maps):
            finest = grid
    return grids


def _average_grid(maps: torch.Tensor, size: int) -> torch.Tensor:
    sizes, is_volume = maps.shape[2:], maps.ndim == 5
    if all(found == size for found in sizes):
        return maps
    if (size > 1 or is_volume) and _divides(size, maps):
        # The same as adaptive pooling, which is slower on the CPU, and which ONNX does not have for volumes.
        cell = [found // size for found in sizes]
        return avg_pool3d(maps, cell) if is_volume else avg_pool2d(maps, cell)
    return adaptive_avg_pool3d(maps, size) if is_volume else adaptive_avg_pool2d(maps, size)


def _summable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in single precision at least: half precision keeps three digits of a sum, or none beyond 65,504."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _divides(size: int, maps: torch.Tensor) -> bool:
    return all(found % size == 0 for found in maps.shape[2:])


def _first_token(tokens: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    if counted is None:
        return tokens[:, 0]
    from_end = torch.arange(tokens.shape[1] - 1, -1, -1, device=tokens.device)
    return _token_at(tokens, tokens.shape[1] - 1 - (counted * from_end).amax(dim=1))


def _last_token(tokens: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    if counted is None:
        return tokens[:, -1]
    return _token_at(tokens, (counted * torch.arange(tokens.shape[1], device=tokens.device)).amax(dim=1))


def _token_at(tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    index = position.reshape(-1, 1, 1).expand(-1, 1, tokens.shape[2])
    return tokens.gather(1, index).squeeze(1)


def _token_mean(tokens: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    tokens = _summable(tokens)
    if counted is None:
        return tokens.mean(dim=1)
    return tokens.masked_fill(~counted.unsqueeze(2), 0).sum(dim=1) / counted.sum(dim=1, keepdim=True)


def _token_max(tokens: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    if counted is not None:
        tokens = tokens.masked_fill(~counted.unsqueeze(2), -torch.inf)
    return tokens.amax(dim=1)


_GRID = re.compile(r"grid([1-9]\d{0,2})")
_MAP_POOLS = ("avg", "max", "grid2", "grid4", "grid8", "cov")
_SEQUENCE_POOLS: dict[str, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "first": _first_token,
    "mean": _token_mean,
    "max": _token_max,
    "last": _last_token,
}
#: What outputs are called, and the names of their pools, by the number of dimensions.
_KINDS = {
    3: ("token sequences", [*_SEQUENCE_POOLS, "cov"]),
    4: ("feature maps", list(_MAP_POOLS)),
    5: ("volumes", ["avg", "max", "grid2", "cov"]),
}
