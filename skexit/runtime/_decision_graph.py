"""What happens at an exit as a function of tensors alone, which torch can record."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from skexit.data._walk import Memories, Memory
from skexit.runtime._compiled import plain_network
from skexit.runtime._decisions import Decisions
from skexit.runtime._rows import in_double
from skexit.runtime._runner import StageRunner

#: Notes of earlier exits: the number of the step that made one, a point and its name, and the tensor.
Notes = dict[str, torch.Tensor]


class ExitReading(nn.Module):
    """Reads exit `k`: pooled features and the network's own logits, as far as decisions look at them.

    Takes what the exit's stage gave and the inputs beside the first.
    """

    def __init__(self, runner: StageRunner, k: int) -> None:
        super().__init__()
        decisions = runner.decisions
        has_logits = decisions.is_observed[k] and decisions.layout.has_logits(k)
        self.head: nn.Module | None = plain_network(runner.stages[k].logits) if has_logits else None
        self._pool, self._mask = runner._pools.get(k), runner.mask
        self.eval()

    def forward(self, tensors: list[torch.Tensor], side: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What decisions look at, by name: ``features``, ``logits``, both or none."""
        read = {}
        # Features first: the head may work in place on what the exit gave. A copy where they are that itself.
        if self._pool is not None:
            features = self._pool(tensors[0], None if self._mask is None else side[self._mask])
            read["features"] = features.clone() if features is tensors[0] else features
        if self.head is not None:
            read["logits"] = self.head(*tensors, *side)
        return read


class DecisionGraph(nn.Module):
    """Decides at exit `k`: logits of the answer, who leaves, and notes for later exits.

    Where the arrays of the policy are NumPy's, they become constants of what is recorded; tensors would be asked for
    their values. `decides` says whether some samples may leave and others stay. `scaling` is a matrix and an offset
    that do to features what ExitTransformers do.
    """

    def __init__(self, decisions: Decisions, k: int, scaling: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        super().__init__()
        self._decisions, self._k, self._scaling = decisions, k, scaling
        self.decides = k < decisions.n_exits - 1 and decisions.is_used[k]

    def forward(self, read: dict[str, torch.Tensor], notes: Notes, threshold: torch.Tensor | None) -> dict[str, Any]:
        """A dict of ``logits``, ``leaves`` (absent where nobody or everybody leaves) and ``notes``.

        `read` is what an ExitReading gave. The threshold, of shape () or (1,), is looked at where the exit decides.
        """
        decisions, k = self._decisions, self._k
        logits, features = (in_double(read[name]) if name in read else None for name in ("logits", "features"))
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
                decided["leaves"] = ~(scores < threshold)  # as Decisions.leaves
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
