"""Accuracy and cost for several prices of compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LambdaPath:
    """Accuracy against cost for several prices, measured on the rows that were fitted.

    Parameters
    ----------
    lams : ndarray of shape (n_prices,)
        Prices of the whole network, in nats.
    costs : ndarray of shape (n_prices,)
        Mean cost of a sample, as a fraction of the network's cost.
    accuracies : ndarray of shape (n_prices,)
        Share of correct predictions, by modules that were not trained on the row.
    policies : list of JEIGatedEnsemble
        Fitted policies, one per price.
    """

    lams: Floats
    costs: Floats
    accuracies: Floats
    policies: list[Any]
