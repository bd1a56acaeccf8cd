"""A live network in two parts, which may run on different machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from skexit.backbone._inputs import Inputs, as_inputs, check_rows, like_example, map_tensors
from skexit.data._walk import Memories, Memory
from skexit.runtime._batch import Batch
from skexit.runtime._evaluation import EvaluationModule
from skexit.runtime._output import ExitOutput
from skexit.runtime._prepared import PreparedNetwork, first_batch
from skexit.runtime._rows import in_double
from skexit.runtime._thresholds import check_thresholds


@dataclass(frozen=True)
class Activations:
    """What a second part needs of the samples that a first part did not answer.

    Parameters
    ----------
    at_exit : int
        The last exit of the first part.
    tensors : list of tensor of shape (n_samples, ...)
        What that exit's module gave.
    side : list of tensor of shape (n_samples, ...)
        The inputs beside the first, as attention masks.
    rows : tensor of shape (n_samples,) of int64
        Rows of the samples among the inputs of the first part.
    notes : list of dict of str to tensor of shape (n_samples, ...)
        What the policy knows of the samples.
    """

    at_exit: int
    tensors: list[torch.Tensor]
    side: list[torch.Tensor]
    rows: torch.Tensor
    notes: list[dict[str, torch.Tensor]]

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Activations:
        """The same on another device.

        Parameters
        ----------
        device : torch.device or str
            Where to go.

        Returns
        -------
        Activations
            A copy.
        """
        return Activations(
            self.at_exit,
            [tensor.to(device) for tensor in self.tensors],
            [tensor.to(device) for tensor in self.side],
            self.rows.to(device),
            _plain(_memories(self.notes).map(lambda noted: noted.to(device))),
        )

    def to_dict(self) -> dict[str, Any]:
        """The parameters by name: numbers, tensors, and lists and dicts of them.

        ``torch.save`` writes them, and ``torch.load`` reads them with ``weights_only=True``.

        Returns
        -------
        dict
            What ``from_dict`` takes.
        """
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, parameters: dict[str, Any]) -> Activations:
        """The activations that `to_dict` gave.

        Parameters
        ----------
        parameters : dict
            What ``to_dict`` gave.

        Returns
        -------
        Activations
        """
        return cls(**parameters)


class PartialOutput(NamedTuple):
    """Answers of one part of a live network.

    Parameters
    ----------
    labels : tensor of shape (n_answered,), or ndarray where classes are names
        Class of each sample that left.
    probabilities : tensor of shape (n_answered, n_classes)
        Of each class, by the exit that answered.
    exits : tensor of shape (n_answered,) of int64
        The exit of the whole network at which each sample left, counted from 0.
    rows : tensor of shape (n_answered,) of int64
        Rows among the inputs of the first part, in order.
    rest : Activations or None
        The samples that were not answered, for the second part; None where there are none.
    """

    labels: torch.Tensor | NDArray[Any]
    probabilities: torch.Tensor
    exits: torch.Tensor
    rows: torch.Tensor
    rest: Activations | None


def join_outputs(outputs: Sequence[PartialOutput]) -> ExitOutput:
    """Put the answers of the parts of a live network together.

    Parameters
    ----------
    outputs : sequence of PartialOutput
        Of the first part, and of the second for all that the first did not answer.

    Returns
    -------
    ExitOutput
        In the order of the inputs of the first part, on the device of the first output.

    Examples
    --------
    >>> import torch
    >>> from skexit.runtime import PartialOutput, join_outputs
    >>> first = PartialOutput(torch.tensor([7]), torch.ones(1, 1), torch.tensor([0]), torch.tensor([1]), None)
    >>> second = PartialOutput(torch.tensor([8]), torch.ones(1, 1), torch.tensor([2]), torch.tensor([0]), None)
    >>> join_outputs([first, second]).labels
    tensor([8, 7])
    """
    device = outputs[0].rows.device
    order = torch.cat([output.rows.to(device) for output in outputs]).argsort()
    labels, probabilities, exits = (
        _join([output[part] for output in outputs], order, device) for part in range(len(ExitOutput._fields))
    )
    return ExitOutput(labels, probabilities, exits)


def _join(parts: Sequence[Any], order: torch.Tensor, device: torch.device) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)[order.cpu().numpy()]
    return torch.cat([part.to(device) for part in parts])[order]


class _Part(EvaluationModule):
    """Some stages of a live network, with the policy."""

    def __init__(self, network: PreparedNetwork, exits: range) -> None:
        super().__init__()
        runner = network.all_exits
        stages = {k: runner.stages[k] for k in exits}
        self.networks = nn.ModuleDict({str(k): stage.network for k, stage in stages.items()})
        self.heads = nn.ModuleDict({str(k): stage.logits for k, stage in stages.items() if stage.logits is not None})
        # What was measured is of the whole network.
        self._runner = replace(runner, stages=stages, latency=None)
        self._device = network.device
        self.eval()

    @property
    def device(self) -> torch.device:
        """Device of this part."""
        return self._device

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """Thresholds of the exits of the whole network, of shape (n_exits,), as those of :class:`EarlyExitModel`.

        A part in the same process as the live network shares them with it.
        """
        return self._runner.decisions.thresholds

    @thresholds.setter
    def thresholds(self, thresholds: ArrayLike) -> None:
        decisions = self._runner.decisions
        decisions.set_thresholds(check_thresholds(thresholds, len(decisions.policy.thresholds_)))

    def _apply(self, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        super()._apply(function, recurse)
        self._device = function(torch.empty(0, device=self._device)).device
        self._runner = replace(self._runner, decisions=self._runner.decisions.on(self._device))
        return self

    def _answer(self, batch: Batch) -> tuple[PartialOutput, Batch | None]:
        """The answers of these stages, and the samples that stay."""
        answers = self._runner.answers()
        # Gives the answers their shape where there are none.
        n_classes = len(self._runner.decisions.policy.classes_)
        answers.add(0, batch.rows[:0], in_double(torch.empty(0, n_classes, device=batch.rows.device)))
        staying: Batch | None = batch
        for k in self._runner.stages:
            if staying is None:
                break
            staying = self._runner.run(k, staying, answers)
        rows, output = answers.output()
        return PartialOutput(*output, rows, None), staying


class FirstPart(_Part):
    """The stages of a live network up to an exit, with the policy.

    It has the modules of these stages only, and shares them with the network. A copy that shares
    nothing can be written with ``torch.save``.

    Parameters
    ----------
    network : PreparedNetwork
        Of the live network.
    at_exit : int
        The last exit of this part.

    See Also
    --------
    EarlyExitModel.truncate : Gives the first part of a live network.
    SecondPart : Goes on with the samples that this part does not answer.
    """

    def __init__(self, network: PreparedNetwork, at_exit: int) -> None:
        # Nobody passes the policy's last exit.
        super().__init__(network, range(min(at_exit + 1, network.all_exits.decisions.n_exits)))
        self.at_exit = at_exit
        self._example = network.example

    @property
    def example(self) -> Inputs:
        """An input of one row, on the device of this part."""
        return self._example

    @torch.inference_mode()
    def forward(self, *inputs: Any, **named_inputs: Any) -> PartialOutput:
        """Answer the samples that leave in this part.

        Parameters
        ----------
        *inputs : tensor, several tensors, a tuple of tensors or a dict of tensors
            What the network takes.
        **named_inputs : tensor
            As the network takes them.

        Returns
        -------
        PartialOutput
            Answers, and what goes on.

        Raises
        ------
        ValueError
            If inputs have another shape, type or device than the network takes.
        """
        given = as_inputs(inputs, named_inputs)
        check_rows(given, self._device)
        given = like_example(given, self._example)
        output, staying = self._answer(first_batch(self._runner, given))
        if staying is None:
            return output
        staying = staying.without_gone()
        rest = Activations(self.at_exit, staying.tensors, staying.side, staying.rows, _plain(staying.notes))
        return output._replace(rest=rest)

    def _apply(self, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        super()._apply(function, recurse)
        self._example = map_tensors(function, self._example)
        return self


class SecondPart(_Part):
    """The stages of a live network after an exit, with the policy.

    It has the modules of these stages only, and shares them with the network. A copy that shares
    nothing can be written with ``torch.save``.

    Parameters
    ----------
    network : PreparedNetwork
        Of the live network.
    at_exit : int
        The last exit of the first part.

    See Also
    --------
    EarlyExitModel.resume : Gives the second part of a live network.
    FirstPart : Gives what this part goes on with.
    """

    def __init__(self, network: PreparedNetwork, at_exit: int) -> None:
        super().__init__(network, range(at_exit + 1, network.all_exits.decisions.n_exits))
        self.at_exit = at_exit

    @torch.inference_mode()
    def forward(self, rest: Activations) -> PartialOutput:
        """Answer the samples that the first part did not answer.

        Parameters
        ----------
        rest : Activations
            On the device of this part. A network that works in place may change them.

        Returns
        -------
        PartialOutput
            Its `rest` is None.

        Raises
        ------
        ValueError
            If the activations are of another exit, or on another device.
        """
        if rest.at_exit != self.at_exit:
            raise ValueError(f"the activations are of exit {rest.at_exit}, but this part goes on from {self.at_exit}.")
        if rest.rows.device != self._device:
            raise ValueError(f"the activations are on {rest.rows.device}, but this part on {self._device}. Move one.")
        return self._answer(Batch(list(rest.tensors), list(rest.side), rest.rows, _memories(rest.notes)))[0]


def check_at_exit(at_exit: int, n_exits: int) -> None:
    """Raise a ValueError unless a network can be divided at an exit."""
    if not isinstance(at_exit, Integral) or not 0 <= at_exit <= n_exits - 2:
        raise ValueError(
            f"at_exit={at_exit!r} must be the index of an exit that another follows: an integer from 0 to "
            f"{n_exits - 2}."
        )


def _memories(notes: list[dict[str, torch.Tensor]]) -> Memories:
    return Memories(Memory(noted) for noted in notes)


def _plain(memories: Memories) -> list[dict[str, torch.Tensor]]:
    # Dicts, which torch.load takes with weights_only=True.
    return [dict(memory) for memory in memories]
