"""Warnings if the network, its exits or its images are probably not those that the policy was fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from skexit.backbone._costs import measure_costs
from skexit.backbone._counting import run_counting_flops
from skexit.backbone._inputs import Inputs, is_sequence, named_tensors
from skexit.backbone._modules import Head, split_call
from skexit.backbone._own_logits import OwnLogits
from skexit.data import ExitLayout
from skexit.data._layout import MULTIPLY_ADD_COST
from skexit.utils._warnings import silenced, warn

#: Numbers of operations differ slightly if layers were joined after the extraction, or if users counted otherwise.
_TOLERANCE = 0.2
#: The same for the cost of an exit as a fraction of that of the network.
_FRACTION_TOLERANCE = 0.05


def warn_of_other_costs(
    model: nn.Module,
    exits: Sequence[str],
    example: Inputs,
    name: str,
    head: Head,
    own: OwnLogits | None,
    layout: ExitLayout,
) -> None:
    """Warn if the network or its exits take other numbers of operations than in the layout of the policy.

    The policy does not know the size of the images, and may not know the names of its exits. `example` has one row, and
    messages call it `name`. `own` has the places of exits' logits in the network's output. Measured times are not
    compared.
    """
    if _warns_of_names(model, exits, layout.exit_names):
        return
    unit = layout.cost_unit
    if unit is None or unit not in MULTIPLY_ADD_COST:
        return
    try:
        with silenced():
            costs = measure_costs(model, exits, example, unit, head, own)
    except ValueError:  # two exits with the same cost, for which a layout from elsewhere has its own numbers
        network_cost = run_counting_flops(model, example, _whole_run) * MULTIPLY_ADD_COST[unit] / 2
        _warns_of_size(example, name, unit, network_cost, layout.network_cost)
        return
    if not _warns_of_size(example, name, unit, costs.network, layout.network_cost):
        _warn_of_exits(exits, costs.costs / costs.network, layout)


def _warns_of_names(model: nn.Module, exits: Sequence[str], fitted: Sequence[str] | None) -> bool:
    """A fitted exit that the network does not have was renamed, so only other modules of the network are compared."""
    for name, expected in zip(exits, fitted or (), strict=False):
        if name != expected and _has_other_module(model, name, expected):
            warn(
                f"exits has {name!r}, but the policy was fitted on outputs of {expected!r}, which the network has, "
                f"too. Pass exits={list(fitted or ())}, unless the outputs of both are equal."
            )
            return True
    return False


def _has_other_module(model: nn.Module, name: str, expected: str) -> bool:
    modules = dict(model.named_modules(remove_duplicate=False))
    (one, call), (other, other_call) = split_call(name), split_call(expected)
    return other in modules and (modules[other] is not modules[one] or call != other_call)


def _warns_of_size(example: Inputs, name: str, unit: str, cost: float, fitted_cost: float) -> bool:
    """Texts and sounds may have any length, so they are not compared."""
    tensors = list(named_tensors(example).values())
    images = [tensor for tensor in tensors if tensor.ndim >= 4 and tensor.is_floating_point()]
    if not images or any(map(is_sequence, tensors)):
        return False
    if abs(cost / fitted_cost - 1) <= _TOLERANCE:
        return False
    shape = ", ".join(["n", *map(str, images[0].shape[1:])])
    warn(
        f"{name} has the shape ({shape}), for which the network takes {cost:.4g} {unit}, but the "
        f"policy was fitted on costs of a network that takes {fitted_cost:.4g}. The images of the "
        "extraction probably had another size, so accuracy and cost may differ from those on the cache. Pass "
        "images of that size, or extract and fit again with images of this size."
    )
    return True


def _warn_of_exits(exits: Sequence[str], found: NDArray[np.float64], layout: ExitLayout) -> None:
    """Compare the costs of exits as fractions of that of the network."""
    fitted = (np.asarray(layout.costs) - np.asarray(layout.head_costs)) / layout.network_cost
    if np.abs(found - fitted).max() > _FRACTION_TOLERANCE:
        warn(
            f"exits={list(exits)} cost {_listed(found)} of the network, but the policy was fitted on exits that cost "
            f"{_listed(fitted)}. Pass the network and the exits of the extraction: extractor.exits."
        )


def _listed(fractions: Any) -> str:
    return ", ".join(f"{fraction:.3g}" for fraction in fractions)


def _whole_run(forward: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    forward()
    return clock() - start
