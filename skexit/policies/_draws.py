"""Random numbers that are computed from a sample itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from skexit.data import ExitArray
from skexit.data._arrays import enough_rows
from skexit.data._validation import read_logits
from skexit.utils._array_api import array_namespace, as_like
from skexit.utils._module_names import set_module

Floats = NDArray[np.float64]

#: Change of a draw if logits change by their mean absolute deviation, at the first exit; less than twice that at later
#: exits. Draws are more uniform with a larger slope if logits are in groups; a smaller slope amplifies rounding less.
_SLOPE = 20.0
#: Smallest deviation, as a fraction of the size of the logits. Smaller deviations may be rounding errors.
_SMALLEST_DEVIATION = 1e-3


@set_module("skexit.persistence")
@dataclass(frozen=True)
class SampleDraws:
    """Draws from [0, 1], one per exit, that are computed from a sample's logits at the first exit.

    The same sample gets the same draws, alone or in a batch, cached or in the live network. A draw is a continuous
    function of the logits that amplifies their rounding errors only a few dozen times. Samples with nearly equal logits
    therefore get nearly equal draws. Projections are of shape (n_classes, n_exits).
    """

    #: Arrays that are used with tensors in a live network.
    arrays_on_device: ClassVar[tuple[str, ...]] = ("projections", "phases")

    projections: Floats
    phases: Floats

    @classmethod
    def fit(cls, X: ExitArray, weight: Floats, random_state: np.random.RandomState) -> SampleDraws:
        """Draws with the seed `random_state` that are uniform on rows like those of X."""
        n_classes, n_exits = X.layout.n_logits[0], X.layout.n_exits
        rows = np.flatnonzero(weight > 0)
        rows = rows[enough_rows(len(rows), sum(X.layout.n_logits))]
        # Each direction sums to zero, because the mean of a sample's logits often varies little.
        directions = random_state.normal(size=(n_classes, n_exits))
        directions -= directions.mean(axis=0)
        deviation = _deviation(cast(Any, read_logits(X, 0, rows)), directions, weight[rows])
        # The ratios of slopes are not those of small integers, so that draws are independent for logits on a line.
        slopes = _SLOPE * np.exp2(np.arange(n_exits) / n_exits)
        return cls(directions * (slopes / deviation), random_state.uniform(0, 2, size=n_exits))

    def __call__(self, logits: Any) -> Any:
        """Draws of samples, of shape (n_samples, n_exits), from their logits at the first exit."""
        positions = logits @ as_like(self.projections, logits) + as_like(self.phases, logits)
        # A triangle wave between 0 and 1; a fractional part would jump at whole numbers.
        return abs(positions - 2 * array_namespace(logits).round(positions / 2))


def _deviation(logits: Floats, directions: Floats, weight: Floats) -> Floats:
    """Weighted mean absolute deviation of the logits in each direction, at least as large as rounding errors."""
    projected = logits @ directions
    deviation = np.average(abs(projected - np.average(projected, axis=0, weights=weight)), axis=0, weights=weight)
    magnitude = np.average(abs(logits) @ abs(directions), axis=0, weights=weight)
    deviation = np.maximum(deviation, _SMALLEST_DEVIATION * magnitude)
    # Rounded to one percent, so that the order of the rows does not matter.
    return np.exp2(np.round(64 * np.log2(np.where(deviation > 0, deviation, 1.0))) / 64)
