import threading
import time

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock

from skexit.backbone import exit_costs

BATCH, LENGTH, WIDTH, HIDDEN = 3, 10, 32, 48


def macs_of_attention(length, width):
    """Four projections, scores, and weighted values."""
    return 4 * length * width**2 + 2 * length**2 * width


def macs_of_transformer_layer(length, width, hidden):
    return macs_of_attention(length, width) + 2 * length * width * hidden


class Wrapped(nn.Module):
    """A module as the only exit of a network whose other operations cost nothing."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        return self.block(*args, **kwargs)


def macs(block, example_input):
    return exit_costs(Wrapped(block), ["block"], example_input, unit="MACs", head=None).costs.tolist()


def test_a_basic_block_by_hand():
    block = BasicBlock(16, 32, stride=2, downsample=nn.Conv2d(16, 32, 1, stride=2, bias=False))
    height = width = 5
    expected = height * width * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    assert macs(block, torch.zeros(BATCH, 16, 10, 10)) == [expected]


def test_grouped_convolution_by_hand():
    assert macs(nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.zeros(2, 8, 6, 6)) == [6 * 6 * 8 * 9]


@pytest.mark.parametrize("unit", ["MACs", "FLOPs"])
def test_resnet18(unit):
    with torch.device("meta"):
        model = resnet18(weights=None)
    exits = ["layer1", "layer2", "layer3", "layer4"]
    costs = exit_costs(model, exits, torch.zeros(2, 3, 224, 224, device="meta"), unit).costs
    stem = 112**2 * 64 * 3 * 49
    layer1 = 4 * 56**2 * 9 * 64**2
    # Each later layer halves the sides and doubles the channels: all but the first convolution and
    # the projection cost what a convolution of layer 1 does.
    convolution = 56**2 * 9 * 64**2
    later = convolution // 2 + 3 * convolution + 28**2 * 64 * 128
    expected = np.cumsum([stem + layer1, later, later, later])
    expected[-1] += 512 * 1000
    np.testing.assert_array_equal(costs, expected * {"MACs": 1, "FLOPs": 2}[unit])
    network = exit_costs(model, exits[:2], torch.zeros(2, 3, 224, 224, device="meta"), unit, head=None).network
    assert network == costs[-1]
    if unit == "MACs":
        assert round(costs[-1] / 1e9, 3) == 1.814


class ScaledDotProduct(nn.Module):
    def forward(self, query, keys):
        return functional.scaled_dot_product_attention(query, keys, keys)


class SelfAttention(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.settings = settings

    def forward(self, x):
        return self.attention(x, x, x, **self.settings)[0]


class LooksAtValues(nn.Module):
    """Cannot run on the meta device."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x) if x.sum() < 1e6 else x


@pytest.mark.parametrize("wrap", [nn.Sequential, LooksAtValues])
@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (SelfAttention(need_weights=False), macs_of_attention(LENGTH, WIDTH)),
        (SelfAttention(need_weights=True), macs_of_attention(LENGTH, WIDTH)),
        (
            nn.TransformerEncoderLayer(WIDTH, 4, HIDDEN, batch_first=True),
            macs_of_transformer_layer(LENGTH, WIDTH, HIDDEN),
        ),
        (nn.LSTM(WIDTH, HIDDEN, batch_first=True), LENGTH * 4 * HIDDEN * (WIDTH + HIDDEN)),
        (nn.GRU(WIDTH, HIDDEN, batch_first=True), LENGTH * 3 * HIDDEN * (WIDTH + HIDDEN)),
    ],
    ids=["attention", "attention with weights", "transformer layer", "LSTM", "GRU"],
)
def test_sequences_by_hand_on_the_meta_device_and_off_it(block, expected, wrap):
    assert macs(wrap(block), torch.zeros(BATCH, LENGTH, WIDTH)) == [expected]
    assert torch.backends.mha.get_fastpath_enabled()


def test_scaled_dot_product_attention_by_hand():
    query, keys = torch.zeros(BATCH, 4, 5, 8), torch.zeros(BATCH, 4, LENGTH, 8)
    assert macs(ScaledDotProduct(), (query, keys)) == [2 * 4 * 5 * LENGTH * 8]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("n_padded", [0, 4])
def test_bert_by_hand(attention, n_padded):
    config = transformers.BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=HIDDEN,
        vocab_size=50,
        num_labels=5,
        attn_implementation=attention,
    )
    model = transformers.BertForSequenceClassification(config)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[:, LENGTH - n_padded :] = 0
    tokens = {"input_ids": torch.ones(BATCH, LENGTH, dtype=torch.long), "attention_mask": mask}
    exits = [f"bert.encoder.layer.{i}" for i in range(3)]
    layer = macs_of_transformer_layer(LENGTH, WIDTH, HIDDEN)
    pooler_and_classifier = WIDTH**2 + 5 * WIDTH
    costs = exit_costs(model, exits, tokens, "MACs").costs
    assert costs.tolist() == [layer, 2 * layer, 3 * layer + pooler_and_classifier]


