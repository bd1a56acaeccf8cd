"""A network divided at its exits, with the decisions after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from skexit.backbone._channels import Channels, find_channels
from skexit.backbone._inputs import (
    Inputs,
    attention_mask_in,
    check_rows,
    in_form,
    is_like,
    like_example,
    main_first,
    map_tensors,
    positional_names,
    tensors_of,
)
from skexit.backbone._masks import count_tokens
from skexit.backbone._modules import Head, check_independent_rows, device_of
from skexit.backbone._other_forms import naming_other_form
from skexit.backbone._pooling import Pool
from skexit.backbone._probe import check_against_plain_network
from skexit.backbone._stages import RecordedNetwork, Stage
from skexit.runtime._batch import Batch
from skexit.runtime._decisions import Decisions
from skexit.runtime._exit_latency import ExitLatency
from skexit.runtime._other_costs import warn_of_other_costs
from skexit.runtime._runner import StageRunner
from skexit.utils._threads import one_recording


@dataclass(frozen=True)
class PreparedNetwork:
    """A network that is divided into stages at its exits and fits the policy that decides there.

    :meth:`EarlyExitModel.prepare` makes it.

    Parameters
    ----------
    all_exits : StageRunner
        Runs the network divided at every exit.
    used_exits : StageRunner
        Runs the network divided only at exits whose logits or features the policy reads.
    example : tensor, tuple of tensors or dict of tensors
        One input, on the device of the network.
    device : torch.device
        The device of the network.
    names : list of str
        Names of the network's positional parameters.
    """

    all_exits: StageRunner
    used_exits: StageRunner
    example: Inputs
    device: torch.device
    names: list[str]


@one_recording()
@torch.no_grad()
def prepare_network(
    model: nn.Module,
    exits: Sequence[str],
    example_input: Inputs,
    decisions: Decisions,
    *,
    head: Head,
    pool: Pool,
    channels: Channels,
    latency: ExitLatency | None,
    input_name: str = "example_input",
) -> PreparedNetwork:
    """Divide a network in evaluation mode at its exits, and check that stages and policy fit.

    Parameters are those of :class:`EarlyExitModel`; errors call the input `input_name`. A ValueError says if the
    network cannot be divided at its exits, or the policy was fitted on other logits or features.
    """
    device = device_of(model)
    example_input = main_first(model, in_form(example_input, input_name))
    check_rows(example_input, device)
    check_independent_rows(model)
    with naming_other_form(model, example_input, input_name):
        network = RecordedNetwork(model, exits, example_input, head)
    stages = network.divide(range(len(exits)))
    if head is None or head == "output":
        check_against_plain_network(model, exits, list(stages.values()), network.own_logits, example_input)
    mask = attention_mask_in(model, example_input)
    example = map_tensors(lambda tensor: tensor[:1].clone(), example_input)
    layout = decisions.policy.layout_
    warn_of_other_costs(model, exits, example, input_name, head, network.own_logits, layout)
    layouts = find_channels(model, exits, example, pool, channels)
    counts = count_tokens(model, None if mask is None else tensors_of(example)[mask])
    beside_first = mask - 1 if mask else None
    runner = StageRunner(stages, exits, decisions.on(device), pool, layouts, beside_first, counts, latency)
    _prepare_runner(runner, example)
    observed = np.flatnonzero(runner.decisions.is_observed).tolist()
    # At exits that no decision reads, the network is not divided.
    used = replace(runner, stages=network.divide(observed))
    return PreparedNetwork(runner, used, example, device, positional_names(model))


def start(network: PreparedNetwork, inputs: Inputs) -> Batch:
    """The batch before the first stage of ``used_exits``; a ValueError if the network cannot take the inputs."""
    if not is_like(inputs, network.example):
        check_rows(inputs, network.device)
        inputs = like_example(inputs, network.example, network.names)
    return first_batch(network.used_exits, inputs)


def runner_to_last_exit(network: PreparedNetwork) -> StageRunner:
    """A runner that computes the decision at each exit, but continues with all samples to the last exit."""
    runner = replace(network.all_exits, decisions=network.all_exits.decisions.for_all_exits())
    _prepare_runner(runner, network.example)
    return runner


def map_stages(network: PreparedNetwork, function: Callable[[Stage], Stage]) -> PreparedNetwork:
    """A copy of the network with a function applied to every stage."""
    all_exits, used_exits = (
        replace(runner, stages={k: function(stage) for k, stage in runner.stages.items()})
        for runner in (network.all_exits, network.used_exits)
    )
    return replace(network, all_exits=all_exits, used_exits=used_exits)


def first_batch(runner: StageRunner, inputs: Inputs) -> Batch:
    """The batch before the first stage of a runner."""
    first, *side = tensors_of(inputs)
    return runner.start(first, side, torch.arange(len(first), device=first.device))


def _prepare_runner(runner: StageRunner, example: Inputs) -> None:
    # Tensors of inference mode do not count in-place changes.
    with torch.inference_mode(False), torch.no_grad():
        example_copy: Any = map_tensors(torch.clone, example)
        runner.prepare(first_batch(runner, example_copy))
