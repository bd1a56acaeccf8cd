"""Networks whose output has logits of several exits, in many forms."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skexit import ThresholdPolicy
from skexit.backbone import exit_costs
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
