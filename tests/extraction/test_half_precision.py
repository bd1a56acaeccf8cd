"""Networks in half precision: costs, features and logits are stored without loss, or an error says why not."""

import numpy as np
import pytest
import torch
from torch import nn

from skexit import ThresholdPolicy
from skexit.backbone import exit_costs, exit_points
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel

EXITS = ["first", "second"]
DTYPES = [torch.bfloat16, torch.float16]


class Network(nn.Module):
    """Two layers of maps, or of tokens, and a classifier after each."""

    def __init__(self, kind, scale=1.0):
        super().__init__()
        self.kind, self.scale = kind, scale
        make = (lambda n: nn.Conv2d(n, 6, 3, padding=1)) if kind == "maps" else (lambda n: nn.Linear(n, 6))
        self.first, self.second = make(3), make(6)
        self.classifiers = nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x):
        axes = (2, 3) if self.kind == "maps" else 1
        x = self.first(x * self.scale)
        early = self.classifiers[0]((x / self.scale).mean(axes))
        x = self.second((x / self.scale).relu())
        return [early, self.classifiers[1](x.mean(axes))]


def network_and_inputs(kind, dtype, **settings):
    torch.manual_seed(0)
    x = torch.randn((60, 3, 16, 16) if kind == "maps" else (60, 300, 3))
    return Network(kind, **settings).eval().to(dtype), x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_what_is_cached_and_run_live(kind, dtype, tmp_path):
    model, x = network_and_inputs(kind, dtype)
    cache = ExitExtractor(model, EXITS).extract(
        [(x[:30], torch.arange(30) % 3), (x[30:], torch.arange(30) % 3)], tmp_path
    )
    assert cache.stored_dtype == np.float32
    np.testing.assert_array_equal(cache.layout.costs, exit_costs(model.float(), EXITS, x[:1].float()).costs)
    assert exit_points(model.to(dtype), example_input=x[:1], n_exits=2)
    with torch.no_grad():
        logits = torch.stack(model(x), 1).float().numpy()
        maps = model.first(x).double()
    means = maps.mean((2, 3)) if kind == "maps" else maps.mean(1)
    start = 0 if kind == "maps" else 6  # after the first token
    np.testing.assert_allclose(cache.X.features(0)[:, start : start + 6], means, atol=1e-6)
    np.testing.assert_allclose(np.stack([cache.X.logits(k) for k in range(2)], 1), logits, atol=0.05)
    policy = ThresholdPolicy(budget=0.7).fit(cache.X, cache.y)
    live = EarlyExitModel(model, EXITS, policy, example_input=x[:2])
    assert np.mean(live(x).exits.numpy() == policy.predict_exit(cache.X)) >= 0.95


@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_sums_that_half_precision_does_not_have(kind, tmp_path):
    """The values fit into float16, and their averages, but not the sums of 256 and 300 of them."""
    model, x = network_and_inputs(kind, torch.float16, scale=1000.0)
    cache = ExitExtractor(model, EXITS, head=None).extract([x], tmp_path)
    with torch.no_grad():
        maps = model.first(x * 1000).double()
    means = maps.mean((2, 3)) if kind == "maps" else maps.mean(1)
    start = 0 if kind == "maps" else 6
    np.testing.assert_allclose(cache.X.features(0)[:, start : start + 6], means, rtol=1e-4, atol=1e-2)


def test_values_that_the_stored_type_does_not_have(tmp_path):
    model, x = network_and_inputs("maps", torch.bfloat16, scale=1e6)
    with pytest.raises(ValueError, match=r"exit0.features has values up to .* extract with dtype='float32'"):
        ExitExtractor(model, EXITS, head=None, dtype="float16").extract([x], tmp_path / "half")
    assert ExitExtractor(model, EXITS, head=None).extract([x], tmp_path / "single").n_rows == 60
