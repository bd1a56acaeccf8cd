"""Checks of the parameters of a layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.utils._checks import is_integer

#: Where the features of an exit hold a map: the number of the first, and the map's channels, height and width.
FeatureMap: TypeAlias = tuple[int, int, int, int]


def as_widths(name: str, widths: Sequence[Any]) -> tuple[int, ...]:
    """The numbers of columns of the exits, which are the parameter `name`, checked to be integers."""
    if not all(map(is_integer, widths)):
        raise ValueError(f"{name}={list(widths)} must be integers, one for each exit: the number of its columns.")
    return tuple(map(int, widths))


def check_widths(n_logits: tuple[int, ...], n_features: tuple[int, ...]) -> None:
    if len(n_logits) != len(n_features) or not n_logits:
        raise ValueError(
            f"n_logits={list(n_logits)} and n_features={list(n_features)} must have one entry for "
            "each exit, and at least one entry: 0 if an exit has none."
        )
    for k, (logits, features) in enumerate(zip(n_logits, n_features, strict=True)):
        if min(logits, features) < 0 or logits + features == 0:
            raise ValueError(
                f"exit {k} has {logits} logits and {features} features; give it logits or features, or remove the exit."
            )
    present = {width for width in n_logits if width}
    if len(present) > 1:
        raise ValueError(
            f"n_logits={list(n_logits)}: every exit that has logits needs the same number. If an exit lacks a "
            "class, give stack_exits a column of -inf for it."
        )
    if present == {1}:
        raise ValueError(
            "n_logits=1: an exit needs one logit per class. Pass the outputs z of a binary network, of shape "
            "(n_samples, n_exits), as stack_exits(z[:, :, None]), which makes [0, z] of each."
        )


def check_costs(costs: ArrayLike | None, n_exits: int) -> NDArray[np.float64]:
    if costs is None:
        return np.arange(1, n_exits + 1) / n_exits
    costs = np.asarray(costs, dtype=np.float64)
    if costs.shape != (n_exits,):
        raise ValueError(f"costs has shape {costs.shape}; give one cumulative cost for each of {n_exits} exits.")
    if not np.isfinite(costs).all() or costs[0] <= 0 or (np.diff(costs) <= 0).any():
        is_of_stages = np.isfinite(costs).all() and (costs > 0).all()
        cure = (
            "For costs of single stages pass numpy.cumsum(costs). If two exits cost the same, remove one."
            if is_of_stages
            else "Give each exit a cost above 0."
        )
        raise ValueError(
            f"costs={costs.tolist()} must be positive, finite and strictly increasing: the cost of "
            f"stopping at exit k includes all that runs before it. {cure}"
        )
    return costs


def check_classes(classes: ArrayLike | None, n_logits: int) -> NDArray[Any] | None:
    if classes is None:
        return None
    classes = np.asarray(classes)
    if classes.ndim != 1:
        raise ValueError(f"classes has shape {classes.shape}; pass a list with one label for each class.")
    try:
        labels, counts = np.unique(classes, return_counts=True)
    except TypeError as error:
        raise ValueError(
            f"classes={classes.tolist()} cannot be sorted. Give labels of one type, such as strings, also in y."
        ) from error
    if (counts > 1).any():
        raise ValueError(f"classes has {labels[counts > 1].tolist()[0]!r} more than once; name each class once.")
    if n_logits and len(classes) != n_logits:
        raise ValueError(
            f"classes has {len(classes)} labels but each exit has {n_logits} logits; give one label for each logit, in "
            "their order."
        )
    return classes


def check_head_costs(head_costs: ArrayLike | None, costs: NDArray[np.float64]) -> NDArray[np.float64]:
    checked = np.zeros(len(costs)) if head_costs is None else np.asarray(head_costs, dtype=np.float64)
    if checked.shape != costs.shape:
        raise ValueError(f"head_costs has shape {checked.shape}; give one cost for each of {len(costs)} exits.")
    if not ((checked >= 0) & (checked < costs)).all():
        raise ValueError(
            f"head_costs={checked.tolist()} must be 0 or more and below costs={costs.tolist()}, which include them. "
            "Pass costs of network and heads together."
        )
    return checked


def check_network_cost(
    network_cost: float | None, costs: NDArray[np.float64], head_costs: NDArray[np.float64]
) -> float:
    if network_cost is None:
        return float(costs[-1] - head_costs[-1])
    if not 0 < network_cost < np.inf:
        raise ValueError(
            f"network_cost={network_cost!r} must be positive and finite: costs are fractions of it. Omit it for the "
            "cost of the last exit without heads."
        )
    return float(network_cost)


def check_unit(cost_unit: str | None) -> str | None:
    """The unit. Raises a ValueError if it is a known unit in other letter case, which would hide costs of heads."""
    known = {unit.lower(): unit for unit in ("FLOPs", "MACs", "ms")}
    written = known.get(str(cost_unit).lower(), cost_unit)
    if written != cost_unit:
        raise ValueError(
            f"cost_unit={cost_unit!r} must be written {written!r}, so that the costs of heads can be added."
        )
    return cost_unit


def check_feature_maps(
    feature_maps: Sequence[Sequence[int] | None] | None, n_features: tuple[int, ...]
) -> tuple[FeatureMap | None, ...]:
    if feature_maps is None:
        return (None,) * len(n_features)
    if len(feature_maps) != len(n_features):
        raise ValueError(
            f"feature_maps has {len(feature_maps)} entries for {len(n_features)} exits; give one for each exit, None "
            "where it has no map."
        )
    return tuple(
        _check_feature_map(place, k, width)
        for k, (place, width) in enumerate(zip(feature_maps, n_features, strict=True))
    )


def _check_feature_map(place: Sequence[int] | None, k: int, n_features: int) -> FeatureMap | None:
    if place is None:
        return None
    numbers = tuple(place)
    if len(numbers) != 4 or not all(is_integer(number) for number in numbers):
        raise ValueError(
            f"feature_maps[{k}]={place!r} must be four integers: the number of the map's first feature, and its "
            "channels, height and width."
        )
    first, *shape = (int(number) for number in numbers)
    if first < 0 or min(shape) < 1 or first + math.prod(shape) > n_features:
        raise ValueError(
            f"feature_maps[{k}]={numbers} must be a part of the {n_features} features of exit {k}: a map of shape (C, "
            "H, W) has C * H * W of them."
        )
    return first, shape[0], shape[1], shape[2]


def check_exit_names(exit_names: Sequence[str] | None, n_exits: int) -> tuple[str, ...] | None:
    if exit_names is None:
        return None
    if isinstance(exit_names, str) or not all(isinstance(name, str) for name in exit_names):
        raise ValueError(f"exit_names={exit_names!r} must be a list with the name of each exit, or None.")
    _check_one_per_exit("exit_names", exit_names, n_exits)
    return tuple(exit_names)


def check_pools(pools: Sequence[str | None] | None, n_exits: int) -> tuple[str | None, ...] | None:
    if pools is None:
        return None
    if isinstance(pools, str) or not all(pool is None or isinstance(pool, str) for pool in pools):
        raise ValueError(
            f"pools={pools!r} must be a list with the pooling of each exit, such as 'avg' or 'avg+max', or None."
        )
    _check_one_per_exit("pools", pools, n_exits)
    return tuple(pools)


def _check_one_per_exit(name: str, values: Sequence[Any], n_exits: int) -> None:
    if len(values) != n_exits:
        raise ValueError(f"{name} has {len(values)} entries for {n_exits} exits; give one for each exit.")
