"""Networks that switch settings of torch in their own code, or whose modules are compiled."""

import numpy as np
import pytest
import torch
from torch import nn

from skexit import ExitHeads, ThresholdPolicy, make_exit_pipeline
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, export_onnx

EXITS = [f"blocks.{k}" for k in range(4)]
LOW = {"device_type": "cpu", "dtype": torch.bfloat16}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4))
        self.classifier = nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


class Autocast(Network):
    def forward(self, x):
        with torch.autocast(**LOW):
            return super().forward(x)


class DecoratedWithAutocast(Network):
    @torch.autocast(**LOW)
    def forward(self, x):
        return super().forward(x)


class AutocastOfAPart(Network):
    """The first half is in low precision, with an operation between two modules; the second half is not."""

    def forward(self, x):
        with torch.autocast(**LOW):
            for block in self.blocks[:2]:
                x = block(x) @ torch.eye(8)
        with torch.autocast("cpu", enabled=False):
            x = x.float()
            for block in self.blocks[2:]:
                x = block(x)
            return self.classifier(x)


class WithoutAutocastOfGpus(Network):
    def forward(self, x):
        with torch.autocast("cuda", enabled=False):
            return super().forward(x)


class BlocksOfGradients(Network):
    def forward(self, x):
        with torch.enable_grad():
            x = self.blocks[1](self.blocks[0](x))
        with torch.no_grad():
            x = self.blocks[2](x)
        with torch.set_grad_enabled(True):
            return self.classifier(self.blocks[3](x))


class CompiledBlock(Network):
    def __init__(self):
        super().__init__()
        self.blocks[1] = torch.compile(self.blocks[1], backend="eager")


class ForwardOfTheInstance(Network):
    def __init__(self):
        super().__init__()
        block, layer = nn.Module(), nn.Linear(8, 8)
        block.layer, block.forward = layer, lambda x: layer(x).tanh()
        self.blocks[1] = block


KINDS = [
    Autocast,
    DecoratedWithAutocast,
    AutocastOfAPart,
    WithoutAutocastOfGpus,
    BlocksOfGradients,
    CompiledBlock,
    ForwardOfTheInstance,
]


def make(kind, folder):
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    network, x = kind().eval(), torch.randn(60, 8) + y[:, None]
    cache = ExitExtractor(network, EXITS).extract([(x, y)], folder, progress=False)
    pipeline = make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.8)).fit(cache.X, cache.y)
    return network, x, cache, pipeline


@pytest.mark.parametrize("kind", KINDS)
def test_the_live_network_answers_as_the_cache(kind, tmp_path):
    network, x, cache, pipeline = make(kind, tmp_path / "cache")
    with torch.no_grad():
        np.testing.assert_allclose(cache.X.logits(3), network(x).float(), atol=1e-5)
    output = EarlyExitModel(network, EXITS, pipeline, example_input=x[:2])(x)
    np.testing.assert_array_equal(output.exits, pipeline.predict_exit(cache.X))
    np.testing.assert_array_equal(output.labels, pipeline.predict(cache.X))


def test_autocast_around_extraction_and_live_network(tmp_path):
    with torch.autocast(**LOW):
        network, x, cache, pipeline = make(Network, tmp_path / "cache")
        output = EarlyExitModel(network, EXITS, pipeline, example_input=x[:2])(x)
    np.testing.assert_array_equal(output.exits, pipeline.predict_exit(cache.X))


@pytest.mark.slow
def test_autocast_to_bfloat16_has_no_onnx_file(tmp_path):
    pytest.importorskip("onnxruntime")
    network, x, _, pipeline = make(Autocast, tmp_path / "cache")
    live = EarlyExitModel(network, EXITS, pipeline, example_input=x[:2])
    with pytest.raises(
        ValueError, match=r"the type torch\.bfloat16, .* to float32 or float16, and leave out torch\.autocast"
    ):
        export_onnx(live, tmp_path / "network.onnx")
