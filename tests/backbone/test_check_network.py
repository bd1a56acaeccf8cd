"""Networks whose modules cannot be observed, or that have no shapes yet."""

import pytest
import torch
from torch import nn

from skexit import ExitHeads, StaticExit
from skexit.backbone import exit_points
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel


def make_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


def exported(network, x):
    return torch.export.export(network, (x,)).module()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda network, x: torch.jit.script(network), "a TorchScript module of torch.jit.script or torch.jit.trace"),
        (torch.jit.trace, "a TorchScript module of torch.jit.script or torch.jit.trace"),
        (exported, "a graph that calls no modules, such as that of torch.export"),
    ],
)
def test_networks_that_hide_their_modules(convert, message):
    x = torch.randn(2, 3, 8, 8)
    network = convert(make_network(), x)
    for use in (
        lambda: ExitExtractor(network, ["0"]),
        lambda: ExitExtractor(network, example_input=x),
        lambda: exit_points(network, example_input=x),
    ):
        with pytest.raises(TypeError, match=f"the network is {message}.* Pass the torch.nn.Module"):
            use()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_scripted_module_inside_of_a_network(tmp_path):
    network = nn.Sequential(torch.jit.script(nn.BatchNorm2d(3)), nn.Conv2d(3, 3, 1), *make_network()).eval()
    cache = ExitExtractor(network, ["1"]).extract([(torch.randn(6, 3, 8, 8), torch.arange(6) % 3)], tmp_path / "cache")
    assert cache.X.shape[0] == 6
    assert "0" not in exit_points(network, example_input=torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"exits names '0', which is a TorchScript module. .* Name another"):
        ExitExtractor(network, ["0", "2"])
    policy = StaticExit(0, heads=ExitHeads(distillation=0, random_state=0)).fit(cache.X, cache.y)
    with pytest.raises(ValueError, match="divided at its exits: '0' is a TorchScript module, which cannot be recorded"):
        EarlyExitModel(network, ["1"], policy, example_input=torch.randn(2, 3, 8, 8))


def test_a_traced_graph_of_modules(tmp_path):
    network = torch.fx.symbolic_trace(make_network())
    cache = ExitExtractor(network, ["1"]).extract([(torch.randn(6, 3, 8, 8), torch.arange(6) % 3)], tmp_path / "cache")
    assert cache.X.shape[0] == 6


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_lazy_modules():
    network = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'1.weight' has no shape yet. Call the network once with a batch, before"):
        ExitExtractor(network, ["0"])
    network(torch.zeros(2, 4))
    assert ExitExtractor(network, ["0"]).exits == ["0"]
