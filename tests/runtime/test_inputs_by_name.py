"""Batches by name serve a network that was prepared by position, and the other way round."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from skexit import ExitHeads, ThresholdPolicy, make_exit_pipeline
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel

EXITS = ["first", "second"]
N_ROWS = 40


class Network(nn.Module):
    """Takes two inputs, of which the second is optional."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.classifier = (nn.Linear(6, width) for width in (6, 6, 3))

    def forward(self, x, shift=None):
        x = self.first(x).tanh()
        x = self.second(x if shift is None else x + shift).tanh()
        return self.classifier(x)


torch.manual_seed(0)
X, SHIFT, Y = torch.randn(N_ROWS, 6), torch.randn(N_ROWS, 6), torch.arange(N_ROWS) % 3
ONE = [X, {"x": X}, (X,)]
TWO = [(X, SHIFT), {"x": X, "shift": SHIFT}, {"shift": SHIFT, "x": X}]


def call(live, inputs):
    return live(**inputs) if isinstance(inputs, dict) else live(*inputs) if isinstance(inputs, tuple) else live(inputs)


def with_labels(inputs):
    if isinstance(inputs, dict):
        return {**inputs, "labels": Y}
    return (*inputs, Y) if isinstance(inputs, tuple) else (inputs, Y)


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    network = Network().eval()
    made = {}
    for n_inputs, forms in ((1, ONE), (2, TWO)):
        loader = [with_labels(forms[0])]
        cache = ExitExtractor(network, EXITS).extract(loader, tmp_path_factory.mktemp("cache"), progress=False)
        policy = make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.8)).fit(cache.X, cache.y)
        for k, example in enumerate(forms):
            made[n_inputs, k] = EarlyExitModel(network, EXITS, policy, example_input=example)
    return made


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("given", range(3))
@pytest.mark.parametrize(("n_inputs", "forms"), [(1, ONE), (2, TWO)])
def test_forms_serve_each_other(lives, n_inputs, forms, k, given):
    live, expected = lives[n_inputs, k], call(lives[n_inputs, 0], forms[0])
    for output in (call(live, forms[given]), live.predict_loader([with_labels(forms[given])])):
        np.testing.assert_array_equal(output.exits, expected.exits)
        np.testing.assert_array_equal(output.labels, expected.labels)


@pytest.mark.parametrize("part", ["y", "index"])
def test_parts_that_the_network_does_not_take_are_named(lives, part):
    with pytest.raises(ValueError, match=re.escape(f"but got ['x', '{part}'] by name. Leave out ['{part}'].")):
        lives[1, 0](x=X, **{part: Y})


def test_sparse_and_nested_tensors_have_a_cure(lives):
    nested = torch.nested.nested_tensor(list(X), layout=torch.jagged)
    with pytest.raises(ValueError, match=r"^x is a sparse tensor, torch\.sparse_coo\. Pass x\.to_dense\(\)\.$"):
        lives[1, 0](X.to_sparse())
    with pytest.raises(ValueError, match=r"^x is a nested tensor\. Pad it by torch\.nested\.to_padded_tensor\("):
        lives[1, 0](nested)
    expected = lives[1, 0](X).exits
    for cured in (X.to_sparse().to_dense(), torch.nested.to_padded_tensor(nested, 0.0)):
        np.testing.assert_array_equal(lives[1, 0](cured).exits, expected)
