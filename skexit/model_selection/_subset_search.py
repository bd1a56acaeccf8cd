"""A search among subsets that adds or removes one element at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: Takes a subset, in rising order, and returns its score; higher is better.
Score = Callable[[tuple[int, ...]], float]


def best_subsets(score: Score, candidates: Sequence[int], always: int, largest: int) -> dict[int, tuple[int, ...]]:
    """For each size up to `largest`, the best subset that the search found. All of them contain `always`.

    Sequential floating forward selection: the search adds the best candidate. It then removes candidates again, as long
    as the smaller subset is better than all earlier subsets of its size. Among equal subsets, it takes the first.

    References
    ----------
    Pudil, Novovičová, Kittler. "Floating search methods in feature selection." Pattern Recognition Letters 15 (1994).
    """
    chosen: tuple[int, ...] = (always,)
    best = {1: (score(chosen), chosen)}
    while len(chosen) < largest:
        larger = [tuple(sorted([*chosen, k])) for k in candidates if k not in chosen]
        chosen = _keep_best(score, larger, best)
        while len(chosen) > 2:
            smaller = [tuple(k for k in chosen if k != left_out) for left_out in chosen if left_out != always]
            found = max(smaller, key=score)
            if score(found) <= best[len(found)][0]:
                break
            chosen = _keep_best(score, [found], best)
    return {size: subset for size, (_, subset) in best.items()}


def _keep_best(
    score: Score, subsets: Sequence[tuple[int, ...]], best: dict[int, tuple[float, tuple[int, ...]]]
) -> tuple[int, ...]:
    """Update `best` with these subsets, which have the same size; return the best subset of this size so far."""
    found = max(subsets, key=score)
    size = len(found)
    if size not in best or score(found) > best[size][0]:
        best[size] = (score(found), found)
    return best[size][1]
