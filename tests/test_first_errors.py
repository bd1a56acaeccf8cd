"""What is passed in the wrong place or form is named, with what to pass; modules stand for their names."""

import tempfile

import numpy as np
import pytest
import torch
from torch import nn

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    ThresholdPolicy,
    recommended_pipeline,
    stack_exits,
)
from skexit.backbone import describe_exits, exit_costs, exit_points
from skexit.exceptions import LayoutLostWarning
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, export_onnx
from skexit.training import MultiExitNetwork


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


@pytest.fixture
def example():
    return torch.randn(60, 4), torch.arange(60) % 3


NOT_NETWORKS = ["resnet18", nn.Linear, len, None, 3]


@pytest.mark.parametrize("given", NOT_NETWORKS, ids=repr)
@pytest.mark.parametrize(
    "use",
    [
        ExitExtractor,
        exit_points,
        lambda given: ExitExtractor(given, ["1", "3"]),
        lambda given: describe_exits(given, torch.zeros(1, 4)),
        lambda given: exit_costs(given, ["1"], torch.zeros(1, 4)),
        lambda given: MultiExitNetwork(given, ["1", "3"], torch.zeros(1, 4)),
        lambda given: EarlyExitModel(given, ["1", "3"], None),
    ],
    ids=["extractor", "points", "exits", "describe", "costs", "training", "live"],
)
def test_what_is_no_network(use, given):
    with pytest.raises(TypeError, match=r"the network is the .*; pass a torch\.nn\.Module, such as"):
        use(given)


def test_modules_stand_for_their_names(network, example):
    x, y = example
    names, modules = ["1", "3"], [network[1], network[3]]
    assert ExitExtractor(network, modules).exits == names
    assert ExitExtractor(network, ["1", network[3]]).exits == names
    np.testing.assert_array_equal(exit_costs(network, modules, x).costs, exit_costs(network, names, x).costs)
    assert MultiExitNetwork(network, modules, x).exits == MultiExitNetwork(network, names, x).exits
    with tempfile.TemporaryDirectory() as folder:
        cache = ExitExtractor(network, modules).extract([(x, y)], folder, progress=False)
        policy = ThresholdPolicy(budget=0.7).fit(cache.X, cache.y)
    assert EarlyExitModel(network, modules, policy).exits == names
    assert EarlyExitModel(network, (module for module in modules), policy).exits == names


def test_a_module_of_two_names_has_the_first(example):
    shared = nn.Linear(4, 4)
    network = nn.Sequential(nn.Sequential(shared), nn.ReLU(), shared)
    assert ExitExtractor(network, [shared, network[1]]).exits == ["0.0", "1"]


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        (lambda network: nn.ReLU(), "exits is a ReLU; it must be a list"),
        (lambda network: network[:2], "exits is a Sequential; it must be a list"),
        (lambda network: "1", "exits is '1'; it must be a list"),
        (lambda network: 3, "exits is a int; it must be a list"),
        (lambda network: [nn.ReLU()], "exits has a ReLU that is not a module of the network"),
        (lambda network: [network], "exits has a Sequential that is not a module of the network"),
        (lambda network: [network[1], "1"], "names '1' more than once"),
        (lambda network: [], "at least one module name"),
    ],
)
def test_exits_that_are_none(network, exits, message):
    with pytest.raises(ValueError, match=message):
        ExitExtractor(network, exits(network))


def test_arguments_in_another_order(network, tmp_path):
    X = stack_exits(features=[np.random.default_rng(0).normal(size=(60, 2))] * 2)
    policy = ThresholdPolicy(budget=0.7).fit(X, np.arange(60) % 3)
    pipeline = recommended_pipeline(0.7)
    for given in (policy, pipeline):
        with pytest.raises(TypeError, match=r"the order is EarlyExitModel\(model, exits, policy\)"):
            EarlyExitModel(network, given, ["1", "3"])
        with pytest.raises(TypeError, match="the network is the"):
            EarlyExitModel(given, network, ["1", "3"])
    for live in (tmp_path / "network.onnx", "network.onnx", network):
        with pytest.raises(TypeError, match=r"pass a live network, and then the path"):
            export_onnx(live, network)


def budgeted():
    rest = [EENetPolicy(budget=0.5), RandomExit(budget=0.5), JEIGatedEnsemble(budget=0.5)]
    return [ThresholdPolicy(budget=0.5), OptimalStoppingPolicy(0.5), EMExitAssigner(budget=0.5), *rest]


@pytest.mark.parametrize("policy", budgeted(), ids=lambda policy: type(policy).__name__)
def test_a_budget_cannot_be_kept_with_a_single_exit(policy):
    rng, y = np.random.default_rng(0), np.arange(60) % 3
    logits = rng.normal(size=(60, 3)) + 2 * np.eye(3)[y]
    X = stack_exits(logits=[logits])
    with pytest.warns(
        UserWarning, match=rf"X has a single exit, whose cost is 1, so that {type(policy).__name__} runs"
    ):
        assert policy.fit(X, y).mean_cost(X) == 1
    policy.set_params(budget=1).fit(X, y)  # nothing warns
    policy.set_params(budget=0.5, layout=X.layout).fit(X, y)
    policy.set_params(layout=None)
    with pytest.warns(LayoutLostWarning, match="cannot be kept"):
        policy.fit(logits, y)
