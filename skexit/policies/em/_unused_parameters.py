"""Parameters of EMExitAssigner that have no effect because of another."""

from __future__ import annotations

import numpy as np

from skexit.data._unused_parameters import Unused

UNUSED_PARAMETERS = (
    Unused(
        ("lam", "threshold"),
        "budget",
        lambda policy: policy.budget is not None,
        "fit finds the price and the thresholds that meet the budget. Keep the defaults, or set budget=None.",
    ),
    Unused(
        ("router_hidden_layer_sizes", "router_input", "learning_rate", "l2", "max_epochs", "batch_size"),
        "confidence_weight",
        lambda policy: policy.confidence_weight == np.inf,
        "The confidence decides alone, so that no routers are trained. Keep the defaults, or give a finite weight.",
    ),
    Unused(
        ("cv",),
        "confidence_weight",
        lambda policy: policy.confidence_weight != "auto",
        "It splits the rows to choose the weight. Leave it out, or set confidence_weight='auto'.",
    ),
    Unused(
        ("cv",),
        "budget",
        lambda policy: policy.budget is None and policy.confidence_weight == "auto",
        "It splits the rows to choose weights for a budget. Leave it out, or give a budget.",
    ),
)
