"""Networks that cannot stop row by row as they are: errors say why, and the cure works."""

import numpy as np
import pytest
import torch
from torch import nn

from skexit import ExitHeads, ThresholdPolicy, make_exit_pipeline
from skexit.backbone import exit_points
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel

EXITS = ["blocks.0", "blocks.1"]
Y = torch.arange(60) % 3


class Network(nn.Module):
    def __init__(self, first=None):
        super().__init__()
        self.first = nn.Identity() if first is None else first
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2))
        self.classifier = nn.Linear(8, 3)

    def forward(self, *inputs):
        x = self.first(*inputs)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


def extract(network, inputs, folder):
    return ExitExtractor(network, EXITS).extract([(*inputs, Y)], folder, progress=False)


def make_live(network, inputs, folder):
    cache = extract(network, inputs, folder)
    pipeline = make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=1.0)).fit(cache.X, cache.y)
    example = tuple(tensor[:2] for tensor in inputs)
    return cache, pipeline, EarlyExitModel(network.eval(), EXITS, pipeline, example_input=example)


def assert_agrees(network, inputs, folder):
    cache, pipeline, live = make_live(network, inputs, folder)
    np.testing.assert_array_equal(live(*inputs).exits, pipeline.predict_exit(cache.X))


class AlwaysTraining(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(True)


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm1d(8, track_running_stats=False), lambda: AlwaysTraining(8)])
def test_statistics_of_the_batch(norm, tmp_path):
    torch.manual_seed(0)
    inputs = (torch.randn(60, 8),)
    message = r"^'first' normalizes by the mean of the batch, .* \(track_running_stats=True\), and let model\.eval\(\)"
    network = Network(norm())
    with pytest.raises(ValueError, match=message):
        extract(network, inputs, tmp_path / "wrong")
    _, pipeline, _ = make_live(Network(nn.BatchNorm1d(8)), inputs, tmp_path / "cured")
    with pytest.raises(ValueError, match=message):
        EarlyExitModel(network.eval(), EXITS, pipeline, example_input=inputs[0])
    assert_agrees(Network(nn.BatchNorm1d(8)), inputs, tmp_path / "again")


class Packs(nn.Module):
    """Packs sequences and runs a recurrent layer over them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (states, _) = self.layer(packed)
        return states[-1]


class PacksItself(Network):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return super().forward(self.layer(packed)[1][0][-1])


def test_packed_sequences_between_modules(tmp_path):
    torch.manual_seed(0)
    inputs = (torch.randn(60, 5, 8), torch.arange(60) % 5 + 1)
    message = r"line \d+ of test_networks_that_cannot\.py, .*'layer' takes or gives a PackedSequence, which must stay within one"
    with pytest.raises(ValueError, match=message):
        make_live(PacksItself(), inputs, tmp_path / "wrong")
    assert_agrees(Network(Packs()), inputs, tmp_path / "cured")


def test_random_numbers_in_evaluation_mode(tmp_path):
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    with pytest.raises(ValueError, match="or the network draws random numbers"):
        make_live(Network(Noise()), (torch.randn(60, 8),), tmp_path / "cache")


def test_tensors_that_pass_through_numpy():
    class ThroughNumpy(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.detach().numpy() * 2)

    with pytest.raises(ValueError, match="do not convert tensors to NumPy and back"):
        exit_points(Network(ThroughNumpy()), example_input=torch.randn(2, 8))


def test_a_module_within_a_module_may_read_values(tmp_path):
    """torch cannot run the inner module on shapes only; its error must not disturb the rest of the recording."""

    class Reads(nn.Module):
        def forward(self, x):
            return x / max(float(x.abs().max()), 1.0) * 0 + x

    class Outer(nn.Sequential):
        pass

    torch.manual_seed(0)
    assert_agrees(Network(Outer(nn.Linear(8, 8), Outer(Reads()))), (torch.randn(60, 8),), tmp_path / "cache")


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_layers(tmp_path):
    torch.manual_seed(0)
    network, inputs = Network().eval(), (torch.randn(60, 8),)
    quantized = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    message = r"'blocks\.0\.0' is quantized by torch\.ao, .* Extract with the network before its quantization"
    with pytest.raises(ValueError, match=message):
        make_live(quantized, inputs, tmp_path / "wrong")
    assert_agrees(network, inputs, tmp_path / "cured")
