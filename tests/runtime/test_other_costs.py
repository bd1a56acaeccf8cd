"""A live network warns if it is prepared for images of another size than those of the extraction."""

import re
import warnings

import pytest
import torch
from torch import nn

from skexit import ExitHeads, ThresholdPolicy
from skexit.backbone import _costs
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, _other_costs

EXITS = ["1", "2"]
SMALL, LARGE = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.randn(5, 1, 12, 12)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 3)).eval()


def extract(network, images, path, unit="FLOPs"):
    extractor = ExitExtractor(network, EXITS, cost_unit=unit)
    return extractor.extract([(images, torch.arange(len(images)) % 3)], path, progress=False)


@pytest.fixture(params=["FLOPs", "MACs"])
def policy(request, network, tmp_path):
    cache = extract(network, SMALL, tmp_path, request.param)
    return ThresholdPolicy(budget=0.9).fit(cache.X, cache.y)


def multiply_adds(size):
    """Of the network, for an image of this height and width."""
    return 4 * 9 * (size - 2) ** 2 + 4 * 4 * 9 * (size - 4) ** 2 + 4 * 3


def test_images_of_another_size(network, policy):
    unit = policy.layout_.cost_unit
    cost, other = (multiply_adds(size) * {"FLOPs": 2, "MACs": 1}[unit] for size in (8, 12))
    assert policy.layout_.network_cost == cost
    message = (
        f"example_input has the shape (n, 1, 12, 12), for which the network takes {other:.4g} {unit}, but the policy "
        f"was fitted on costs of a network that takes {cost:.4g}. The images of the extraction probably had another "
        "size, so accuracy and cost may differ from those on the cache. Pass images of that size, or extract and fit "
        "again with images of this size."
    )
    live = EarlyExitModel(network, EXITS, policy, example_input=SMALL)
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
        live.prepare(LARGE)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"^x has the shape \(n, 1, 12, 12\), for which the network takes"):
        EarlyExitModel(network, EXITS, policy)(LARGE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        live(LARGE)  # only when the network is prepared
        EarlyExitModel(network, EXITS, policy)(SMALL)
        live.prepare(SMALL[:1])


def test_operations_are_counted_once(network, policy, monkeypatch):
    runs, count = [], _costs.run_counting_flops
    for module in (_costs, _other_costs):
        monkeypatch.setattr(
            module, "run_counting_flops", lambda *given, **named: runs.append(1) or count(*given, **named)
        )
    EarlyExitModel(network, EXITS, policy, example_input=SMALL)
    assert len(runs) == 1


def test_the_cure(network, tmp_path):
    cache = extract(network, LARGE, tmp_path)
    policy = ThresholdPolicy(budget=0.9).fit(cache.X, cache.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EarlyExitModel(network, EXITS, policy)(LARGE)


@pytest.mark.parametrize("unit", ["ms", "joules", None])
def test_costs_that_are_not_counted_are_not_compared(network, unit, tmp_path):
    cache = extract(network, SMALL, tmp_path)
    X = cache.X.with_layout(cache.layout.replace(costs=cache.layout.costs, cost_unit=unit))
    fitted = ThresholdPolicy(budget=0.9).fit(X, cache.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EarlyExitModel(network, EXITS, fitted, example_input=LARGE)


@pytest.mark.slow
def test_texts_may_have_any_length(tmp_path):
    network = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    exits = ["1", "3"]
    extractor = ExitExtractor(network, exits, head=None, pool="mean")
    cache = extractor.extract([(torch.randint(9, (30, 7)), torch.arange(30) % 3)], tmp_path, progress=False)
    policy = ThresholdPolicy(budget=1.0, layout=cache.X.layout).fit(cache.X, cache.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EarlyExitModel(network, exits, policy, head=None, pool="mean")(torch.randint(9, (3, 11)))


def test_other_exits_than_those_of_the_extraction(tmp_path):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)]
    network = nn.Sequential(*blocks, nn.Linear(8, 3)).eval()
    x, y = torch.randn(60, 8), torch.arange(60) % 3
    extractor = ExitExtractor(network, ["0", "1", "3"])
    cache = extractor.extract([(x, y)], tmp_path, progress=False)
    heads = ExitHeads(distillation=0, random_state=0)
    X = cache.X.with_layout(cache.layout.replace(exit_names=None))
    policy = ThresholdPolicy(budget=0.9, heads=heads).fit(X, cache.y)
    message = (
        "exits=['0', '2', '3'] cost 0.229, 0.686, 1 of the network, but the policy was fitted on exits that cost 0.229, "
        "0.457, 1. Pass the network and the exits of the extraction: extractor.exits."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
        EarlyExitModel(network, ["0", "2", "3"], policy, example_input=x)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EarlyExitModel(network, extractor.exits, policy, example_input=x)