class MultiExit(nn.Module):
    """Three stages with heads of their own, evaluated after each stage or all at the end."""

    def __init__(self, heads_last):
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, n_classes) for n_classes in (5, 7, 9))
        self.heads_last = heads_last

    def forward(self, x):
        states = []
        for k, stage in enumerate(self.stages):
            x = stage(x)
            states.append(x)
            if not self.heads_last:
                self.heads[k](x)
        return [head(state) for head, state in zip(self.heads, states, strict=True)] if self.heads_last else x


@pytest.mark.parametrize("heads_last", [False, True])
def test_own_heads_count_at_their_exit_wherever_they_are_computed(heads_last):
    model, exits = MultiExit(heads_last), ["stages.0", "stages.1", "stages.2"]
    stage = WIDTH**2
    all_heads = exit_costs(model, exits, torch.zeros(4, WIDTH), "MACs", head=["heads.0", "heads.1", "heads.2"])
    assert all_heads.costs.tolist() == [stage + 5 * WIDTH, 2 * stage + 12 * WIDTH, 3 * stage + 21 * WIDTH]
    some_heads = exit_costs(model, exits, torch.zeros(4, WIDTH), "MACs", head=["heads.0", None, "heads.2"])
    between = 0 if heads_last else 7 * WIDTH  # the network computes a head that is no exit's on its way
    assert some_heads.costs.tolist() == [stage + 5 * WIDTH, 2 * stage + 5 * WIDTH, 3 * stage + 14 * WIDTH + between]


def test_an_exit_that_is_its_own_head():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    assert exit_costs(model, ["0", "1"], torch.zeros(1, 8), "MACs", head=[None, "1"]).costs.tolist() == [64, 96]


def test_without_a_head_the_classifier_costs_nothing():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 100))
    assert exit_costs(model, ["0", "1"], torch.zeros(1, 8), "MACs", head=None).costs.tolist() == [64, 96]
    assert exit_costs(model, ["0", "1"], torch.zeros(1, 8), "MACs").costs.tolist() == [64, 496]


def test_tied_weights_count_each_time():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    assert exit_costs(model, ["0", "1"], torch.zeros(1, 8), "MACs").costs.tolist() == [64, 128]


def test_milliseconds_increase_and_have_a_spread():
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
    measured = exit_costs(model, ["0", "1", "2", "3"], torch.zeros(32, 256), unit="ms", n_repeats=7)
    assert measured.unit == "ms"
    assert (np.diff(measured.costs) > 0).all()
    assert measured.costs[0] > 0
    assert measured.spread.shape == (4,)
    assert (measured.spread >= 0).all()
    assert exit_costs(model, ["0"], torch.zeros(1, 256)).spread is None


class Stateful(nn.Module):
    def __init__(self, fails=False):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.last = nn.Linear(4, 2)
        self.n_calls = 0
        self.cached = None
        self.tables, self.seen, self.widths = {}, [], set()
        self.fails = fails

    def forward(self, x):
        if not self.n_calls:
            self.register_load_state_dict_pre_hook(lambda *_: None)
            for module in (self, *self.children()):
                module.register_forward_hook(lambda *_: None)
                module.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
        self.n_calls += 1
        self.tables[len(x)] = x
        self.seen.append(x)
        self.widths.add(x.shape[1])
        self.cached = torch.zeros(1, device=x.device)
        x = self.first(x) + torch.rand_like(x)
        if self.fails:
            raise RuntimeError("it failed")
        return self.last(x)


@pytest.mark.parametrize("unit", ["FLOPs", "ms"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_found(unit, fails):
    model = Stateful(fails)
    model.train()
    model.first[1].eval()
    weights = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="it failed"):
            exit_costs(model, ["first"], torch.ones(3, 4), unit)
    else:
        exit_costs(model, ["first"], torch.ones(3, 4), unit, n_repeats=2)
    assert [module.training for module in model.modules()] == modes
    assert (model.n_calls, model.cached, model.tables, model.seen, model.widths) == (0, None, {}, [], set())
    hooks = [vars(module)[name] for module in model.modules() for name in vars(nn.Module()) if name.endswith("_hooks")]
    assert hooks
    assert not any(hooks)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is weights[name][0]
        torch.testing.assert_close(tensor.detach(), weights[name][1].detach())
        assert tensor.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)


def linear_chain():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())


class CallsTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


@pytest.mark.parametrize(
    ("model", "exits", "settings", "message"),
    [
        (linear_chain(), ["2", "0"], {}, r"not in forward order; the network calls \['0', '2'\]"),
        (linear_chain(), ["0", "1", "2"], {}, "'0' costs 16 MACs and the next exit, '1', 16.*drop one"),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), ["0", "1"], {}, "'0' is reached after 0 MACs"),
        (linear_chain(), ["0", "4"], {}, "'4', which the network does not have. The nearest names are"),
        (linear_chain(), ["0", "0"], {}, "more than once"),
        (linear_chain(), [], {}, "at least one module name"),
        (linear_chain(), "0", {}, "list of at least one"),
        (linear_chain(), ["0"], {"unit": "watt"}, r"unit='watt' must be one of \['FLOPs', 'MACs', 'ms'\]"),
        (linear_chain(), ["0"], {"unit": "ms", "n_repeats": 0}, "n_repeats=0 must be at least 1"),
        (linear_chain(), ["0", "2"], {"head": ["2"]}, "for each of 2 exits"),
        (linear_chain(), ["0"], {"head": "2"}, "head='2' must be"),
        (linear_chain(), ["0", "2"], {"head": [None, "head"]}, "head names 'head'"),
        (CallsTwice(), ["layer"], {}, "'layer', which the forward pass calls 2 times"),
        (CallsTwice(), ["unused"], {}, "'unused', which the forward pass calls 0 times"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, exits, settings, message):
    with pytest.raises(ValueError, match=message):
        exit_costs(model, exits, torch.zeros(1, 4), **({"unit": "MACs"} | settings))


class WaitsForTheOther(nn.Module):
    """Two threads count at once: the second starts while the first counts, and ends after it."""

    def __init__(self):
        super().__init__()
        self.block = nn.Linear(4, 2)
        self.started, self.ended = threading.Event(), threading.Event()

    def forward(self, x):
        if threading.current_thread().name == "first":
            self.started.wait(0.5)
        else:
            self.started.set()
            self.ended.wait(0.5)
        return self.block(x)


def test_threads_that_count_leave_the_settings_of_torch_as_found():
    network, inputs = WaitsForTheOther(), torch.zeros(1, 4)

    def count():
        exit_costs(network, ["block"], inputs, head=None)
        network.ended.set()

    threads = [threading.Thread(target=count, name=name) for name in ("first", "second")]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cudnn.enabled


class TwoStreams(nn.Module):
    """Features of two sizes, both of which later blocks need, and a classifier after each block."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.fine_blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.coarse_blocks = nn.ModuleList(nn.Conv2d(12, 8, 3, padding=1) for _ in range(3))
        self.classifiers = nn.ModuleList(nn.Linear(8, 5) for _ in range(3))

    def forward(self, x):
        fine, coarse, logits = self.fine(x), self.coarse(x), []
        for fine_block, coarse_block, classifier in zip(
            self.fine_blocks, self.coarse_blocks, self.classifiers, strict=True
        ):
            fine = fine_block(fine).relu()
            coarse = coarse_block(torch.cat([coarse, nn.functional.avg_pool2d(fine, 2)], dim=1)).relu()
            logits.append(classifier(coarse.mean((2, 3))))
        return logits


def macs_until(model, x, exits):
    """Multiply-adds of convolutions and linear layers until each exit is computed, of one sample, by hooks."""
    total, at_exit, hooks = [0], {}, []

    def count(module, args, output):
        per_position = (
            module.weight.numel() if isinstance(module, nn.Conv2d) else module.weight.numel() / len(output[0])
        )
        total[0] += per_position * (output[0, 0].numel() if isinstance(module, nn.Conv2d) else len(output[0]))

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(module.register_forward_hook(count))
        if name in exits:
            hooks.append(module.register_forward_hook(lambda *_, name=name: at_exit.update({name: total[0]})))
    model(x)
    for hook in hooks:
        hook.remove()
    return np.array([at_exit[name] for name in exits])


@pytest.mark.parametrize("place", ["coarse_blocks", "classifiers"])
def test_two_streams_and_classifiers_are_counted(place):
    model, x = TwoStreams().eval(), torch.randn(2, 3, 16, 16)
    exits = [f"{place}.{k}" for k in range(3)]
    costs = exit_costs(model, exits, x, unit="MACs").costs
    # An exit at a block also answers, so that its classifier counts; earlier classifiers need not run.
    linear = 8 * 5
    expected = macs_until(model, x, [f"classifiers.{k}" for k in range(3)]) - linear * np.arange(3)
    np.testing.assert_allclose(costs, expected, rtol=0.03)
