"""Networks whose output has logits of several exits, in many forms."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skexit import ThresholdPolicy
from skexit.backbone import describe_exits, exit_costs, exit_points
from skexit.backbone._own_logits import find_own_logits
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel

BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]
CLASSIFIERS = ["classifiers.0", "classifiers.1", "classifiers.2"]


class Scales(nn.Module):
    """Two feature maps from one."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.fine = nn.Conv2d(n_inputs, n_outputs, 3, padding=1)
        self.coarse = nn.Conv2d(n_inputs, n_outputs, 3, stride=2, padding=1)

    def forward(self, maps):
        return [self.fine(maps[0]).relu(), self.coarse(maps[0]).relu()]


@dataclass
class Answers:
    final: torch.Tensor
    early: list


FORMS = {
    "list": lambda logits, maps: logits,
    "tuple": lambda logits, maps: tuple(logits),
    "final first": lambda logits, maps: (logits[-1], logits[:-1]),
    "list and more": lambda logits, maps: (logits, maps),
    "dict": lambda logits, maps: {"early_logits": logits[:-1], "logits": logits[-1], "maps": maps},
    "dataclass": lambda logits, maps: Answers(logits[-1], logits[:-1]),
    "stacked": lambda logits, maps: torch.stack(logits, dim=1),
    "stacked in front": lambda logits, maps: torch.stack(logits),
    "stacked in front, in a dict": lambda logits, maps: {"logits": torch.stack(logits), "maps": maps},
    "stacked at the end": lambda logits, maps: torch.stack(logits, dim=-1),
    "stacked and turned": lambda logits, maps: torch.stack(logits, dim=1).transpose(0, 1),
    "final and stacked": lambda logits, maps: (logits[-1], torch.stack(logits[:-1], dim=1)),
    "dict of final and stacked": lambda logits, maps: {"logits": logits[-1], "early": torch.stack(logits[:-1])},
    "concatenated": lambda logits, maps: torch.cat([block[:, None] for block in logits], dim=1),
}


class MultiScale(nn.Module):
    """Built as a multi-scale dense network: classifiers see the coarse map of each block."""

    def __init__(self, form="list", at_the_end=False):
        super().__init__()
        self.form, self.at_the_end = FORMS[form], at_the_end
        self.blocks = nn.ModuleList([Scales(3, 6), Scales(6, 6), Scales(6, 12)])
        self.classifiers = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_maps, 5)) for n_maps in (6, 6, 12)
        )

    def logits(self, x):
        maps, seen, logits = [x, x], [], []
        for block, classifier in zip(self.blocks, self.classifiers, strict=True):
            maps = block(maps)
            seen.append(maps[1])
            if not self.at_the_end:
                logits.append(classifier(maps[1]))
        if self.at_the_end:
            logits = [classifier(coarse) for classifier, coarse in zip(self.classifiers, seen, strict=True)]
        return logits, maps

    def forward(self, x):
        return self.form(*self.logits(x))


@pytest.fixture(params=[False, True], ids=["classifiers between", "classifiers at the end"])
def at_the_end(request):
    return request.param


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("exits", [BLOCKS, CLASSIFIERS, BLOCKS[::2], ["blocks.1", "classifiers.2"]], ids=str)
def test_each_exit_has_its_own(form, exits, at_the_end):
    torch.manual_seed(0)
    model, x = MultiScale(form, at_the_end).eval(), torch.randn(4, 3, 8, 8)
    own = find_own_logits(model, exits, x[:1])
    with torch.no_grad():
        expected, _ = model.logits(x)
        for name, found in zip(exits, own.read(model(x)), strict=True):
            torch.testing.assert_close(found, expected[int(name[-1])])


