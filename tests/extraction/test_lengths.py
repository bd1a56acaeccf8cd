"""Costs of inputs of differing lengths and sizes: one input's, for all caches of an extractor."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import skexit.backbone._own_logits
import skexit.extraction._parts
from skexit import FeatureCache, merge_caches
from skexit.backbone import exit_costs
from skexit.extraction import ExitExtractor

EXITS = ["layers.0", "layers.1"]


class Encoder(nn.Module):
    """A transformer whose logits are those of the last token."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        self.classifier = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=attention_mask == 0)
        return self.classifier(hidden[:, 0])


class Convolutional(nn.Module):
    """Takes images of any size, or sounds of any length."""

    def __init__(self, kind):
        super().__init__()
        self.layers = nn.ModuleList([kind(1, 4, 3, padding=1), kind(4, 4, 3, padding=1)])
        self.classifier = nn.Linear(4, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.classifier(x.flatten(2).mean(2))


def texts(length):
    return {
        "input_ids": torch.ones(2, length, dtype=torch.long),
        "attention_mask": torch.ones(2, length, dtype=torch.long),
    }


KINDS = {
    "texts": (Encoder, texts),
    "images": (lambda: Convolutional(nn.Conv2d), lambda size: torch.ones(2, 1, size, size)),
    "sounds": (lambda: Convolutional(nn.Conv1d), lambda length: torch.ones(2, 1, length)),
}


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    make, inputs = KINDS[request.param]
    return make().eval(), inputs


def loader(inputs, *sizes):
    return [(inputs(size), torch.tensor([0, 1])) for size in sizes]


def test_caches_of_one_extractor_merge(kind, tmp_path):
    model, inputs = kind
    extractor = ExitExtractor(model, EXITS)
    first, second = loader(inputs, 8, 6), loader(inputs, 4, 8)
    caches = [extractor.extract(one, tmp_path / name) for name, one in (("first", first), ("second", second))]
    expected = exit_costs(model, EXITS, inputs(8)).costs
    for cache in caches:
        np.testing.assert_array_equal(cache.layout.costs, expected)
    merged = merge_caches([cache.path for cache in caches], tmp_path / "all")
    at_once = ExitExtractor(model, EXITS).extract(first + second, tmp_path / "at once")
    assert merged.layout == at_once.layout
    np.testing.assert_array_equal(np.asarray(merged.X), np.asarray(at_once.X))


def test_costs_of_a_stated_length(kind, tmp_path):
    model, inputs = kind
    for name, sizes in (("first", (8, 6)), ("second", (4, 8))):
        extractor = ExitExtractor(model, EXITS, example_input=inputs(5))
        cache = extractor.extract(loader(inputs, *sizes), tmp_path / name)
        np.testing.assert_array_equal(cache.layout.costs, exit_costs(model, EXITS, inputs(5)).costs)
    assert merge_caches([tmp_path / "first", tmp_path / "second"], tmp_path / "all").n_rows == 8


def test_what_differs_is_named_and_the_cure_works(kind, tmp_path):
    model, inputs = kind
    paths = [tmp_path / "first", tmp_path / "second"]
    costs = []
    for path, size in zip(paths, (8, 4), strict=True):
        costs.append(ExitExtractor(model, EXITS).extract(loader(inputs, size), path).layout.costs.tolist())
    with pytest.raises(ValueError, match=r"differ in costs of the layout .*example_input=x") as caught:
        merge_caches(paths, tmp_path / "all")
    assert f"costs of the layout ({costs[0]} and {costs[1]})" in str(caught.value)


def test_an_extraction_goes_on_with_the_costs_that_it_began_with(kind, tmp_path):
    model, inputs = kind
    stopping = (batch if batch is not None else 1 / 0 for batch in [*loader(inputs, 8, 6), None])
    with pytest.raises(ZeroDivisionError):
        ExitExtractor(model, EXITS).extract(stopping, tmp_path, shard_rows=2)
    with pytest.raises(ValueError, match=r"differs in costs of the layout \(\[.*\] and \[.*\]\)"):
        ExitExtractor(model, EXITS, example_input=inputs(4)).extract(loader(inputs, 8, 6, 5), tmp_path)
    assert FeatureCache(tmp_path, allow_partial=True).n_rows == 4
    cache = ExitExtractor(model, EXITS, example_input=inputs(8)).extract(loader(inputs, 8, 6, 5), tmp_path)
    np.testing.assert_array_equal(cache.layout.costs, exit_costs(model, EXITS, inputs(8)).costs)
    assert cache.n_rows == 6


def test_parts_of_several_workers_have_the_costs_of_the_first_row_of_all(kind, tmp_path, monkeypatch):
    model, inputs = kind
    rows = [(_row(inputs(size), number), 0) for size in (8, 6, 4, 5) for number in (0, 1)]
    batches = DataLoader(rows, batch_size=2)

    with monkeypatch.context() as patch:
        patch.setattr(skexit.extraction._parts, "_wait", lambda path: None)
        with pytest.raises(FileNotFoundError):
            ExitExtractor(model, EXITS).extract(batches, tmp_path, worker=(1, 2))
    cache = ExitExtractor(model, EXITS).extract(batches, tmp_path, worker=(0, 2))
    assert cache.n_rows == 8
    np.testing.assert_array_equal(cache.layout.costs, exit_costs(model, EXITS, inputs(8)).costs)


def _row(inputs, number):
    return {name: value[number] for name, value in inputs.items()} if isinstance(inputs, dict) else inputs[number]


def test_the_network_is_traced_once(kind, tmp_path, monkeypatch):
    model, inputs = kind
    traced = []
    trace = skexit.backbone._own_logits.trace
    monkeypatch.setattr(skexit.backbone._own_logits, "trace", lambda *args: traced.append(1) or trace(*args))
    extractor = ExitExtractor(model, EXITS)
    for name in ("first", "second", "first"):
        extractor.extract(loader(inputs, 8, 6), tmp_path / name)
    assert len(traced) == 1


def test_times_are_measured_once(kind, tmp_path):
    model, inputs = kind
    extractor = ExitExtractor(model, EXITS, cost_unit="ms")
    caches = [extractor.extract(loader(inputs, size), tmp_path / str(size)) for size in (8, 6)]
    assert merge_caches([cache.path for cache in caches], tmp_path / "all").layout == caches[0].layout
