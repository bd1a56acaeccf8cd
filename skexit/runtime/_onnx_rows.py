"""Stages that read the number of rows as a plain number, as graphs for any number of rows."""

from __future__ import annotations

import torch
from torch import fx, nn

from skexit.backbone._merging import Merging
from skexit.backbone._rows import with_rows

#: Numbers of rows of the two recordings that are merged.
_N_ROWS, _OTHER_N_ROWS = 3, 5


def with_open_rows(part: nn.Module, inputs: dict[str, torch.Tensor]) -> fx.GraphModule:
    """A part whose code has calls such as ``len(x)``, as a graph that leaves the number of rows open.

    All inputs have the samples along the first axis. Raises a ValueError if the operations themselves depend on the
    number of rows, or the error of torch if it cannot record the part.
    """
    graph, other = (_recorded(part, inputs, n_rows) for n_rows in (_N_ROWS, _OTHER_N_ROWS))
    Merging(graph.graph, other.graph, _N_ROWS, _OTHER_N_ROWS).merge()
    graph.recompile()
    return graph


def _recorded(part: nn.Module, inputs: dict[str, torch.Tensor], n_rows: int) -> fx.GraphModule:
    """The graph of a part for one number of rows, with its inputs before its weights."""
    given = {name: with_rows(tensor, n_rows) for name, tensor in inputs.items()}
    with torch.no_grad():
        recorded = torch.export.export(part, (given,), strict=False).run_decompositions({})
    module: fx.GraphModule = recorded.module(check_guards=False)
    for node in reversed(module.graph.find_nodes(op="placeholder")):
        next(iter(module.graph.nodes)).prepend(node)
    return module
