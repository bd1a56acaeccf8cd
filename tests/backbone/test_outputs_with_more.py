"""Networks that return more than logits: features, losses, hidden states, probabilities."""

import numpy as np
import pytest
import torch
from torch import nn

from skexit import ThresholdPolicy
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel

EXITS = ["blocks.0", "blocks.1", "blocks.2"]
N_CLASSES = 3


class Network(nn.Module):
    """Three blocks with a classifier each. `form` gets the classifiers' logits, the states and the network."""

    def __init__(self, form):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.classifiers = nn.ModuleList(nn.Linear(8, N_CLASSES) for _ in range(3))
        self.projection, self.beside = nn.Linear(8, 5), nn.Linear(8, N_CLASSES)
        self.form = form

    def logits(self, x):
        states = []
        for block in self.blocks:
            x = block(x)
            states.append(x)
        return [classifier(state) for classifier, state in zip(self.classifiers, states, strict=True)], states

    def forward(self, x):
        return self.form(*self.logits(x), self)


WITH_ONE = {
    "loss": lambda z, h, net: (z[-1], h[-1].square().mean()),
    "hidden states": lambda z, h, net: (z[-1], h),
    "nothing": lambda z, h, net: (z[-1], None),
    "predictions": lambda z, h, net: (z[-1], z[-1].argmax(1)),
    "attention": lambda z, h, net: (z[-1], h[-1][:, :, None] * h[-1][:, None]),
    "features first": lambda z, h, net: (h[-1], z[-1]),
    "features last": lambda z, h, net: (z[-1], h[-1]),
    "features by name": lambda z, h, net: {"features": h[-1], "out": z[-1]},
    "projection": lambda z, h, net: (z[-1], net.projection(h[-1])),
    "probabilities first": lambda z, h, net: (z[-1].softmax(1), z[-1]),
    "probabilities last": lambda z, h, net: (z[-1], z[-1].softmax(1)),
}
WITH_SEVERAL = {
    "features first": lambda z, h, net: (h, z),
    "features last": lambda z, h, net: (z, h),
    "probabilities first": lambda z, h, net: ([block.softmax(1) for block in z], z),
    "probabilities last": lambda z, h, net: (z, [block.softmax(1) for block in z]),
    "a second classifier of the last exit": lambda z, h, net: (z[0], z[1], net.beside(h[-1]), z[2]),
}


def extract(form, folder):
    torch.manual_seed(0)
    model, x, y = Network(form).eval(), torch.randn(60, 8), torch.arange(60) % N_CLASSES
    return model, x, ExitExtractor(model, EXITS).extract([(x, y)], folder)


@pytest.mark.parametrize("form", WITH_ONE)
def test_logits_of_the_last_exit_are_those_of_the_classifier(form, tmp_path):
    model, x, cache = extract(WITH_ONE[form], tmp_path / "cache")
    assert cache.layout.n_logits == (0, 0, N_CLASSES)
    np.testing.assert_allclose(cache.X.logits(2), model.logits(x)[0][-1].detach(), atol=1e-5)


@pytest.mark.parametrize("form", WITH_SEVERAL)
def test_each_exit_has_the_logits_of_its_classifier(form, tmp_path):
    model, x, cache = extract(WITH_SEVERAL[form], tmp_path / "cache")
    assert cache.layout.n_logits == (N_CLASSES,) * 3
    for k, logits in enumerate(model.logits(x)[0]):
        np.testing.assert_allclose(cache.X.logits(k), logits.detach(), atol=1e-5)
    policy = ThresholdPolicy(budget=0.8).fit(cache.X, cache.y)
    output = EarlyExitModel(model, EXITS, policy, example_input=x[:2])(x)
    np.testing.assert_array_equal(output.exits, policy.predict_exit(cache.X))
    np.testing.assert_array_equal(output.labels, policy.predict(cache.X))


def test_last_logits_after_more_layers_are_not_those_of_an_exit_before(tmp_path):
    """The network goes on after the last exit that is named, and this exit has a classifier of its own."""
    torch.manual_seed(0)
    model, x, y = Network(lambda z, h, net: z).eval(), torch.randn(60, 8), torch.arange(60) % N_CLASSES
    model.blocks[2] = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))
    cache = ExitExtractor(model, EXITS[:2]).extract([(x, y)], tmp_path / "cache")
    np.testing.assert_allclose(cache.X.logits(1), model.logits(x)[0][1].detach(), atol=1e-5)


def test_a_dict_without_logits_names_what_helps(tmp_path):
    model, x, y = Network(lambda z, h, net: {"out": z[-1]}).eval(), torch.randn(60, 8), torch.arange(60) % N_CLASSES
    with pytest.raises(ValueError, match=r"has no logits of shape .* or name modules: head="):
        ExitExtractor(model, EXITS).extract([(x, y)], tmp_path / "cache")
    head = {"blocks.2": "classifiers.2"}
    cache = ExitExtractor(model, EXITS, head=head).extract([(x, y)], tmp_path / "cache")
    np.testing.assert_allclose(cache.X.logits(2), model.logits(x)[0][-1].detach(), atol=1e-5)
