"""An error says in which form the network takes an input that it cannot take as it is."""

import numpy as np
import pytest
import torch
from messages import exactly
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skexit import StaticExit, stack_exits
from skexit.backbone import describe_exits, exit_costs, exit_points
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, measure_latency
from skexit.training import MultiExitNetwork

IMAGES, LABELS = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
EXITS = ["0", "2"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.fixture
def policy():
    return StaticExit(-1).fit(stack_exits(features=[np.ones((6, 24)), np.ones((6, 24))]), LABELS)


USES = {
    "extractor": lambda network, x, policy: ExitExtractor(network, example_input=x),
    "points": lambda network, x, policy: exit_points(network, example_input=x),
    "describe": lambda network, x, policy: describe_exits(network, x),
    "costs": lambda network, x, policy: exit_costs(network, EXITS, x),
    "training": lambda network, x, policy: MultiExitNetwork(network, EXITS, x),
    "live": lambda network, x, policy: EarlyExitModel(network, EXITS, policy, head=None, example_input=x),
    "latency": lambda network, x, policy: measure_latency(
        network, EXITS, (1,), example_input=x, policy=policy, head=None, n_repeats=1
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_one_sample_as_the_example(use, network, policy):
    message = (
        "example_input has the shape (2, 8, 8), which is that of one sample; the network takes a batch. Pass "
        "example_input[None], a batch of one sample."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        USES[use](network, IMAGES[0], policy)
    USES[use](network, IMAGES[0][None], policy)


@pytest.mark.parametrize("use", [*USES, "extractor with exits"])
def test_an_array_as_the_example(use, network, policy):
    def with_exits(network, x, policy):
        return ExitExtractor(network, EXITS, example_input=x)

    message = (
        "example_input takes a tensor, a tuple of tensors or a dict of tensors, with one row per sample, but got an "
        "array of shape (6, 2, 8, 8) and type float32. Pass torch.from_numpy(x)."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        (USES | {"extractor with exits": with_exits})[use](network, IMAGES.numpy(), policy)


@pytest.mark.parametrize(
    ("loader", "message", "cure"),
    [
        (
            list(IMAGES),
            "x of batch 0 of the loader has the shape (2, 8, 8), which is that of one sample; the network takes a "
            "batch. Pass x[None], a batch of one sample.",
            [x[None] for x in IMAGES],
        ),
        (
            [(IMAGES.double(), LABELS)],
            "x of batch 0 of the loader has the type torch.float64, but the network torch.float32. Convert it by "
            "to(torch.float32).",
            [(IMAGES.double().to(torch.float32), LABELS)],
        ),
        (
            [IMAGES.permute(0, 2, 3, 1)],
            "x of batch 0 of the loader has the shape (6, 8, 8, 2); the network takes channels first. Pass "
            "x.permute(0, 3, 1, 2).",
            [IMAGES],
        ),
        (
            IMAGES.numpy(),
            "loader is an array of shape (6, 2, 8, 8) and type float32. Pass a list of batches of tensors, such as "
            "[torch.from_numpy(x)].",
            [torch.from_numpy(IMAGES.numpy())],
        ),
        (
            None,
            "loader is None. Pass a torch.utils.data.DataLoader, or a list of batches, such as [x] or [(x, y)].",
            DataLoader(TensorDataset(IMAGES, LABELS)),
        ),
        (
            "images",
            "loader is a str. Pass a torch.utils.data.DataLoader, or a list of batches, such as [x] or [(x, y)].",
            [(IMAGES, LABELS)],
        ),
    ],
)
def test_loaders(network, loader, message, cure, tmp_path):
    with pytest.raises(ValueError, match=exactly(message)):
        ExitExtractor(network, EXITS).extract(loader, tmp_path / "wrong", progress=False)
    assert not (tmp_path / "wrong").exists()
    assert ExitExtractor(network, EXITS).extract(cure, tmp_path / "right", progress=False).n_rows == 6


def test_an_error_of_another_cause_stays(network, tmp_path):
    class Failing(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError, match="on purpose"):
        ExitExtractor(nn.Sequential(*network, Failing()), EXITS).extract([IMAGES], tmp_path, progress=False)


def test_the_search_for_a_form_changes_no_statistics(network):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="which is that of one sample"):
        MultiExitNetwork(network, EXITS, IMAGES[0])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training
