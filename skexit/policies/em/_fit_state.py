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

    Parameters
    ----------
    correct : ndarray of shape (n_samples, n_exits) of bool
        Which exits are right.
    confidence : ndarray of shape (n_samples, n_exits)
        Largest class probability at each exit.
    weight : ndarray of shape (n_samples,)
    patterns : ndarray of shape (n_patterns, n_exits) of bool
        The different rows of `correct`.
    pattern_weight : ndarray of shape (n_patterns,)
    router_probability : ndarray of shape (n_samples, n_exits) or None
        What the routers say; None before they are trained.
    held_out_probability : ndarray of shape (n_samples, n_exits) or None
        What routers that were trained on other rows say; None where no weights are chosen.
    """

    correct: NDArray[np.bool_]
    confidence: Floats
    weight: Floats
    patterns: NDArray[np.bool_]
    pattern_weight: Floats
    router_probability: Floats | None = None
    held_out_probability: NDArray[np.float32] | None = None
