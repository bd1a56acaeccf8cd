"""A search among subsets, by one more or one less at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: Gives the score of a subset, in rising order; higher is better.
Score = Callable[[tuple[int, ...]], float]


def best_subsets(score: Score, candidates: Sequence[int], always: int, largest: int) -> dict[int, tuple[int, ...]]:
    """The best subset that was found of each size up to `largest`; `always` is in all of them.

    Sequential floating forward selection: the best candidate is added, and then others are left out again while what is
    left is better than any subset of that size before. Of equals, the first counts.

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
    """The best of these subsets, which have one size, or the one that was best before, and is kept among the best."""
    found = max(subsets, key=score)
    size = len(found)
    if size not in best or score(found) > best[size][0]:
        best[size] = (score(found), found)
    return best[size][1]
