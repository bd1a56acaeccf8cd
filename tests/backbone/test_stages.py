"""Networks of many kinds, divided at their exits without being rewritten."""

import pytest
import torch
from torch import nn

from skexit.backbone._exit_points import exit_points
from skexit.backbone._own_logits import own_logits_or_none
from skexit.backbone._probe import check_against_plain_network
from skexit.backbone._stages import RecordedNetwork


def divide(model, exits, example_input, head="output"):
    """The stages between all of the exits."""
    return list(RecordedNetwork(model, exits, example_input, head).divide(range(len(exits))).values())


def check_stages(model, exits, stages, inputs):
    """Against the network, with the logits of all exits that its output has."""
    own = own_logits_or_none(model, ["output"], exits, inputs)
    check_against_plain_network(model, exits, stages, own, inputs)


def run_stages(stages, *inputs):
    first, *side = inputs
    tensors = [first]
    with torch.inference_mode():
        for stage in stages:
            tensors = stage.network(*tensors, *side)
        return tensors[0] if stages[-1].logits is None else stages[-1].logits(*tensors, *side)


VISION = ["resnet18", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16"]


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
def test_torchvision(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    size = {"image_size": 64} if name == "vit_b_16" else {}
    model = models.get_model(name, weights=None, **size).eval()
    x = torch.randn(3, 3, 64, 64)
    stages = divide(model, exit_points(model), x[:1])
    with torch.inference_mode():
        check_stages(model, exit_points(model), stages, x[:1])
        torch.testing.assert_close(run_stages(stages, x), model(x))
        torch.testing.assert_close(run_stages(stages, x[:1]), model(x[:1]))
    assert {id(p) for stage in stages for p in stage.network.parameters()} <= {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Roberta", "MPNet", "Electra", "Deberta", "DebertaV2"])
@pytest.mark.parametrize("masked", [True, False])
def test_hugging_face(name, masked):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    if name == "DistilBert":
        sizes = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 16}
    config = getattr(transformers, f"{name}Config")(vocab_size=50, **sizes)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    inputs = {"input_ids": torch.randint(5, 50, (4, 9))}
    if masked:
        inputs["attention_mask"] = (torch.arange(9) < torch.tensor([9, 4, 6, 1])[:, None]).long()
    exits = exit_points(model, each="block")
    # An example of other length and size than what is run.
    example = {key: value[:2, :7] for key, value in inputs.items()}
    stages = divide(model, exits, example)
    with torch.inference_mode():
        check_stages(model, exits, stages, example)
        torch.testing.assert_close(run_stages(stages, *inputs.values()), model(**inputs).logits)


class Skipping(nn.Module):
    """What comes before the second exit is added after it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.last(self.second(hidden) + hidden)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(self.first(x) + x)


class TwoStreams(nn.Module):
    """Two streams that exchange what they know; an exit stands in one of them."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (
            nn.ModuleList(nn.Linear(4, 4) for _ in range(3)),
            nn.ModuleList(nn.Linear(4, 4) for _ in range(3)),
        )
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        left, right = x, x.flip(1)
        for to_left, to_right in zip(self.left, self.right, strict=True):
            right = to_right(right).tanh()
            left = to_left(left + right).tanh()
        return self.last(torch.cat([left, right], dim=1))


class Positions(nn.Module):
    """A table that is the same for all samples is made by the first block, and used by the others."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(makes_table=k == 0) for k in range(3))
        self.last = nn.Linear(4, 3)

    def forward(self, tokens):
        hidden, table = nn.functional.one_hot(tokens, 4).float(), None
        for block in self.blocks:
            hidden, table = block(hidden, table)
        return self.last(hidden.mean(1))


class Block(nn.Module):
    def __init__(self, makes_table):
        super().__init__()
        self.linear, self.embedding = nn.Linear(4, 4), nn.Embedding(16, 4) if makes_table else None

    def forward(self, hidden, table):
        if table is None:
            table = self.embedding(torch.arange(hidden.shape[1]))[None]
        return self.linear(hidden + table), table


class ChangesItsList(nn.Module):
    """A module changes the list that it is given, and another takes numbers only."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.table, self.last = Doubles(), Doubles(), Table(), nn.Linear(4, 3)

    def forward(self, x):
        first, second = self.first([x, x + 1])
        first, second = self.second([first, second])
        return self.last(first + second + self.table(x.shape[1]))


class Doubles(nn.Module):
    def forward(self, parts):
        for i, part in enumerate(parts):
            parts[i] = 2 * part
        return parts


class Table(nn.Module):
    def forward(self, width):
        return torch.arange(width).float()


class ChangesAView(nn.Module):
    """Writes into a part of a tensor whose whole is read later."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        hidden = self.first(x)
        hidden[:, 1:].mul_(2)
        hidden[:, 0] = 1
        return self.last(self.second(hidden) + hidden)


class ReadsRows(nn.Module):
    """Reads the number of rows as a plain number, and makes others of it."""

    def __init__(self, read):
        super().__init__()
        self.read = read
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x):
        n = self.read(x)
        hidden = self.first(x).reshape(2 * n, 2).reshape(n, -1)
        start = torch.zeros(n, 4)
        return self.last(torch.cat([self.second(hidden), start + hidden], dim=1).reshape(n * 8).view(n, 8))


def first_size(x):
    return int(x.shape[0])


class Squeezes(nn.Module):
    """Leaves out all axes of length one, which the plain network does to the rows, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv1d(1, 4, 1), nn.Conv1d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.second(self.first(x[:, None])).mean(2, keepdim=True).squeeze())


