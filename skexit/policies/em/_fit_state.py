"""What another budget needs of the rows to which exits were assigned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skexit.utils._module_names import set_module

Floats = NDArray[np.float64]


@set_module("skexit.persistence")
@dataclass(frozen=True)
class AssignerFitState:
    """What EMExitAssigner needs of the fitting data for another budget.

    Which exits are right, and the largest class probability at each, of shape (n_samples, n_exits); the different rows
    of `correct`, as `patterns`, and their weights; what the routers say, None before they are trained, and what routers
    that were trained on other rows say, None where no weights are chosen.
    """

    correct: NDArray[np.bool_]
    confidence: Floats
    weight: Floats
    patterns: NDArray[np.bool_]
    pattern_weight: Floats
    router_probability: Floats | None = None
    held_out_probability: NDArray[np.float32] | None = None
