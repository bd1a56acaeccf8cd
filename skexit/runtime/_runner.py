"""Run the stages of a network for the samples that are still running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from skexit.backbone._inputs import is_sequence
from skexit.backbone._masks import TokenCounts
from skexit.backbone._pooling import Pool, is_for_maps, pool_of_output, pool_output, prepared_pool
from skexit.backbone._stages import Stage
from skexit.data._pools import is_same_pool, pool_cure
from skexit.data._walk import Memories
from skexit.runtime._batch import Answers, Batch
from skexit.runtime._decisions import Decisions
from skexit.runtime._exit_latency import ExitLatency
from skexit.runtime._recorded import decide, read_features
from skexit.runtime._rows import count_rows, fill_up, in_double, size_to_run, split_rows

#: Rows of a batch: some as a tensor of numbers, all as a slice, or none as None.
Rows = torch.Tensor | slice | None


@dataclass
class StageRunner:
    """Stages, by exit, with the decisions after them.

    `channels` is the axis of the channels at each exit: "first" or "last". `mask` is the number of the side input that
    is the attention mask. `counts` computes how many tokens the network makes from the positions of the mask, if the
    network says so. With `latency`, samples that leave are removed from the batch only if that is faster; None: always.
    """

    stages: Mapping[int, Stage]
    exits: Sequence[str]
    decisions: Decisions
    pool: Pool
    channels: Mapping[str, str]
    mask: int | None
    counts: TokenCounts | None
    latency: ExitLatency | None = None
    compiled: Mapping[int, Callable[[Batch], tuple[Batch, Any, Any]]] = field(default_factory=dict)
    """Compiled graphs of a stage and the decision after it, by exit."""
    is_in_place: dict[int, bool] = field(default_factory=dict)
    """Whether a stage changes its inputs in place, by exit. `prepare` sets it."""
    _pools: dict[int, Any] = field(default_factory=dict)
    _pools_when_deciding: set[int] = field(default_factory=set)
    """Exits at which the recorded decision includes pooling."""

    def start(self, first: torch.Tensor, side: list[torch.Tensor], rows: Any) -> Batch:
        """The batch before the first stage."""
        return Batch([first], side, rows, self.decisions.start())

    def answers(self) -> Answers:
        """A collector of predictions, which is empty."""
        return Answers(self.decisions.classes, self.decisions.temperatures)

    def run(self, k: int, batch: Batch, answers: Answers) -> Batch | None:
        """Run the network to exit `k`, record the predictions of samples that leave, and return the others.

        The result is None if no sample stays. The lists in the batch are emptied, so that their tensors can be freed.
        """
        batch, logits, leaves = self.compute_and_decide(k, batch)
        if logits is None:
            return batch
        leaving, staying = self.split(k, batch, leaves)
        following = self._go_on(k, batch, leaves, staying)
        # Recorded last: if memory is exhausted before, no prediction is recorded.
        if leaving is not None:
            answers.add(k, batch.rows[leaving], logits[leaving])
        return following

    def split(self, k: int, batch: Batch, leaves: Any) -> tuple[Rows, Rows]:
        """Rows of the batch that leave at exit `k`, and rows that stay. Waits once for the device.

        `leaves` is the mask from `decide`, or None.
        """
        everyone, nobody = slice(None), None
        if k == self.decisions.n_exits - 1:
            if batch.gone is None:
                return everyone, nobody
            leaves = torch.ones_like(batch.gone)
        if leaves is None:
            return nobody, everyone
        n_leaving, n_staying = count_rows(leaves, batch.gone)
        if n_staying == len(batch):
            return nobody, everyone
        if n_leaving == len(batch):
            return everyone, nobody
        leaving, staying = split_rows(leaves, batch.gone, n_leaving, n_staying)
        return leaving if n_leaving else nobody, staying if n_staying else nobody

    def _go_on(self, k: int, batch: Batch, leaves: Any, staying: Rows) -> Batch | None:
        """The samples that stay. Those that leave are kept in the batch if that is faster; None if no sample stays."""
        if staying is None:
            return None
        if isinstance(staying, slice):
            return batch
        size = size_to_run(len(staying), staying.device)
        if size < len(batch) and (
            self.latency is None or self._compaction_pays(self.latency, k, len(batch), len(staying))
        ):
            return _select(batch, staying, size)
        return replace(batch, gone=leaves if batch.gone is None else batch.gone | leaves)

    def _compaction_pays(self, latency: ExitLatency, k: int, n_samples: int, n_staying: int) -> bool:
        following = next(j for j in range(k + 1, self.decisions.n_exits) if self.decisions.is_used[j])
        return latency.compaction_pays(k, following, n_samples, n_staying)

    def compute_and_decide(self, k: int, batch: Batch) -> tuple[Batch, Any, Any]:
        """The batch after the stage to exit `k`, and the result of `decide`, or None twice if no decision reads it."""
        if k in self.compiled:
            return self.compiled[k](batch)
        batch = self.compute(k, batch)
        return (batch, *self.decide(k, batch)) if self.decisions.is_observed[k] else (batch, None, None)

    def compute(self, k: int, batch: Batch) -> Batch:
        """Run the network from the previous exit to exit `k`."""
        inputs = [*batch.tensors, *batch.side]
        batch.tensors.clear()
        batch.tensors = self.stages[k].network.forward(*inputs)
        return batch

    def decide(self, k: int, batch: Batch) -> tuple[Any, Any]:
        """Logits of the predictions at exit `k`, and a mask of the samples that leave; None if all leave or none."""
        if k in self._pools_when_deciding:
            return decide(self.decisions, k, None, batch.tensors[0], batch.notes, self._pools[k])
        return self._decide(k, *self._read(k, batch), batch.notes)

    def _decide(self, k: int, logits: Any, features: Any, notes: Memories) -> tuple[Any, Any]:
        features = self.decisions.transform_features(k, features)
        return decide(self.decisions, k, logits, features, notes)

    def prepare(self, batch: Batch) -> None:
        """Prepare pooling, record decisions, and find stages that work in place.

        `batch` has one sample. Its tensors must count in-place changes. A ValueError says if an exit has other logits
        or features than the policy was fitted on.
        """
        has_lengths = any(is_sequence(tensor) for tensor in (*batch.tensors, *batch.side))
        for k in range(self.decisions.n_exits):
            given = batch.tensors = [tensor.clone() for tensor in batch.tensors]
            versions = [tensor._version for tensor in (*given, *batch.side)]
            batch = self.compute(k, replace(batch, tensors=list(given)))
            self.is_in_place[k] = versions != [tensor._version for tensor in (*given, *batch.side)]
            if not self.decisions.is_observed[k]:
                continue
            if self.decisions.uses_features(k):
                tensor, channels = batch.tensors[0], self.channels[self.exits[k]]
                self._check_pool(k, tensor.ndim)
                # Raises an error if the output cannot be pooled.
                pool_output(tensor, self.pool, self._mask_of(batch), channels, self.counts)
                self._pools[k] = prepared_pool(self.pool, tensor.ndim, channels, self.counts)
            logits, features = self._read(k, batch)
            self._check_exit(k, logits, features)
            # A recording is only correct for maps of one size.
            if not has_lengths and self._can_pool_when_deciding(k, batch.tensors[0]):
                self._pools_when_deciding.add(k)
            self.decide(k, batch)

    def _can_pool_when_deciding(self, k: int, tensor: torch.Tensor) -> bool:
        """Whether pooling can be recorded. It cannot if there is a head, which may change the tensor in place."""
        has_maps = self.pool_at(k) is not None and is_for_maps(self.pool, tensor.ndim)
        return has_maps and self.own_head(k) is None and not self.decisions.of_features

    def _check_pool(self, k: int, n_dimensions: int) -> None:
        """Raise a ValueError if the policy was fitted on features that are known to be pooled otherwise."""
        fitted = None if self.decisions.layout.pools is None else self.decisions.layout.pools[k]
        found = pool_of_output(self.pool, n_dimensions)
        if fitted is not None and not is_same_pool(found, fitted):
            given = "" if self.pool == found else f", pool={self.pool!r},"
            raise ValueError(
                f"the live network pools exit {self.exits[k]!r} by {found!r}{given} but the policy was fitted on "
                f"features that were pooled by {fitted!r}. Pass {self._cure_of_pool(fitted, n_dimensions)}, as in the "
                "extraction."
            )

    def _cure_of_pool(self, fitted: str, n_dimensions: int) -> str:
        # Exits of other dimensions have other pools, which only "auto" names together.
        return "pool='auto'" if fitted == pool_of_output("auto", n_dimensions) else pool_cure(fitted)

    def _check_exit(self, k: int, logits: Any, features: Any) -> None:
        layout = self.decisions.layout
        if layout.has_logits(k) and logits is None:
            raise ValueError(
                f"the policy was fitted with logits at exit {self.exits[k]!r}, but the network has none of its own "
                "there. Pass the heads that computed them, as heads= or in a pipeline with the policy, or name the "
                "module that computes them with head=."
            )
        for part, given, width in (
            ("logits", logits, layout.n_logits[k]),
            ("features", features, layout.n_features[k]),
        ):
            if given is not None and given.shape[1] != width:
                raise ValueError(
                    f"exit {self.exits[k]!r} gives {given.shape[1]} {part}, but the policy was fitted on {width}. Pass "
                    f"the exits, pool=, channels= and head= of the extraction; pool={self.pool!r} now."
                )

    def _read(self, k: int, batch: Batch) -> tuple[Any, Any]:
        return read_exit(batch.tensors, batch.side, self.pool_at(k), self.own_head(k), self.mask)

    def pool_at(self, k: int) -> Any:
        """The pooling of exit `k`, which `prepare` sets; None if no decision reads its features."""
        return self._pools.get(k)

    def own_head(self, k: int) -> Any:
        """The module for the network's own logits at exit `k`; None if no decision reads them."""
        is_read = self.decisions.is_observed[k] and self.decisions.layout.has_logits(k)
        return self.stages[k].logits if is_read else None

    def _mask_of(self, batch: Batch) -> torch.Tensor | None:
        """The attention mask of the samples, if there is one."""
        return None if self.mask is None else batch.side[self.mask]


def read_exit(
    tensors: Sequence[torch.Tensor], side: Sequence[torch.Tensor], pool: Any, head: Any, mask: int | None
) -> tuple[Any, Any]:
    """The network's own logits of an exit, and its features, from the outputs of the stage and the side inputs."""
    logits = features = None
    # Features first, because the head may change the outputs of the stage in place.
    if pool is not None:
        features = read_features(pool, tensors[0], None if mask is None else side[mask])
    if head is not None:
        logits = in_double(head(*tensors, *side))
    return logits, features


def _select(batch: Batch, rows: torch.Tensor, size: int) -> Batch:
    """Some of the samples, padded to a size with samples that are gone."""
    if size == len(rows):
        return batch.select(rows)
    rows, added = fill_up(rows, size)
    return replace(batch.select(rows), gone=added)