def count(function, *inputs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("form", FORMS)
def test_costs_have_the_classifier_of_each_exit(form, at_the_end):
    """Counted by torch, module by module."""
    model, x = MultiScale(form, at_the_end).eval(), torch.randn(1, 3, 8, 8)
    maps, expected = [x, x], []
    for block, classifier in zip(model.blocks, model.classifiers, strict=True):
        expected.append(count(block, maps) + count(classifier, block(maps)[1]))
        maps = block(maps)
    found = exit_costs(model, BLOCKS, x)
    np.testing.assert_allclose(found.costs, np.cumsum(expected))
    assert found.network == sum(expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("exits", [BLOCKS, CLASSIFIERS, BLOCKS[::2]], ids=str)
def test_the_live_network_answers_as_the_cache(form, exits, tmp_path):
    torch.manual_seed(0)
    model, x, y = MultiScale(form).eval(), torch.randn(90, 3, 8, 8), torch.arange(90) % 5
    cache = ExitExtractor(model, exits).extract([(x, y)], tmp_path / "cache")
    assert cache.layout.n_logits == (5,) * len(exits)
    policy = ThresholdPolicy(budget=0.6).fit(cache.X, cache.y)
    live = EarlyExitModel(model, exits, policy, example_input=x[:2])
    np.testing.assert_array_equal(live(x).exits, policy.predict_exit(cache.X))
    np.testing.assert_array_equal(live(x).labels, policy.predict(cache.X))


def test_an_exit_without_logits_of_its_own():
    """Logits belong to the last exit that they follow from."""
    model = MultiScale().eval()
    own = find_own_logits(model, ["blocks.0.fine", "blocks.0", "blocks.1"], torch.randn(1, 3, 8, 8))
    assert [place is None for place in own.places] == [True, False, False]


class Chain(nn.Module):
    """Layers of equal cost, with what `form` makes of the states after them."""

    def __init__(self, form, n_logits=1, n_heads=4):
        super().__init__()
        self.form = form
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(16, n_logits) for _ in range(n_heads))

    def states(self, x):
        states = []
        for layer in self.layers:
            x = torch.tanh(layer(x))
            states.append(x)
        return states

    def forward(self, x):
        return self.form(self.heads, self.states(x))


LAYERS = [f"layers.{k}" for k in range(4)]


def of_exits(form):
    """A form of the logits of the exits."""
    return lambda heads, states: form([head(state) for head, state in zip(heads, states, strict=True)])


BINARY = {
    "columns": of_exits(lambda logits: logits),
    "vectors": of_exits(lambda logits: [z[:, 0] for z in logits]),
    "squeezed": of_exits(lambda logits: [z.squeeze() for z in logits]),
    "concatenated": of_exits(lambda logits: torch.cat(logits, dim=1)),
    "stacked": of_exits(lambda logits: torch.stack([z[:, 0] for z in logits], dim=1)),
    "stacked in front": of_exits(lambda logits: torch.stack([z[:, 0] for z in logits])),
    "stacked and turned": of_exits(lambda logits: torch.stack([z[:, 0] for z in logits]).T),
    "stacked and squeezed": of_exits(lambda logits: torch.stack(logits, dim=1).squeeze(-1)),
    "final and stacked": of_exits(lambda logits: {"logits": logits[-1][:, 0], "early": torch.cat(logits[:-1], dim=1)}),
}


@pytest.mark.parametrize("form", BINARY)
def test_single_logits_of_a_binary_network(form, tmp_path):
    torch.manual_seed(0)
    model, x, y = Chain(BINARY[form]).eval(), torch.randn(60, 16), torch.arange(60) % 2
    cache = ExitExtractor(model, LAYERS).extract([(x, y)], tmp_path / "cache")
    assert cache.layout.n_logits == (2, 2, 2, 2)
    np.testing.assert_allclose(cache.layout.costs, 2 * np.arange(1, 5) * (16 * 16 + 16))
    with torch.no_grad():
        expected = [head(state)[:, 0].numpy() for head, state in zip(model.heads, model.states(x), strict=True)]
    for k in range(4):
        np.testing.assert_allclose(cache.X.logits(k)[:, 1], expected[k], atol=1e-6)
    policy = ThresholdPolicy(budget=0.6).fit(cache.X, cache.y)
    live = EarlyExitModel(model, LAYERS, policy, example_input=x[:2])
    for rows in (slice(None), slice(1)):
        np.testing.assert_array_equal(live(x[rows]).exits, policy.predict_exit(cache.X[rows]))
        np.testing.assert_array_equal(live(x[rows]).labels, policy.predict(cache.X[rows]))


@pytest.mark.parametrize(
    "form",
    [
        lambda heads, states: torch.cat([head(states[-1]) for head in heads], dim=1),
        lambda heads, states: torch.cat([head(state) for head, state in zip(heads, states, strict=True)], dim=1) @ MIX,
    ],
    ids=["one head for each class", "as many features as classes"],
)
def test_joined_columns_of_classes(form):
    model = Chain(form)
    own = find_own_logits(model.eval(), LAYERS, torch.randn(1, 16))
    assert own.places == [None, None, None, (0, None)]


MIX = torch.eye(4)


def early_and_last(heads, states):
    """Both classifiers at the network's end."""
    return heads[0](states[1]), heads[1](states[3])


@pytest.mark.parametrize(
    ("exits", "places"),
    [
        (LAYERS, [None, 0, None, 1]),
        (LAYERS[1::2], [0, 1]),
        (["layers.0", "layers.2", "layers.3"], [None, 0, 1]),
        (["layers.2", "layers.3"], [None, 1]),
        (LAYERS[:2], [None, 0]),
        (["layers.3"], [1]),
    ],
    ids=str,
)
def test_classifiers_at_the_end_answer_at_the_exits_that_they_look_at(exits, places, tmp_path):
    torch.manual_seed(0)
    model, x, y = Chain(early_and_last, 3, 2).eval(), torch.randn(60, 16), torch.arange(60) % 3
    cache = ExitExtractor(model, exits).extract([(x, y)], tmp_path / "cache")
    with torch.no_grad():
        output = model(x)
    for k, (name, place) in enumerate(zip(exits, places, strict=True)):
        assert cache.layout.has_logits(k) == (place is not None)
        n_heads = 2 if place == 1 else sum(one is not None for one in places[: k + 1])
        assert cache.layout.costs[k] == pytest.approx(2 * ((int(name[-1]) + 1) * 16 * 16 + n_heads * 16 * 3))
        if place is not None:
            np.testing.assert_allclose(cache.X.logits(k), output[place], atol=1e-6)
    if None not in places:
        policy = ThresholdPolicy(budget=0.9 if len(exits) > 1 else 1.0).fit(cache.X, cache.y)
        live = EarlyExitModel(model, exits, policy, example_input=x[:2])
        np.testing.assert_array_equal(live(x).labels, policy.predict(cache.X))


@pytest.mark.parametrize(
    "form", [early_and_last, *(of_exits(form) for form in (list, torch.stack))], ids=["at the end", "list", "stacked"]
)
def test_early_answers_are_not_carried(form):
    model, x = Chain(form, 3, 2 if form is early_and_last else 4).eval(), torch.randn(2, 16)
    table = describe_exits(model, x).set_index("name")
    assert (table.loc[LAYERS, "carried"] == 0).all()
    assert not any(name.startswith("heads") for name in table.index)
    assert exit_points(model, example_input=x, n_exits=4) == LAYERS
