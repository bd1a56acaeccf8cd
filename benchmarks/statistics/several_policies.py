"""How often the cheapest of nine risk-controlled policies loses more than it may: controlled one by one, and together.

The network has two exits, which are right for 75 % and 92 % of the rows. The nine policies have scores of their own
that say nothing, so that a policy loses in proportion to the share of rows that leave early.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from skexit import RiskControlledPolicy

_RIGHT = np.array([0.75, 0.92])
_N_POLICIES, _N_ROWS, _DELTA = 9, 300, 0.1
#: Shares that leave early, in the order of the tests; the largest loss allowed is just below that of the tenth.
_SHARES = np.linspace(0.02, 0.6, 30)
_ALPHA = _SHARES[9] * (_RIGHT[1] - _RIGHT[0]) - 1e-3


def largest_share(policy: RiskControlledPolicy, losses: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Share of rows that leave early under the cheapest budget that qualifies."""
    largest = 0.0
    for share in _SHARES:
        if policy._p_value(np.where(scores < share, losses, 0.0)) > policy._level():
            break
        largest = float(share)
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000, help="calibration sets")
    n_sets = parser.parse_args().sets
    rng = np.random.default_rng(0)
    ways = {
        "one policy": (1, RiskControlledPolicy(alpha=_ALPHA, delta=_DELTA)),
        "nine, one by one": (_N_POLICIES, RiskControlledPolicy(alpha=_ALPHA, delta=_DELTA)),
        "nine together": (_N_POLICIES, RiskControlledPolicy([None] * _N_POLICIES, alpha=_ALPHA, delta=_DELTA)),
    }
    chosen: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(n_sets):
        first, last = rng.random((2, _N_ROWS)) < _RIGHT[:, None]
        losses = last.astype(float) - first
        scores = rng.random((_N_POLICIES, _N_ROWS))
        for way, (n_policies, policy) in ways.items():
            chosen[way].append(max(largest_share(policy, losses, own) for own in scores[:n_policies]))
    for way, shares in chosen.items():
        lost = np.array(shares) * (_RIGHT[1] - _RIGHT[0])
        print(
            f"{way + ':':<18}loses more than alpha on {np.mean(lost > _ALPHA):6.1%} of {n_sets} calibration sets "
            f"(delta {_DELTA:.0%}); {np.mean(shares):.1%} of the rows leave early"
        )


if __name__ == "__main__":
    main()
