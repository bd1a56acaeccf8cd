"""A warning if a network is prepared for images of another size than those that the policy was fitted on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from skexit.backbone._counting import run_counting_flops
from skexit.backbone._inputs import Inputs, is_sequence, named_tensors
from skexit.data import ExitLayout
from skexit.data._layout import MULTIPLY_ADD_COST
from skexit.utils._warnings import warn

#: Numbers of operations differ slightly if layers were joined after the extraction, or if users counted otherwise.
_TOLERANCE = 0.2


def warn_of_other_size(model: nn.Module, example: Inputs, layout: ExitLayout, name: str) -> None:
    """Warn if the network takes another number of operations for an image than in the costs of the layout.

    `example` has one row, and messages call it `name`. The layout does not have the size of the images, but the cost of
    the network. Texts and sounds may have any length, so they are not compared, and neither are measured times.
    """
    tensors = list(named_tensors(example).values())
    images = [tensor for tensor in tensors if tensor.ndim >= 4 and tensor.is_floating_point()]
    if layout.cost_unit not in MULTIPLY_ADD_COST or not images or any(map(is_sequence, tensors)):
        return
    cost = run_counting_flops(model, example, _whole_run) * MULTIPLY_ADD_COST[layout.cost_unit] / 2
    if abs(cost / layout.network_cost - 1) > _TOLERANCE:
        shape = ", ".join(["n", *map(str, images[0].shape[1:])])
        warn(
            f"{name} has the shape ({shape}), for which the network takes {cost:.4g} {layout.cost_unit}, but the "
            f"policy was fitted on costs of a network that takes {layout.network_cost:.4g}. The images of the "
            "extraction probably had another size, so accuracy and cost may differ from those on the cache. Pass "
            "images of that size, or extract and fit again with images of this size."
        )


def _whole_run(forward: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    forward()
    return clock() - start
