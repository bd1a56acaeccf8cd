"""Requests that run in one batch: they are joined and divided, and run one by one if a batch fails."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from skexit.runtime import Activations, ExitOutput, PartialOutput
from skexit.serving._inputs import Arrays

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Begun(NamedTuple):
    """Result of the first part for a request.

    Parameters
    ----------
    answers : ExitOutput
        Predictions for the rows that left, as NumPy arrays.
    rows : ndarray of shape (n_answered,) of int
        Indices of these rows in the request.
    rest : Activations or None
        Activations of the other rows; None if all rows left.
    """

    answers: ExitOutput
    rows: np.ndarray
    rest: Activations | None


def run_together(
    run: Callable[[list[Request]], list[Answer]], requests: Sequence[Request], kind_of: Callable[[Request], Hashable]
) -> list[Answer | Exception]:
    """Run requests of the same kind in one batch each.

    If a batch fails, its requests run one by one, so that only the faulty request gets an exception.
    """
    kinds: dict[Hashable, list[int]] = {}
    for position, request in enumerate(requests):
        kinds.setdefault(kind_of(request), []).append(position)
    answers: dict[int, Answer | Exception] = {}
    for positions in kinds.values():
        try:
            given: list[Any] = list(run([requests[position] for position in positions]))
        except Exception as error:
            alone = len(positions) == 1
            given = [error] if alone else [_answer_or_exception(run, requests[position]) for position in positions]
        answers.update(zip(positions, given, strict=True))
    return [answers[position] for position in range(len(requests))]


def _answer_or_exception(run: Callable[[list[Request]], list[Answer]], request: Request) -> Answer | Exception:
    try:
        return run([request])[0]
    except Exception as error:
        return error


def kind_of_arrays(inputs: Arrays) -> Hashable:
    """Key of inputs that can be joined: their rows have the same shape."""
    named = inputs.items() if isinstance(inputs, dict) else [("", inputs)]
    return tuple((name, array.shape[1:]) for name, array in named)


def kind_of_rest(rest: Activations) -> Hashable:
    """Key of activations that can be joined: their rows have the same shapes."""
    return tuple(tensor.shape[1:] for tensor in (*rest.tensors, *rest.side))


def join_arrays(requests: Sequence[Any]) -> Arrays:
    """The rows of several requests, arrays or dicts of arrays, one after the other."""
    if isinstance(requests[0], dict):
        return {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}
    return np.concatenate(requests)


def join_rests(requests: Sequence[Activations]) -> Activations:
    """The samples of several requests, one after the other, with new row indices from 0."""
    first = requests[0]
    n_samples = sum(map(len, requests))
    return Activations(
        first.at_exit,
        [torch.cat(tensors) for tensors in zip(*(rest.tensors for rest in requests), strict=True)],
        [torch.cat(tensors) for tensors in zip(*(rest.side for rest in requests), strict=True)],
        torch.arange(n_samples, device=first.rows.device),
        [
            {name: torch.cat([noted[name] for noted in memories]) for name in memories[0]}
            for memories in zip(*(rest.notes for rest in requests), strict=True)
        ],
    )


def divide(output: PartialOutput, lengths: Sequence[int]) -> list[Begun]:
    """Divide the output of a batch among its requests, which have these numbers of rows; all results are on the CPU."""
    ends = [0, *accumulate(lengths)]
    answered = _positions(output.rows, ends)
    labels, probabilities, exits, rows = (np.asarray(_on_cpu(part)) for part in output[:4])
    rest = None if output.rest is None else output.rest.to("cpu")
    staying = [0] * len(ends) if rest is None else _positions(rest.rows, ends)
    begun = []
    for start, (low, high), (first, last) in zip(ends, pairwise(answered), pairwise(staying), strict=False):
        answers: list[Any] = [part[low:high] for part in (labels, probabilities, exits)]
        own = None if rest is None or first == last else _slice(rest, slice(first, last), start)
        begun.append(Begun(ExitOutput(*answers), rows[low:high] - start, own))
    return begun


def _positions(rows: torch.Tensor, ends: Sequence[int]) -> list[int]:
    """Position of the first row of each request in a sorted tensor of rows."""
    return torch.searchsorted(rows.cpu(), torch.tensor(ends, device="cpu")).tolist()


def _slice(rest: Activations, rows: slice, start: int) -> Activations:
    # Copies: a view would be sent with the whole batch.
    return Activations(
        rest.at_exit,
        [tensor[rows].clone() for tensor in rest.tensors],
        [tensor[rows].clone() for tensor in rest.side],
        rest.rows[rows] - start,
        [{name: tensor[rows].clone() for name, tensor in noted.items()} for noted in rest.notes],
    )


def _on_cpu(part: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    return part.cpu() if isinstance(part, torch.Tensor) else part


def complete(begun: Begun, later: Begun) -> ExitOutput:
    """The predictions of both parts, in the order of the rows of the request."""
    order = np.concatenate([begun.rows, later.rows]).argsort()
    parts: list[Any] = [np.concatenate(both)[order] for both in zip(begun.answers, later.answers, strict=True)]
    return ExitOutput(*parts)