class Routes(nn.Module):
    """A module looks at values between two exits."""

    def __init__(self):
        super().__init__()
        self.first, self.router, self.second, self.last = nn.Linear(4, 4), Router(), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.second(self.router(self.first(x))))


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.expert = nn.Linear(4, 4)

    def forward(self, hidden):
        rows = (hidden.sum(1) > 0).nonzero()[:, 0]
        routed = hidden.clone()
        routed[rows] = self.expert(hidden[rows])
        return routed


class Cache:
    """What layers keep for others."""

    def __init__(self):
        self.kept = []


class KeepsInACache(nn.Module):
    """Modules are given an object that they change."""

    def __init__(self):
        super().__init__()
        self.layers, self.last = nn.ModuleList(Keeps() for _ in range(3)), nn.Linear(4, 3)

    def forward(self, x):
        cache = Cache()
        for layer in self.layers:
            x = layer(x, cache)
        return self.last(x + sum(cache.kept))


class Collects(nn.Module):
    """Hooks, which the first call installs, collect what the layers give."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        self.has_hooks = False

    def forward(self, x):
        if not self.has_hooks:
            self.has_hooks = True
            for layer in self.layers:
                layer.register_forward_hook(lambda module, args, output: _COLLECTED.append(output))
        _COLLECTED.clear()
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return sum(head(state) for head, state in zip(self.heads, _COLLECTED, strict=True))


_COLLECTED = []


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden, cache):
        cache.kept.append(hidden)
        return self.linear(hidden).tanh()


class Shared(nn.Module):
    """One block, under three names, is called three times; so is one classifier."""

    def __init__(self):
        super().__init__()
        block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.blocks, self.head = nn.ModuleList([block] * 3), nn.Linear(4, 3)

    def forward(self, x):
        logits = []
        for block in self.blocks:
            x = block(x)
            logits.append(self.head(x))
        return logits[-1]


class MakesTables(nn.Module):
    """Fills tensors like those of the samples, which read no values of them, and writes into one."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        table, row = x.new_ones(4, 4).tril(), torch.full_like(x, 2.0)
        written = torch.zeros_like(x)
        written[:, 0] = x[:, 1]
        hidden = self.first(x) @ table
        return self.last(self.second(hidden) @ table + row + written)


class Recurrent(nn.Module):
    """States have the samples along their second axis; so does everything where batch_first is False."""

    def __init__(self, batch_first):
        super().__init__()
        self.axis = 0 if batch_first else 1
        self.first, self.second = (nn.LSTM(4, 4, batch_first=batch_first) for _ in range(2))
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        hidden, state = self.first(x.movedim(0, self.axis))
        hidden, state = self.second(hidden, state)
        return self.last(hidden.select(1 - self.axis, -1) + state[0][0])


