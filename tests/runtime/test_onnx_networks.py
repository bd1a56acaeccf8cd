"""Networks whose ONNX files need care: sizes without names, numbers of rows as plain integers."""

import numpy as np
import pytest
import torch
from torch import nn

from skexit import ExitHeads, ThresholdPolicy, make_exit_pipeline
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

N_CLASSES = 3


class Blocks(nn.Module):
    """Blocks of a kind, and a classifier."""

    def __init__(self, make_block, n_blocks=3):
        super().__init__()
        self.blocks = nn.ModuleList(make_block() for _ in range(n_blocks))
        self.classifier = nn.Linear(8, N_CLASSES)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


def make_live(network, x, folder, **options):
    exits, y = [f"blocks.{k}" for k in range(len(network.blocks))], torch.arange(len(x)) % N_CLASSES
    cache = ExitExtractor(network, exits, **options).extract([(x, y)], folder, progress=False)
    policy = make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.8)).fit(cache.X, cache.y)
    return EarlyExitModel(network.eval(), exits, policy, example_input=x[:2], **options)


def rows(n_rows=60, generator=None):
    torch.manual_seed(0)
    return torch.randn(n_rows, 8) + (torch.arange(n_rows) % N_CLASSES)[:, None]


def assert_same(path, live, x):
    session = OnnxEarlyExit(path)
    for part in (x, x[:1], x[:7]):
        expected, found = live(part), session.predict(part.numpy())
        np.testing.assert_array_equal(found.exits, expected.exits)
        np.testing.assert_array_equal(found.labels, expected.labels)


class ChangesParts(nn.Module):
    """Changes every second column in place, as scans over a sequence do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        x = self.linear(x).clone()
        for step in (2, 4):
            x[:, step - 1 :: step] += x[:, step // 2 - 1 :: step]
        return x.tanh()


def test_sizes_without_a_name_stay_without(tmp_path):
    """onnxruntime takes sizes of one name for equal, and lets values of these sizes share memory."""
    x = rows()
    live = make_live(Blocks(ChangesParts), x, tmp_path / "cache")
    path = export_onnx(live, tmp_path / "network.onnx")
    graph = ir.load(path).graph
    shapes = [value.shape for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs]
    named = {size.value for shape in shapes if shape is not None for size in shape if isinstance(size, ir.SymbolicDim)}
    assert not [name for name in named if name is not None and name.endswith("None")]
    assert_same(path, live, x)
