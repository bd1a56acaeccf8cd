"""Stages and the decisions after them, compiled by torch.compile for a few batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from skexit.backbone._rows import select_rows
from skexit.backbone._stages import Stage
from skexit.runtime._batch import Batch
from skexit.runtime._runner import StageRunner, read_exit
from skexit.utils._checks import is_integer


class PaddedNetwork(nn.Module):
    """A network that is compiled for a few batch sizes, which are in ascending order.

    A batch is padded to the next size by repeating its last row. A batch larger than the largest size is divided. Each
    row of the outputs must therefore depend on the same row of the inputs only. Outputs may share memory with inputs,
    and the network may change its inputs in place.
    """

    def __init__(self, network: nn.Module, sizes: Sequence[int], options: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self._sizes = sizes
        self._compiled = torch.compile(network, dynamic=False, **options)
        self._layouts: dict[int, list[tuple[Any, ...]]] = {}

    def forward(self, *tensors: torch.Tensor) -> Any:
        """The outputs of the network, for any number of rows."""
        n_rows, largest = len(tensors[0]), self._sizes[-1]
        parts = [
            self._compute_part(tensors, range(n_rows)[start : start + largest]) for start in range(0, n_rows, largest)
        ]
        if len(parts) == 1:
            return parts[0]
        return pytree.tree_map(lambda *outputs: torch.cat(outputs), *parts)

    def _compute_part(self, tensors: Sequence[torch.Tensor], rows: range) -> Any:
        size = next(size for size in self._sizes if size >= len(rows))
        outputs = self._compiled(*self._padded(tensors, rows, size))
        if tensors[0].is_cuda:  # with CUDA graphs, the next run writes to the same memory
            return pytree.tree_map(lambda output: output[: len(rows)].clone(), outputs)
        return outputs if len(rows) == size else pytree.tree_map(lambda output: output[: len(rows)], outputs)

    def _padded(self, tensors: Sequence[torch.Tensor], rows: range, size: int) -> Sequence[torch.Tensor]:
        # torch.compile compiles again if strides or inference mode differ. Copies always have the same ones.
        if len(tensors[0]) == size and self._layouts.get(size) == _layouts(tensors):
            return tensors
        padded = torch.arange(rows.start, rows.start + size, device=tensors[0].device).clamp_(max=rows[-1])
        copies = select_rows(list(tensors), padded)
        self._layouts.setdefault(size, _layouts(copies))
        return copies


def _layouts(tensors: Sequence[torch.Tensor]) -> list[tuple[Any, ...]]:
    return [(tensor.stride(), tensor.is_inference()) for tensor in tensors]


class CompiledExit:
    """A stage with the decision after it as one compiled graph."""

    def __init__(self, runner: StageRunner, k: int, sizes: Sequence[int], options: dict[str, Any]) -> None:
        recorded = runner.decisions.recorded[k]
        self._flat = recorded.flat
        stage = PlainStage(runner, k)
        network = _with_own_code(_StageAndDecision(stage, recorded.graph()), stage.n_inputs + recorded.flat.n_notes)
        self._network = PaddedNetwork(network, sizes, options)

    def __call__(self, batch: Batch) -> tuple[Batch, torch.Tensor, torch.Tensor | None]:
        """The batch after the stage, the logits of predictions, and a mask of the samples that leave."""
        inputs = [*batch.tensors, *batch.side, *self._flat.noted(batch.notes)]
        batch.tensors.clear()
        outputs = self._network(*inputs)
        n_tensors = len(outputs) - self._flat.n_outputs
        batch.tensors = list(outputs[:n_tensors])
        return (batch, *self._flat.unpack(outputs[n_tensors:], batch.notes))


class PlainStage(nn.Module):
    """The network from one exit to the next, and `read_exit`, without compiled parts.

    The inputs are the outputs of the stage before and the side inputs. The outputs are the tensors for the next stage,
    and what `read_exit` returns.
    """

    def __init__(self, runner: StageRunner, k: int) -> None:
        super().__init__()
        self.network: fx.GraphModule = plain_network(runner.stages[k].network)
        self.head: nn.Module | None = plain_network(runner.own_head(k))
        self._pool, self._mask = runner.pool_at(k), runner.mask
        first = next(iter(runner.stages.values()))
        self.n_side = len(placeholders(plain_network(first.network))) - 1
        self.n_inputs = len(placeholders(self.network))

    def forward(self, *inputs: torch.Tensor) -> tuple[Sequence[torch.Tensor], Any, Any]:
        tensors = self.network(*inputs)
        side = inputs[len(inputs) - self.n_side :]
        return (tensors, *read_exit(tensors, side, self._pool, self.head, self._mask))


class _StageAndDecision(nn.Module):
    def __init__(self, stage: PlainStage, decision: nn.Module) -> None:
        super().__init__()
        self.stage, self.decision = stage, decision

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        tensors, *read = self.stage(*inputs[: self.stage.n_inputs])
        notes = inputs[self.stage.n_inputs :]
        return [*tensors, *self.decision(*(part for part in read if part is not None), *notes)]


def _with_own_code(network: nn.Module, n_inputs: int) -> fx.GraphModule:
    """The network with a separate forward function, because torch limits how often one function is compiled."""
    graph = fx.Graph()
    inputs = tuple(graph.placeholder(f"input{i}") for i in range(n_inputs))
    graph.output(graph.call_module("network", inputs))
    return fx.GraphModule({"network": network}, graph)


def placeholders(network: fx.GraphModule) -> list[fx.Node]:
    """The input nodes of a stage's network."""
    return list(network.graph.find_nodes(op="placeholder"))


def compile_stage(stage: Stage, sizes: Sequence[int], options: dict[str, Any]) -> Stage:
    """A stage with compiled networks. `sizes` are batch sizes in ascending order, `options` those of torch.compile."""
    head = None if stage.logits is None else PaddedNetwork(plain_network(stage.logits), sizes, options)
    return Stage(PaddedNetwork(plain_network(stage.network), sizes, options), head)


def plain_network(network: Any) -> Any:
    """The network of a stage without the compilation."""
    return network.network if isinstance(network, PaddedNetwork) else network


def compile_exits(runner: StageRunner, sizes: Sequence[int], options: dict[str, Any]) -> dict[int, CompiledExit]:
    """Compiled stages with the decisions after them, for each exit whose decision torch can record."""
    recorded = runner.decisions.recorded
    exits = [k for k in runner.stages if recorded.get(k) is not None and not runner.decisions.of_features]
    return {k: CompiledExit(runner, k, sizes, options) for k in exits}


def check_sizes(pad_to: Sequence[int]) -> list[int]:
    """The batch sizes in ascending order; a ValueError if there is none, or one is not a positive integer."""
    sizes = sorted(set(pad_to))
    if not sizes or not all(is_integer(size) and size >= 1 for size in sizes):
        raise ValueError(f"pad_to={pad_to!r} must be a sequence of one or more positive integers, the batch sizes.")
    return sizes
