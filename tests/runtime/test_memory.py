"""At its peak, the live network has one activation more in memory than the plain network."""

import tempfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from skexit import ThresholdPolicy
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel

EXITS = ["0", "1", "2", "3"]


def peak_memory(function, *args):
    """Bytes of tensors that a function had at its peak, beyond what was there before."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        function(*args)
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    return np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max()


def make_network():
    """Blocks whose activations are all of one size, so that the peak may be in any of them."""
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(4)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


def make_live(thresholds):
    torch.manual_seed(0)
    network, x = make_network(), torch.randn(64, 8, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        cache = ExitExtractor(network, EXITS).extract([(x, torch.arange(64) % 3)], folder, progress=False)
        policy = ThresholdPolicy(budget=0.6).fit(cache.X, cache.y)
        scores = policy.exit_scores(cache.X)
    policy.thresholds_[:-1] = np.median(scores, axis=0)[:-1] if thresholds == "median" else thresholds
    return EarlyExitModel(network, EXITS, policy, example_input=x[:1]), x


def test_tensors_are_counted():
    x = torch.zeros(1000, 1000)
    assert 8e6 <= peak_memory(lambda: (x + 1) * 2 + x) < 8.1e6


@pytest.mark.parametrize(
    ("thresholds", "n_exits_taken"), [("median", 4), (-1e3, 1), (1e3, 1), (np.inf, 1)],
    ids=["some leave", "all leave at once", "all stay", "no early exit"],
)  # fmt: skip
def test_one_activation_more(thresholds, n_exits_taken):
    live, x = make_live(thresholds)
    assert len(live(x).exits.unique()) == n_exits_taken
    activation = x.nbytes
    plain, peak = peak_memory(live.model, x), peak_memory(live, x)
    # What exits pool and answer is small.
    assert peak <= plain + 1.01 * activation
