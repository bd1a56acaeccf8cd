"""A live network in two parts, which may run on different machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from skexit.backbone._inputs import Inputs, as_inputs, check_rows, describe_given, like_example, map_tensors
from skexit.data._walk import Memories, Memory
from skexit.runtime._batch import Batch
from skexit.runtime._evaluation import EvaluationModule
from skexit.runtime._output import ExitOutput
from skexit.runtime._prepared import PreparedNetwork, first_batch
from skexit.runtime._rows import in_double
from skexit.runtime._thresholds import check_thresholds
from skexit.utils._checks import is_integer


@dataclass(frozen=True)
class Activations:
    """The samples that stay after the first part of a live network, with all that the second part needs.

    Parameters
    ----------
    at_exit : int
        The last exit of the first part, counted from 0.
    tensors : list of tensor of shape (n_samples, ...)
        Outputs of the network's stage up to this exit, which later stages need.
    side : list of tensor of shape (n_samples, ...)
        The inputs of the network after the first one, such as attention masks.
    rows : tensor of shape (n_samples,) of int64
        Rows of the samples in the inputs of the first part.
    notes : list of dict of str to tensor of shape (n_samples, ...)
        Notes of the policy on the samples, one dict per step of its pipeline.
    """

    at_exit: int
    tensors: list[torch.Tensor]
    side: list[torch.Tensor]
    rows: torch.Tensor
    notes: list[dict[str, torch.Tensor]]

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Activations:
        """The activations on another device.

        Parameters
        ----------
        device : torch.device or str
            The device to move to.

        Returns
        -------
        Activations
            New activations. Tensors that are on the device already are not copied.
        """
        return Activations(
            self.at_exit,
            [tensor.to(device) for tensor in self.tensors],
            [tensor.to(device) for tensor in self.side],
            self.rows.to(device),
            _plain(_memories(self.notes).map(lambda noted: noted.to(device))),
        )

    def to_dict(self) -> dict[str, Any]:
        """The activations as a dict of numbers, tensors, and lists and dicts of tensors.

        ``torch.save`` can write it, and ``torch.load`` can read it with ``weights_only=True``.

        Returns
        -------
        dict
            The parameters by name, for ``from_dict``.
        """
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, parameters: dict[str, Any]) -> Activations:
        """Make activations from the dict of ``to_dict``.

        Parameters
        ----------
        parameters : dict
            The dict that ``to_dict`` returned.

        Returns
        -------
        Activations
            Activations with these parameters.
        """
        return cls(**parameters)


class PartialOutput(NamedTuple):
    """Predictions of one part of a live network, for the samples that left there.

    Parameters
    ----------
    labels : tensor of shape (n_answered,), or ndarray if classes are names
        Predicted class of each sample that left.
    probabilities : tensor of shape (n_answered, n_classes)
        Class probabilities, from the exit at which the sample left.
    exits : tensor of shape (n_answered,) of int64
        Exit of the whole network at which each sample left, counted from 0.
    rows : tensor of shape (n_answered,) of int64
        Rows of the samples in the inputs of the first part, in ascending order.
    rest : Activations or None
        The samples that stay, for the second part; None if there are none.
    """

    labels: torch.Tensor | NDArray[Any]
    probabilities: torch.Tensor
    exits: torch.Tensor
    rows: torch.Tensor
    rest: Activations | None


def join_outputs(outputs: Sequence[PartialOutput]) -> ExitOutput:
    """Join the predictions of the parts of a live network.

    Parameters
    ----------
    outputs : sequence of PartialOutput
        The output of the first part, and one or more outputs of the second part for all samples that the first part
        left to it.

    Returns
    -------
    ExitOutput
        Predictions in the order of the inputs of the first part, on the device of the first output.

    Raises
    ------
    TypeError
        If `outputs` is not a list of PartialOutput.
    ValueError
        If `outputs` is empty.

    Examples
    --------
    >>> import torch
    >>> from skexit.runtime import PartialOutput, join_outputs
    >>> first = PartialOutput(torch.tensor([7]), torch.ones(1, 1), torch.tensor([0]), torch.tensor([1]), None)
    >>> second = PartialOutput(torch.tensor([8]), torch.ones(1, 1), torch.tensor([2]), torch.tensor([0]), None)
    >>> join_outputs([first, second]).labels
    tensor([8, 7])
    """
    if isinstance(outputs, PartialOutput) or not all(isinstance(output, PartialOutput) for output in outputs):
        raise TypeError(
            "outputs must be a list of PartialOutput: pass [answered, second(answered.rest)], or [answered] if "
            "answered.rest is None."
        )
    if not outputs:
        raise ValueError("outputs is empty; pass the output of the first part at least.")
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
        # The measured times are those of the whole network.
        self._runner = replace(runner, stages=stages, latency=None)
        self._device = network.device
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of this part."""
        return self._device

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """Thresholds of all exits of the whole network, of shape (n_exits,).

        See ``EarlyExitModel.thresholds``. A part that has not been copied or moved shares them with the live network.
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
        """The predictions of these stages, and the samples that stay."""
        answers = self._runner.answers()
        # Without samples that leave, this empty prediction determines the shape of the output.
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

    This part has only the modules of its stages, and shares them with the live network. ``torch.save`` can write it to
    a file, which holds no other modules.

    Parameters
    ----------
    network : PreparedNetwork
        The prepared network of an :class:`EarlyExitModel`.
    at_exit : int
        The last exit of this part, counted from 0.

    See Also
    --------
    EarlyExitModel.truncate : Returns the first part of a live network.
    SecondPart : Continues with the samples that stay after this part.
    """

    def __init__(self, network: PreparedNetwork, at_exit: int) -> None:
        # All samples have left at the last exit that the policy uses.
        super().__init__(network, range(min(at_exit + 1, network.all_exits.decisions.n_exits)))
        self.at_exit = at_exit
        self._example = network.example

    @property
    def example(self) -> Inputs:
        """An input of one row, on the device of this part."""
        return self._example

    @torch.inference_mode()
    def forward(self, *inputs: Any, **named_inputs: Any) -> PartialOutput:
        """Predict the classes of the samples that leave in this part.

        Parameters
        ----------
        *inputs : tensor, several tensors, a tuple of tensors or a dict of tensors
            Inputs of the network.
        **named_inputs : tensor
            Inputs of the network by name.

        Returns
        -------
        PartialOutput
            Predictions for the samples that leave, and the activations of those that stay in ``rest``.

        Raises
        ------
        ValueError
            If inputs have the wrong shape, type or device for the network, or the logits of a prediction are not
            finite.
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

    This part has only the modules of its stages, and shares them with the live network. ``torch.save`` can write it to
    a file, which holds no other modules.

    Parameters
    ----------
    network : PreparedNetwork
        The prepared network of an :class:`EarlyExitModel`.
    at_exit : int
        The last exit of the first part, counted from 0.

    See Also
    --------
    EarlyExitModel.resume : Returns the second part of a live network.
    FirstPart : Returns the activations that this part continues with.
    """

    def __init__(self, network: PreparedNetwork, at_exit: int) -> None:
        super().__init__(network, range(at_exit + 1, network.all_exits.decisions.n_exits))
        self.at_exit = at_exit

    @torch.inference_mode()
    def forward(self, rest: Activations) -> PartialOutput:
        """Predict the classes of the samples that stay after the first part.

        Parameters
        ----------
        rest : Activations
            Activations from the first part, on the device of this part. Layers that work in place may change them.

        Returns
        -------
        PartialOutput
            Predictions for all samples; its ``rest`` is None.

        Raises
        ------
        TypeError
            If `rest` is not Activations.
        ValueError
            If `rest` is None, because no sample stays after the first part; the activations are from another exit or on
            another device; or the logits of a prediction are not finite.
        """
        _check_rest(rest, self.at_exit)
        if rest.at_exit != self.at_exit:
            raise ValueError(
                f"rest has activations after exit {rest.at_exit}, but this part continues after exit {self.at_exit}. "
                f"Pass activations of truncate({self.at_exit}), or use resume({rest.at_exit})."
            )
        if rest.rows.device != self._device:
            raise ValueError(
                f"rest is on {rest.rows.device}, but this part is on {self._device}. Pass "
                f"rest.to({str(self._device)!r})."
            )
        return self._answer(Batch(list(rest.tensors), list(rest.side), rest.rows, _memories(rest.notes)))[0]


