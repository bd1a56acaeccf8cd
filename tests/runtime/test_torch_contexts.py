"""Extraction, live network and ONNX file work in any context of torch, where the network itself does."""

import numpy as np
import pytest
import torch
from torch import nn
from torch_contexts import CONTEXTS

from skexit import ExitHeads, OptimalStoppingPolicy, make_exit_pipeline
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx, measure_latency

EXITS = ["0", "2"]


def make_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    inputs = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    return network, inputs, (inputs[:, :3] + torch.linspace(0, 1, 120)[:, None]).argmax(1)


def answers(network, inputs, y, folder):
    loader = [(inputs[:70], y[:70]), (inputs[70:], y[70:])]
    cache = ExitExtractor(network, EXITS).extract(loader, folder / "cache", progress=False)
    pipeline = make_exit_pipeline(ExitHeads((4,), max_epochs=2, random_state=0), OptimalStoppingPolicy(0.95))
    pipeline.fit(cache.X, cache.y)
    live = EarlyExitModel(network, EXITS, pipeline, example_input=inputs[:1])
    exported = OnnxEarlyExit(export_onnx(live, folder / "network.onnx"))
    at_once, by_batches = live(inputs), live.predict_loader([inputs[:50], inputs[50:]])
    assert measure_latency(live, batch_sizes=[1], example_input=inputs[:1], n_repeats=1).batch_sizes.tolist() == [1]
    return [
        np.asarray(exits)
        for exits in (
            pipeline.predict_exit(cache.X),
            at_once.exits,
            by_batches.exits,
            exported.predict(inputs.numpy()).exits,
        )
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no_grad", "inference_mode", "autocast", "default device"])
def test_any_context(name, tmp_path):
    network, inputs, y = make_network()
    with CONTEXTS[name]():
        on_cache, *found = answers(network, inputs, y, tmp_path)
    assert len(np.unique(on_cache)) > 1
    for exits in found:
        # Half precision, in autocast, rounds otherwise for other numbers of rows.
        assert np.mean(exits == on_cache) > 0.97
