"""Run one stage of a network after another for the samples that are still running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from skexit.extraction.pooling import Pool, pool_output, prepared_pool
from skexit.layout import ExitLayout
from skexit.runtime.batch import Answers, Batch
from skexit.runtime.decisions import Decisions
from skexit.runtime.rows import in_double, split_rows
from skexit.runtime.stages import Stage

if TYPE_CHECKING:
    from skexit.runtime.latency import ExitLatency


@dataclass
class StageRunner:
    """Stages with the decisions after them.

    Parameters
    ----------
    stages : mapping of int to Stage
        By exit.
    exits : sequence of str
        Names of the exits.
    decisions : Decisions
    pool : str, sequence of str or callable
    mask : int or None
        Which of the side inputs is the attention mask.
    latency : ExitLatency or None
        Says where it pays to take samples that leave out of the batch; None for everywhere.
    """

    stages: Mapping[int, Stage]
    exits: Sequence[str]
    decisions: Decisions
    pool: Pool
    mask: int | None
    latency: ExitLatency | None = None
    _pools: dict[int, Any] = field(default_factory=dict)

    def start(self, first: torch.Tensor, side: list[torch.Tensor], rows: Any) -> Batch:
        """Samples before the first stage."""
        return Batch([first], side, rows, self.decisions.start())

    def answers(self) -> Answers:
        """Nothing yet."""
        return Answers(self.decisions.policy.classes_, self.decisions.policy.temperatures_)

    def run(self, k: int, batch: Batch, answers: Answers) -> Batch | None:
        """Run the network to exit `k` and record who leaves there.

        Parameters
        ----------
        k : int
        batch : Batch
            Its lists are emptied, so that the network may free what they hold.
        answers : Answers

        Returns
        -------
        Batch or None
            The samples that go on; None where there are none.
        """
        batch = self.compute(k, batch)
        if not self.decisions.is_observed[k]:
            return batch
        return self.part(k, batch, *self.decide(k, batch), answers)

    def part(self, k: int, batch: Batch, logits: Any, leaves: Any, answers: Answers) -> Batch | None:
        """Record who leaves at exit `k`, and give those who go on.

        Parameters
        ----------
        k : int
        batch : Batch
        logits : tensor of shape (n_samples, n_classes)
        leaves : tensor of shape (n_samples,) of bool, or None
            As `decide` gives them.
        answers : Answers

        Returns
        -------
        Batch or None
        """
        is_last = k == self.decisions.n_exits - 1
        if leaves is None and not is_last:
            return batch
        if is_last:
            leaves = torch.ones_like(batch.rows, dtype=torch.bool)
        leaving, staying = split_rows(leaves, batch.gone)
        if len(leaving) == len(batch):
            answers.add(k, batch.rows, logits)
            return None
        following = self._go_on(k, batch, leaves, staying) if len(staying) else None
        # Last, so that nothing is recorded where memory does not suffice.
        if len(leaving):
            answers.add(k, batch.rows[leaving], logits[leaving])
        return following

    def _go_on(self, k: int, batch: Batch, leaves: torch.Tensor, staying: torch.Tensor) -> Batch:
        """The samples that stay, without the others, or with them where that is quicker."""
        if len(staying) == len(batch):
            return batch
        if self.latency is None or self.latency.compaction_pays(k, len(batch), len(staying)):
            return batch.select(staying)
        return replace(batch, gone=leaves if batch.gone is None else batch.gone | leaves)

    def compute(self, k: int, batch: Batch) -> Batch:
        """Run the network from the exit before to exit `k`."""
        inputs = [*batch.tensors, *batch.side]
        batch.tensors.clear()
        batch.tensors = self.stages[k].network.forward(*inputs)
        return batch

    def decide(self, k: int, batch: Batch) -> tuple[Any, Any]:
        """Logits with which exit `k` answers, and who leaves; None where no decision is made."""
        logits, features = self._read(k, batch)
        answer = self.decisions.answer(k, logits, features, batch.notes)
        return answer, self.decisions.leaves(k, answer, features, batch.notes)

    def prepare(self, batch: Batch) -> None:
        """Find how to pool each exit that is looked at.

        Raises a ValueError if one gives other logits or features than the policy was fitted on.

        Parameters
        ----------
        batch : Batch
            Of one sample.
        """
        layout = self.decisions.layout
        for k in range(self.decisions.n_exits):
            batch = self.compute(k, batch)
            if not self.decisions.is_observed[k]:
                continue
            if self.decisions.needs_features(k):
                pool_output(batch.tensors[0], self.pool, self._mask_of(batch))  # says what does not fit
                self._pools[k] = prepared_pool(self.pool, batch.tensors[0].ndim)
            self._check_exit(k, batch, layout)

    def _check_exit(self, k: int, batch: Batch, layout: ExitLayout) -> None:
        logits, features = self._read(k, batch)
        if layout.has_logits(k) and logits is None:
            raise ValueError(
                f"the policy was fitted with logits at exit {self.exits[k]!r}, but the network has none of its own "
                "there. Pass the heads that gave them, as heads= or in a pipeline with the policy, or say with head= "
                "which module does."
            )
        for part, given, width in (
            ("logits", logits, layout.n_logits[k]),
            ("features", features, layout.n_features[k]),
        ):
            if given is not None and given.shape[1] != width:
                raise ValueError(
                    f"exit {self.exits[k]!r} gives {given.shape[1]} {part}, but the policy was fitted on {width}. Pass "
                    f"the exits, pool= and head= of the extraction; pool={self.pool!r} now."
                )

    def _read(self, k: int, batch: Batch) -> tuple[Any, Any]:
        """Logits that the network itself has for exit `k`, and features."""
        head, logits, features = self.stages[k].logits, None, None
        # Features first: the head may work in place on what the exit gave.
        if k in self._pools:
            features = in_double(self._pools[k](batch.tensors[0], self._mask_of(batch)))
        if head is not None and self.decisions.layout.has_logits(k):
            logits = in_double(head(*batch.tensors, *batch.side))
        return logits, features

    def _mask_of(self, batch: Batch) -> torch.Tensor | None:
        """The attention mask of the samples, if there is one."""
        return None if self.mask is None else batch.side[self.mask]