def _check_rest(rest: Any, at_exit: int) -> None:
    """Raise an error unless `rest` is what a first part leaves for a second part."""
    if rest is None:
        raise ValueError(
            "rest is None, because all samples left in the first part. Call the second part only if answered.rest is "
            "not None; join_outputs([answered]) then has all predictions."
        )
    if isinstance(rest, PartialOutput):
        raise TypeError("rest is the PartialOutput of a part; pass its activations, answered.rest.")
    if isinstance(rest, dict):
        raise TypeError("rest is a dict; pass Activations.from_dict(rest).")
    if not isinstance(rest, Activations):
        raise TypeError(
            f"rest is {describe_given(rest)}; pass the activations of the first part, truncate({at_exit})(x).rest."
        )


def check_at_exit(at_exit: int, n_exits: int) -> None:
    """Raise a ValueError unless `at_exit` is an exit with another one after it."""
    if not is_integer(at_exit) or not 0 <= at_exit <= n_exits - 2:
        raise ValueError(
            f"at_exit={at_exit!r} must be the number of an exit before the last: an integer from 0 to {n_exits - 2}."
        )


def _memories(notes: list[dict[str, torch.Tensor]]) -> Memories:
    return Memories(Memory(noted) for noted in notes)


def _plain(memories: Memories) -> list[dict[str, torch.Tensor]]:
    # torch.load with weights_only=True can read dicts, but not other classes.
    return [dict(memory) for memory in memories]
