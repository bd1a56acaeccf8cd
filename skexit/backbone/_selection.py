"""Choose exits at about equal steps of cost among the places that a network has for them."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from skexit.backbone._places import ExitPlace

#: Places that cost the same but for this fraction of the network are one.
_SAME_COST = 1e-6


def choose_places(places: list[ExitPlace], n_exits: int) -> list[ExitPlace]:
    """So many places, in forward order, the last of which is the last before the network's output; fewer if there are.

    Places that nothing goes around come first, those of modules that lie less deep in the network next.
    """
    found: list[ExitPlace] = []
    for is_clean in (True, False):
        usable = [place for place in places if place.is_cut and (place.n_carried == 0 or not is_clean)]
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
    """One place for each cost: the last with the shape of the first, and of nested modules the outermost."""
    chosen = []
    for cost, group in groupby(places, key=lambda place: round(place.cost / _SAME_COST)):
        if cost:
            alike = list(next(groupby(group, key=lambda place: place.shape))[1])
            chosen.append(min((place for place in alike if place.end == alike[-1].end), key=_depth))
    return chosen


def _at_equal_steps(places: list[ExitPlace], n_exits: int) -> list[ExitPlace]:
    """The places next to equal shares of the last one's cost, which is among them."""
    if len(places) <= n_exits:
        return places
    costs = np.array([place.cost for place in places]) / places[-1].cost
    targets = np.arange(1, n_exits + 1) / n_exits
    distance = (costs[None, :] - targets[:, None]) ** 2
    # The least sum of distances for the first targets, if the last of them takes each of the places.
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
    """Where the smallest of the values so far is."""
    is_lower = values < np.concatenate([[np.inf], np.minimum.accumulate(values)[:-1]])
    return np.maximum.accumulate(np.where(is_lower, np.arange(len(values)), 0))


def _error(places: list[ExitPlace], n_exits: int) -> float:
    """Largest distance of a cost from the equal step that it stands for, as a fraction of the last one's."""
    if len(places) < n_exits:
        return 2.0 - len(places) / n_exits
    steps = np.arange(1, n_exits + 1) / n_exits
    return float(np.abs(np.array([place.cost for place in places]) / places[-1].cost - steps).max())
