"""A live network that is cut at its exits, with the decisions after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from skexit.backbone._inputs import Inputs, check_like, check_rows, is_like, map_tensors, tensors_of
from skexit.backbone._modules import Head, device_of
from skexit.backbone._pooling import Pool
from skexit.backbone._probe import check_against_plain_network
from skexit.backbone._stages import RecordedNetwork, Stage
from skexit.runtime._batch import Batch
from skexit.runtime._decisions import Decisions
from skexit.runtime._exit_latency import ExitLatency
from skexit.runtime._runner import StageRunner


@dataclass(frozen=True)
class PreparedNetwork:
    """A network cut at its exits, and checked against the policy that decides there.

    Made by :meth:`EarlyExitModel.prepare`.

    Parameters
    ----------
    all_exits : StageRunner
        Runs the network with a cut at every exit.
    used_exits : StageRunner
        Runs the network with a cut only at exits whose logits or features the policy reads.
    example : tensor, tuple of tensors or dict of tensors
        One input, on the device of the network.
    device : torch.device
        Device of the network.
    """

    all_exits: StageRunner
    used_exits: StageRunner
    example: Inputs
    device: torch.device

    @classmethod
    @torch.no_grad()
    def from_model(
        cls,
        model: nn.Module,
        exits: Sequence[str],
        example_input: Inputs,
        decisions: Decisions,
        *,
        head: Head,
        pool: Pool,
        latency: ExitLatency | None,
    ) -> PreparedNetwork:
        """Cut a network at its exits, and check that stages and policy fit.

        Parameters
        ----------
        model : torch.nn.Module
            In evaluation mode.
        exits : sequence of str
            Names of the modules after which the network can stop.
        example_input : tensor, tuple of tensors or dict of tensors
            One input or more.
        decisions : Decisions
            What the policy decides at each exit.
        head : "output", None or list of str or None
            As in :class:`EarlyExitModel`.
        pool : str, sequence of str or callable
            As in :class:`EarlyExitModel`.
        latency : ExitLatency or None
            As in :class:`EarlyExitModel`.

        Returns
        -------
        PreparedNetwork
            On the device of the network.

        Raises
        ------
        ValueError
            If the exits do not cut the network, or the policy was fitted on other exits.
        """
        device = device_of(model)
        check_rows(example_input, device)
        network = RecordedNetwork(model, exits, example_input, head)
        stages = network.cut(range(len(exits)))
        if head is None or head == "output":
            check_against_plain_network(model, exits, list(stages.values()), example_input)
        names = list(example_input)[1:] if isinstance(example_input, dict) else []
        mask = names.index("attention_mask") if "attention_mask" in names else None
        example = map_tensors(lambda tensor: tensor[:1].clone(), example_input)
        runner = StageRunner(stages, exits, decisions.on(device), pool, mask, latency)
        _prepare_runner(runner, example)
        observed = np.flatnonzero(runner.decisions.is_observed).tolist()
        # Across exits that nothing reads, the network runs as if they were not there.
        return cls(runner, replace(runner, stages=network.cut(observed)), example, device)

    def start(self, inputs: Inputs) -> Batch:
        """The samples before the first stage, if the network takes them.

        Parameters
        ----------
        inputs : tensor, tuple of tensors or dict of tensors
            As the network takes them.

        Returns
        -------
        Batch
            For ``used_exits``.

        Raises
        ------
        ValueError
            If inputs have another shape, type or device than the network takes.
        """
        if not is_like(inputs, self.example):
            check_rows(inputs, self.device)
            check_like(inputs, self.example)
        return first_batch(self.used_exits, inputs)

    def to_last_exit(self) -> StageRunner:
        """Takes all samples to the last exit, and decides at each.

        Returns
        -------
        StageRunner
            Cut at every exit.
        """
        runner = replace(self.all_exits, decisions=self.all_exits.decisions.for_all_exits())
        _prepare_runner(runner, self.example)
        return runner

    def map_stages(self, function: Callable[[Stage], Stage]) -> Self:
        """The same network with every stage changed by a function.

        Parameters
        ----------
        function : callable
            Takes a Stage and returns one.

        Returns
        -------
        PreparedNetwork
            A copy; this one stays as it is.
        """
        all_exits, used_exits = (
            replace(runner, stages={k: function(stage) for k, stage in runner.stages.items()})
            for runner in (self.all_exits, self.used_exits)
        )
        return replace(self, all_exits=all_exits, used_exits=used_exits)


def first_batch(runner: StageRunner, inputs: Inputs) -> Batch:
    """The samples before the first stage of a runner."""
    first, *side = tensors_of(inputs)
    return runner.start(first, side, torch.arange(len(first), device=first.device))


def _prepare_runner(runner: StageRunner, example: Inputs) -> None:
    # Tensors of inference mode do not count the changes that are made to them.
    with torch.inference_mode(False), torch.no_grad():
        example_copy: Any = map_tensors(torch.clone, example)
        runner.prepare(first_batch(runner, example_copy))
