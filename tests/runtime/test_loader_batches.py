"""Extraction and the live network take the same batches, and stop at the same exits."""

import numpy as np
import pytest
import torch
from torch import nn

from skexit import ExitHeads, ThresholdPolicy
from skexit.backbone import exit_points
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel

N = 60


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, hidden):
        return self.norm(hidden + self.linear(hidden).relu())


class Reader(nn.Module):
    """Reads tokens with one block again and again, and gives a loss where it is given labels."""

    def __init__(self):
        super().__init__()
        self.embedding, self.block, self.last = nn.Embedding(20, 8), Block(), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.embedding(input_ids)
        for _ in range(4):
            hidden = self.block(hidden)
        weight = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self.last((hidden * weight[..., None]).sum(1) / weight.sum(1, keepdim=True))
        return {"logits": logits} if labels is None else {"loss": logits.sum(), "logits": logits}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Reader().eval()


@pytest.fixture(scope="module")
def data(network):
    torch.manual_seed(0)
    mask = (torch.arange(6) < torch.randint(2, 7, (N, 1))).long()
    ids = torch.randint(1, 20, (N, 6))
    with torch.no_grad():
        logits = network(ids, mask)["logits"]
    return ids, mask, (logits[:, 1] - logits[:, 0] > (logits[:, 1] - logits[:, 0]).median()).long()


EXITS = ["block#0", "block#2", "block#3"]


def fitted(network, batch, folder):
    cache = ExitExtractor(network, EXITS).extract([batch], folder, progress=False)
    policy = ThresholdPolicy(budget=0.8, heads=ExitHeads(cv=2, random_state=0)).fit(cache.X, cache.y)
    return cache, policy


@pytest.fixture(scope="module")
def by_name(network, data, tmp_path_factory):
    ids, mask, y = data
    batch = {"attention_mask": mask, "labels": y, "input_ids": ids}
    return *fitted(network, batch, tmp_path_factory.mktemp("cache") / "cache"), batch


@pytest.mark.parametrize("order", [["input_ids", "attention_mask"], ["attention_mask", "input_ids", "labels"]])
def test_batches_by_name(network, by_name, order):
    cache, policy, batch = by_name
    given = {name: batch[name] for name in order}
    live = EarlyExitModel(network, EXITS, policy, example_input=given)
    for output in (live(**given), live(given), live(given["input_ids"], attention_mask=given["attention_mask"])):
        np.testing.assert_array_equal(output.exits, policy.predict_exit(cache.X))
    np.testing.assert_array_equal(live.predict_loader([batch]).exits, policy.predict_exit(cache.X))
    assert len(set(live(given).exits.tolist())) > 1


def test_batches_with_labels_before_the_network_is_divided(network, by_name):
    cache, policy, batch = by_name
    live = EarlyExitModel(network, EXITS, policy)
    np.testing.assert_array_equal(live(**batch).exits, policy.predict_exit(cache.X))
    without = {name: batch[name] for name in ("input_ids", "attention_mask")}
    np.testing.assert_array_equal(live(**without).exits, policy.predict_exit(cache.X))


def test_batches_by_position(network, data, by_name, tmp_path):
    """The mask is known by the parameter that it is passed for."""
    ids, mask, y = data
    cache, policy = fitted(network, (ids, mask, y), tmp_path / "cache")
    np.testing.assert_array_equal(cache.X, by_name[0].X)
    live = EarlyExitModel(network, EXITS, policy, example_input=(ids[:2], mask[:2]))
    np.testing.assert_array_equal(live(ids, mask).exits, policy.predict_exit(cache.X))
    np.testing.assert_array_equal(live((ids, mask)).exits, policy.predict_exit(cache.X))
    np.testing.assert_array_equal(live.predict_loader([(ids, mask, y)]).exits, policy.predict_exit(cache.X))


def test_all_inputs_by_position_count_as_data(network, data, tmp_path):
    ids, mask, y = data
    fitted(network, (ids, mask, y), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"the inputs of batch 0 differ from those|differs in first input"):
        fitted(network, (ids, mask.flip(1), y), tmp_path / "cache")


class TokensFirst(nn.Module):
    """Has its tokens along the first axis, its samples along the second, as torch's layers by default."""

    def __init__(self):
        super().__init__()
        self.embedding, self.last = nn.Embedding(20, 8), nn.Linear(8, 2)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(3))

    def forward(self, ids):
        hidden = self.embedding(ids).transpose(0, 1)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.last(hidden.mean(0))


@pytest.mark.parametrize("n_rows", [6, N])
def test_samples_along_the_second_axis(data, tmp_path, n_rows):
    """Also where there are as many samples in a batch as tokens."""
    torch.manual_seed(0)
    network, (ids, _, _) = TokensFirst().eval(), data
    hidden = []
    network.layers[0].register_forward_hook(lambda module, args, output: hidden.append(output))
    with torch.no_grad():
        logits = network(ids)[:, 0]
    y = (logits > logits.median()).long()
    exits = exit_points(network, example_input=ids, n_exits=3)
    assert exits == ["layers.0", "layers.1", "layers.2"]
    loader = list(zip(ids.split(n_rows), y.split(n_rows), strict=True))
    cache = ExitExtractor(network, exits).extract(loader, tmp_path / "cache", progress=False)
    expected = torch.cat([hidden[0][0], hidden[0].mean(0)], dim=1)
    np.testing.assert_allclose(cache.X.features(0), expected, rtol=1e-4, atol=1e-5)
    policy = ThresholdPolicy(budget=0.8, heads=ExitHeads(cv=2, random_state=0)).fit(cache.X, cache.y)
    live = EarlyExitModel(network, exits, policy, example_input=ids[:2])
    np.testing.assert_array_equal(live(ids).exits, policy.predict_exit(cache.X))


def test_exits_of_a_shared_block_are_found(network, data):
    ids, mask, _ = data
    found = exit_points(network, example_input={"attention_mask": mask, "input_ids": ids}, n_exits=3)
    assert set(found) <= {f"block#{k}" for k in range(4)}
    assert found[-1] == "block#3"
