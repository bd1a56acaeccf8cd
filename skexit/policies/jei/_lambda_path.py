"""Accuracy and cost over prices of compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LambdaPath:
    """Accuracy against cost over prices, measured on the fitted rows.

    Parameters
    ----------
    lams : ndarray of shape (n_prices,)
        Prices of the whole network, in nats.
    costs : ndarray of shape (n_prices,)
        Mean cost of a sample, as a fraction of the network's.
    accuracies : ndarray of shape (n_prices,)
        Share of right answers, where the modules that answer have not learned from the row.
    policies : list of JEIGatedEnsemble
        Fitted, one per price.
    """

    lams: Floats
    costs: Floats
    accuracies: Floats
    policies: list[Any]