@pytest.mark.parametrize(
    ("model", "exits", "inputs"),
    [
        (Skipping(), ["first", "second"], torch.randn(5, 4)),
        (Residual(), ["first", "second"], torch.randn(5, 4)),
        (TwoStreams(), ["left.0", "left.1", "left.2"], torch.randn(5, 4)),
        (TwoStreams(), ["right.1", "left.2"], torch.randn(5, 4)),
        (Positions(), ["blocks.0", "blocks.1", "blocks.2"], torch.randint(0, 4, (5, 6))),
        (ChangesItsList(), ["first", "second"], torch.randn(5, 4)),
        (ChangesAView(), ["first", "second"], torch.randn(5, 4)),
        (ReadsRows(len), ["first", "second"], torch.randn(5, 4)),
        (ReadsRows(first_size), ["first", "second"], torch.randn(5, 4)),
        (MakesTables(), ["first", "second"], torch.randn(5, 4)),
        (Recurrent(batch_first=True), ["first", "second"], torch.randn(5, 3, 4)),
        (Recurrent(batch_first=False), ["first", "second"], torch.randn(5, 5, 4)),
        (Routes(), ["first", "second"], torch.randn(5, 4)),
        (KeepsInACache(), ["layers.0", "layers.2"], torch.randn(5, 4)),
        (Shared(), ["blocks.0#0", "blocks.2#1", "blocks.0.0#2", "blocks.1#2"], torch.randn(5, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_all_that_later_stages_need_goes_along(model, exits, inputs):
    model.eval()
    stages = divide(model, exits, inputs[:2])
    with torch.inference_mode():
        check_stages(model, exits, stages, inputs)
        expected = model(inputs.clone())
        torch.testing.assert_close(run_stages(stages, inputs), expected)
        torch.testing.assert_close(run_stages(stages, inputs[:1]), expected[:1])


@pytest.mark.parametrize("was_called", [False, True])
def test_hooks_of_the_network_collect_what_it_needs(was_called):
    model, x, exits = Collects().eval(), torch.randn(5, 4), ["layers.0", "layers.1"]
    if was_called:
        model(x)
    exit_points(model, example_input=x)
    stages = divide(model, exits, x)
    assert [len(layer._forward_hooks) for layer in model.layers] == [int(was_called)] * 3
    assert model.has_hooks == was_called
    with torch.no_grad():
        check_stages(model, exits, stages, x)
        torch.testing.assert_close(run_stages(stages, x), model(x))


def test_the_rows_stay_where_axes_of_length_one_are_left_out():
    model, x = Squeezes().eval(), torch.randn(5, 4)
    stages = divide(model, ["first", "second"], x[:2])
    with torch.inference_mode():
        check_stages(model, ["first", "second"], stages, x)
        torch.testing.assert_close(run_stages(stages, x), model(x))
        torch.testing.assert_close(run_stages(stages, x[:1]), model(x)[:1])


def test_calls_of_a_shared_classifier_are_heads():
    model, x = Shared().eval(), torch.randn(5, 4)
    stages = divide(model, ["blocks.0#0", "blocks.0#1", "blocks.0#2"], x, ["head#0", "head#1", "head#2"])
    tensors, hidden = [x], x
    with torch.inference_mode():
        for stage in stages:
            tensors, hidden = stage.network(*tensors), model.blocks[0](hidden)
            torch.testing.assert_close(stage.logits(*tensors), model.head(hidden))


@pytest.mark.parametrize("name", ["blocks.0", "blocks.1"])
def test_one_of_several_calls_must_be_named(name):
    with pytest.raises(
        ValueError, match=rf"which the forward pass calls 3 times; name one of the calls, from '{name}#0'"
    ):
        divide(Shared().eval(), [name], torch.randn(2, 4))
    with pytest.raises(ValueError, match=rf"exits names '{name}#3', which the forward pass calls 0 times"):
        divide(Shared().eval(), [f"{name}#3"], torch.randn(2, 4))


class Pooled(nn.Module):
    """What goes on past the first exit has no rows of samples."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        total = x.sum(0)
        return self.second(self.first(x) + total)


def test_what_has_no_rows_of_samples_keeps_them_together():
    with pytest.raises(
        ValueError, match=r"cannot be divided at exit 'first': later modules need a tensor of shape .* by one"
    ):
        divide(Pooled().eval(), ["first", "second"], torch.randn(2, 4))


DECODERS = ["Llama", "Qwen2", "GPT2", "GPTNeoX", "OPT"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DECODERS, "ModernBert", "T5Encoder"])
def test_decoders_and_position_tables(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    if name == "T5Encoder":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2}
    if name in ("Llama", "Qwen2"):
        sizes |= {"num_key_value_heads": 1}
    if name == "OPT":
        sizes |= {"ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
    config = getattr(transformers, f"{name.removesuffix('Encoder')}Config")(vocab_size=50, pad_token_id=0, **sizes)
    kind = "T5EncoderModel" if name == "T5Encoder" else f"{name}ForSequenceClassification"
    model = getattr(transformers, kind)(config).eval()
    inputs = {
        "input_ids": torch.randint(5, 50, (4, 9)),
        "attention_mask": (torch.arange(9) < torch.tensor([9, 4, 6, 3])[:, None]).long(),
    }
    example = {key: value[:2, :7] for key, value in inputs.items()}
    exits, uses_cache = exit_points(model, example_input=example, n_exits=3), getattr(config, "use_cache", None)
    stages = divide(model, exits, example, head=None if name == "T5Encoder" else "output")
    with torch.inference_mode():
        check_stages(model, exits, stages, example)
        if name != "T5Encoder":  # whose last exit stands before its last norm
            torch.testing.assert_close(run_stages(stages, *inputs.values()), model(**inputs).logits)
    assert getattr(config, "use_cache", None) == uses_cache


class Mixing(nn.Module):
    """Each sample depends on the others of its batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(hidden - hidden.mean(0))


def test_samples_that_depend_on_one_another_are_refused():
    model, x = Mixing().eval(), torch.randn(2, 4)
    with pytest.raises(ValueError, match="on random inputs, its part up to 'second' gives other values"):
        check_stages(model, ["first", "second"], divide(model, ["first", "second"], x), x)


class MultiExit(nn.Module):
    """Gives the logits of all exits, changes tensors in place, and has a constant and a free parameter."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x):
        outputs = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x) + torch.tensor([1.0, 0.0, 0.0, 0.5])
            x += self.shift
            torch.relu_(x)
            outputs.append(head(x))
        return outputs


@pytest.mark.parametrize("head", ["output", ["heads.0", "heads.1", "heads.2"], ["heads.0", None, "output"]])
def test_logits_of_the_network_itself(head):
    model, x = MultiExit().eval(), torch.randn(5, 4)
    stages = divide(model, ["blocks.0", "blocks.1", "blocks.2"], x[:1], head)
    tensors = [x]
    with torch.inference_mode():
        for k, (stage, expected) in enumerate(zip(stages, model(x), strict=True)):
            tensors = stage.network(*tensors)
            if head == "output" or head[k] is not None:
                torch.testing.assert_close(stage.logits(*tensors), expected)
            else:
                assert stage.logits is None or head[k] is None


def test_an_exit_inside_another():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 3)).eval()
    x = torch.randn(3, 4)
    stages = divide(model, ["0.0", "0", "1"], x)
    torch.testing.assert_close(run_stages(stages, x), model(x))


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(hidden if hidden.sum() > 0 else -hidden)


def test_networks_that_look_at_values_are_refused():
    """The line of code is named, and a module that does the same between the exits is no obstacle, as in Routes."""
    with pytest.raises(
        ValueError, match=r"Deciding .*: an operation at line \d+ of test_stages.py, `return self.second"
    ):
        divide(Deciding().eval(), ["first", "second"], torch.randn(2, 4))


def test_the_nearest_places_are_named():
    model = nn.Sequential(nn.Linear(4, 4), Deciding(), nn.Linear(3, 3), nn.Linear(3, 3)).eval()
    with pytest.raises(ValueError, match=r"in '1' at .* places for an exit are '0' before it and '2' after it"):
        divide(model, ["0", "1.first"], torch.randn(2, 4))
    x = torch.randn(4, 4)
    torch.testing.assert_close(run_stages(divide(model, ["0", "2"], x), x), model(x))


class LoopsOverRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(torch.stack([row.tanh() for row in self.first(x)]))


def test_networks_that_loop_over_rows_are_refused():
    with pytest.raises(ValueError, match=r"LoopsOverRows .* depend on the number of rows, as in a loop over rows"):
        divide(LoopsOverRows().eval(), ["first"], torch.randn(2, 4))


def test_exits_in_another_order():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    with pytest.raises(ValueError, match=r"exits=\['1', '0'\] are not in forward order"):
        divide(model, ["1", "0"], torch.randn(2, 4))


class SharedEncoding(nn.Module):
    """A module that two blocks call, and that the network holds by a name of its own."""

    class Block(nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.shared, self.own = shared, nn.Linear(6, 6)

        def forward(self, x):
            return self.own(self.shared(x)).relu()

    def __init__(self):
        super().__init__()
        self.encoding = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(self.Block(self.encoding) for _ in range(3))
        self.classifier = nn.Linear(6, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


def test_calls_of_a_module_that_blocks_share():
    torch.manual_seed(0)
    model, x, exits = SharedEncoding().eval(), torch.randn(4, 6), ["encoding#1", "blocks.2"]
    check_stages(model, exits, divide(model, exits, x[:2]), x)


class LastToken(nn.Module):
    """A classifier of the tokens that end a sequence, found by their values, between modules."""

    def __init__(self):
        super().__init__()
        self.embedding, self.first, self.second = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.dropout, self.classifier = nn.Dropout(), nn.Linear(6, 3)

    def forward(self, tokens):
        hidden = self.second(self.first(self.embedding(tokens)).relu()).relu()
        ends = hidden[tokens.eq(8), :].view(hidden.shape[0], -1, 6)[:, -1]
        return self.classifier(self.dropout(ends))


def test_modules_after_what_values_select():
    torch.manual_seed(0)
    model, tokens = LastToken().eval(), torch.randint(8, (4, 5))
    tokens[:, -1] = 8
    check_stages(model, ["first", "second"], divide(model, ["first", "second"], tokens[:2]), tokens)
