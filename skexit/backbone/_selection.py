"""Choose exits at about equal steps of cost among the places for exits in a network."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from skexit.backbone._places import ExitPlace

#: Places whose costs differ by less than this fraction of the network count as one.
_SAME_COST = 1e-6


def choose_places(places: list[ExitPlace], n_exits: int) -> list[ExitPlace]:
    """Up to `n_exits` places in forward order, the last of which is the last before the network's output.

    Places that no other tensor goes around are preferred, and among these the places of less nested modules.
    """
    found: list[ExitPlace] = []
    for is_clean in (True, False):
        usable = [place for place in places if place.can_divide and (place.n_carried == 0 or not is_clean)]
        for depth in sorted({_depth(place) for place in usable}):
            distinct = _distinct([place for place in usable if _depth(place) <= depth])
            chosen = _at_equal_steps(distinct, n_exits)
            if _error(chosen, n_exits) < _error(found, n_exits) - 0.25 / n_exits:
                found = chosen
            if _error(found, n_exits) <= 0.5 / n_exits:
                return found
        if _error(found, n_exits) <= 1 / n_exits:
            break
    return found


def _depth(place: ExitPlace) -> int:
    return place.name.count(".")


def _distinct(places: list[ExitPlace]) -> list[ExitPlace]:
    """One place for each cost: the last one with the shape of the first, and the outermost of nested modules."""
    chosen = []
    for cost, group in groupby(places, key=lambda place: round(place.cost / _SAME_COST)):
        if cost:
            same_shape = list(next(groupby(group, key=lambda place: place.shape))[1])
            chosen.append(min((place for place in same_shape if place.end == same_shape[-1].end), key=_depth))
    return chosen


def _at_equal_steps(places: list[ExitPlace], n_exits: int) -> list[ExitPlace]:
    """The places nearest to equal steps of cost up to the last place, which is one of them."""
    if len(places) <= n_exits:
        return places
    costs = np.array([place.cost for place in places]) / places[-1].cost
    targets = np.arange(1, n_exits + 1) / n_exits
    distance = (costs[None, :] - targets[:, None]) ** 2
    # The smallest sum of squared distances for the first targets, by the place of the last of these targets.
    total, before = distance[0], np.empty((n_exits, len(places)), dtype=np.intp)
    for k in range(1, n_exits):
        earlier = np.concatenate([[np.inf], total[:-1]])
        before[k] = _running_argmin(earlier)
        total = np.minimum.accumulate(earlier) + distance[k]
    chosen = [len(places) - 1]
    for k in range(n_exits - 1, 0, -1):
        chosen.append(int(before[k][chosen[-1]]) - 1)
    return [places[index] for index in reversed(chosen)]


def _running_argmin(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the smallest value so far."""
    is_lower = values < np.concatenate([[np.inf], np.minimum.accumulate(values)[:-1]])
    return np.maximum.accumulate(np.where(is_lower, np.arange(len(values)), 0))


def _error(places: list[ExitPlace], n_exits: int) -> float:
    """Largest distance of a cost from its equal step, as a fraction of the last cost."""
    if len(places) < n_exits:
        return 2.0 - len(places) / n_exits
    steps = np.arange(1, n_exits + 1) / n_exits
    return float(np.abs(np.array([place.cost for place in places]) / places[-1].cost - steps).max())
