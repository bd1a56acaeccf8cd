"""The decision at an exit as a function of tensors only, which torch can record."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from skexit.data._walk import Memories, Memory
from skexit.policies._decision import stays_at
from skexit.runtime._decisions import Decisions

#: Notes of earlier exits. A key is the number of the pipeline step that made the note, a point, and the note's name.
Notes = dict[str, torch.Tensor]


class DecisionGraph(nn.Module):
    """The decision at exit `k`: logits of the predictions, samples that stay, and notes for later exits.

    The policy must have NumPy arrays, which become constants of the recording: torch cannot record reads of a tensor's
    values. `decides` is True if samples may leave at the exit and others may stay. `scaling` is a matrix and an offset
    with the same effect on features as the ExitTransformers.
    """

    def __init__(self, decisions: Decisions, k: int, scaling: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        super().__init__()
        self._decisions, self._k, self._scaling = decisions, k, scaling
        self.decides = k < decisions.n_exits - 1 and decisions.is_used[k]

    def forward(self, read: dict[str, torch.Tensor], notes: Notes, threshold: torch.Tensor | None) -> dict[str, Any]:
        """A dict with ``logits``, ``stays`` (only if `decides`) and ``notes`` (at all exits but the last).

        `read` has ``features`` and ``logits`` in double precision, if they are read at the exit. `threshold`, of shape
        () or (1,), is needed only if `decides`.
        """
        decisions, k = self._decisions, self._k
        logits, features = (read.get(name) for name in ("logits", "features"))
        features = decisions._as_cached(features)
        if self._scaling is not None and features is not None:
            matrix, offset = self._scaling
            features = features @ matrix + offset
        memories = _memories(notes, len(decisions.start()))
        answer = decisions.answer(k, logits, features, memories)
        decided: dict[str, Any] = {"logits": answer}
        if k < decisions.n_exits - 1:
            scores = decisions._score(k, answer, features, memories)
            if self.decides:
                decided["stays"] = stays_at(scores, threshold)
            decided["notes"] = _notes(memories)
        return decided


def _memories(notes: Notes, n_steps: int) -> Memories:
    memories = Memories(Memory() for _ in range(n_steps))
    for name, noted in notes.items():
        step, _, own_name = name.partition(".")
        memories[int(step)][own_name] = noted
    return memories


def _notes(memories: Memories) -> Notes:
    return {f"{step}.{name}": noted for step, memory in enumerate(memories) for name, noted in memory.items()}
