"""Heads named by exit, and binary networks with one logit: extraction, costs, live network and ONNX agree."""

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from torch import nn

from skexit import ExitHeads, ThresholdPolicy
from skexit.backbone import exit_costs
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx, measure_latency

EXITS = ["first", "second"]


class Network(nn.Module):
    """Two exits with heads of their own; the output is the last head's, or a list of both."""

    def __init__(self, n_outputs, shape="column"):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
        self.h1, self.h2 = nn.Linear(16, n_outputs), nn.Linear(16, n_outputs)
        self.shape = shape

    def forward(self, x):
        x = self.first(x)
        early = self.h1(x)
        late = self.h2(self.second(x.relu()))
        if self.shape == "list":
            return [early, late]
        return late.squeeze(-1) if self.shape == "vector" else late


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    x = torch.randn(300, 8)
    return x, (x[:, 0] + 0.5 * torch.randn(300) > 0).long()


HEADS = ["output", ["h1", "h2"], {"first": "h1", "second": "output"}]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["column", "vector", "list"])
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_one_logit(inputs, tmp_path, shape, head):
    x, y = inputs
    model = Network(1, shape)
    nn.init.normal_(model.h2.weight)  # a logit that is always between 0 and 1 looks like a probability
    cache = ExitExtractor(model, EXITS, head=head).extract([(x, y)], tmp_path / "cache")
    with torch.no_grad():
        z = model.h2(model.second(model.first(x).relu())).numpy()
    np.testing.assert_allclose(cache.X.logits(1), np.hstack([np.zeros_like(z), z]), rtol=1e-5, atol=1e-5)
    pipeline = make_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.7)).fit(cache.X, cache.y)
    live = EarlyExitModel(model, EXITS, pipeline, head=head, example_input=x[:1])
    output = live(x)
    np.testing.assert_array_equal(output.exits, pipeline[-1].predict_exit(pipeline[:-1].transform(cache.X)))
    np.testing.assert_allclose(output.probabilities, pipeline.predict_proba(cache.X), rtol=1e-5, atol=1e-5)
    session = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx"))
    np.testing.assert_array_equal(session.predict(x.numpy()).exits, output.exits)


def test_heads_by_name(inputs, tmp_path):
    x, y = inputs
    model = Network(3)
    for by_name, in_order in [
        ({"first": "h1"}, ["h1", None]),
        ({"second": "h2", "first": "h1"}, ["h1", "h2"]),
        ({"second": "output"}, [None, "output"]),
        ({}, None),
    ]:
        cache = ExitExtractor(model, EXITS, head=by_name).extract([(x, y)], tmp_path / str(in_order))
        assert [width > 0 for width in cache.layout.n_logits] == [name is not None for name in in_order or [None] * 2]
        assert exit_costs(model, EXITS, x, head=by_name).costs.tolist() == cache.layout.costs.tolist()
        if in_order is not None:  # the same cache
            ExitExtractor(model, EXITS, head=in_order).extract([(x, y)], tmp_path / str(in_order))
        pipeline = make_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.7)).fit(cache.X, cache.y)
        live = EarlyExitModel(model, EXITS, pipeline, head=by_name, example_input=x[:1])
        np.testing.assert_allclose(live(x).probabilities, pipeline.predict_proba(cache.X), rtol=1e-5, atol=1e-5)
    measure_latency(live, batch_sizes=(1,), example_input=x[:1], n_repeats=1)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"third": "h1"}, r"head has the key 'third', which is not an exit\..*exits=\['first', 'second'\]"),
        ({"h1": "first"}, "head has the key 'h1', which is not an exit"),
        ({"first": "h3"}, "head names 'h3', which the network does not have"),
    ],
)
def test_wrong_names(head, message):
    with pytest.raises(ValueError, match=message):
        ExitExtractor(Network(3), EXITS, head=head)
    with pytest.raises(ValueError, match=message):
        exit_costs(Network(3), EXITS, torch.zeros(1, 8), head=head)


def test_a_network_that_gives_probabilities_is_pointed_out(inputs, tmp_path):
    x, y = inputs
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3), nn.Softmax(dim=1))
    with pytest.warns(UserWarning, match=r"exit 1 is non-negative and sums to 1.*head="):
        ExitExtractor(model, ["0", "2"]).extract([(x, y)], tmp_path / "softmax")
    ExitExtractor(model, ["0", "1"], head={"1": "1"}).extract([(x, y)], tmp_path / "cured")


def test_a_network_that_masks_by_infinity_is_told_how(inputs, tmp_path):
    class Masked(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.first, self.second, self.value = nn.Linear(8, 16), nn.Linear(16, 3), value

        def forward(self, x):
            mask = torch.tensor([False, False, True])
            return self.second(self.first(x)).masked_fill(mask, self.value)

    x, y = inputs
    with pytest.raises(ValueError, match=r"logits of -inf in batch 0 .* large negative number such as -1e4"):
        ExitExtractor(Masked(-torch.inf), ["first", "second"]).extract([(x, y)], tmp_path / "inf")
    cache = ExitExtractor(Masked(-1e4), ["first", "second"], dtype="float16").extract([(x, y)], tmp_path / "cured")
    pipeline = make_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=1.0)).fit(cache.X, cache.y)
    assert (pipeline.predict(cache.X) < 2).all()
