import pytest
import torch
from instances import POLICIES
from live_networks import Network, make_live
from sklearn.base import clone
from torch import nn

from skexit import ExitEnsemble, ExitHeads, OptimalStoppingPolicy, ThresholdPolicy, make_exit_pipeline
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel
from skexit.runtime._compiled import plain_network

EXITS = ["2", "5"]
SIZES = (1, 4, 8)


class CountingBackend:
    """Runs graphs as they are, counts them, and notes how many rows they are given."""

    def __init__(self):
        self.n_graphs, self.n_rows = 0, set()

    def __call__(self, graph, example_inputs):
        self.n_graphs += 1

        def run(*inputs):
            outputs = graph(*inputs)
            self.n_rows.add(len(outputs[0]))
            return outputs

        return run


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 3, 8, 8, generator=generator), torch.arange(60) % 3


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        *(nn.Conv2d(6, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    ).eval()


@pytest.fixture(scope="module")
def policy(network, data, tmp_path_factory):
    cache = ExitExtractor(network, EXITS).extract([data], tmp_path_factory.mktemp("cache"))
    return ThresholdPolicy(budget=0.9, heads=ExitHeads(random_state=0)).fit(cache.X, cache.y)


@pytest.fixture
def live(network, policy, data):
    return EarlyExitModel(network, EXITS, policy, example_input=data[0])


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet():
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("n_rows", [1, 3, 4, 8, 19])
def test_answers_are_those_of_the_plain_network(live, network, policy, data, backend, n_rows):
    x = data[0][:n_rows]
    expected = EarlyExitModel(network, EXITS, policy, example_input=x)(x)
    output = live.compile_stages(SIZES, backend=backend)(x)
    assert output.labels.equal(expected.labels)
    assert output.exits.equal(expected.exits)
    torch.testing.assert_close(output.probabilities, expected.probabilities, rtol=1e-5, atol=1e-6)
    if n_rows == 19:
        assert set(output.exits.tolist()) == {0, 1}


@pytest.mark.filterwarnings("ignore:the heads of all exits", "ignore:some of the budget")
@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_numbers_of_rows_that_are_sizes_of_other_axes(tmp_path, n_rows):
    """An ensemble has one more weight at each exit."""
    torch.manual_seed(0)
    exits = ["0", "1", "2", "3"]
    network = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in exits), nn.Linear(64, 3)).eval()
    y = torch.arange(90) % 3
    data = torch.randn(90, 64) + y[:, None] / 4, y
    cache = ExitExtractor(network, exits).extract([data], tmp_path / "cache")
    heads = ExitEnsemble(ExitHeads(distillation=0, random_state=0))
    policy = make_exit_pipeline(heads, OptimalStoppingPolicy(1.0, random_state=0)).fit(cache.X, cache.y)
    live = EarlyExitModel(network, exits, policy, example_input=data[0])
    expected = live(data[0][:n_rows])
    output = live.compile_stages((n_rows,), backend="eager")(data[0][:n_rows])
    assert output.exits.equal(expected.exits)
    assert output.labels.equal(expected.labels)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_each_stage_is_compiled_once_a_size(live, data, memory_format):
    backend = CountingBackend()
    live.compile_stages(SIZES, backend=backend)
    for n_rows in [*range(1, 20), 4, 1]:
        for x in (data[0][:n_rows], data[0][20:][:n_rows].clone()):
            live(x.to(memory_format=memory_format))
    # Network, head and decision of an exit are one graph.
    assert backend.n_graphs == len(EXITS) * len(SIZES)
    assert backend.n_rows == set(SIZES)


def test_more_exits_and_sizes_than_torch_compiles_one_code_for():
    live, x = make_live(ThresholdPolicy(budget=0.7))
    assert len(Network.exits) * len(SIZES) > torch._dynamo.config.recompile_limit
    backend = CountingBackend()
    live.compile_stages(SIZES, backend=backend)
    for n_rows in (*range(1, 9), len(x)):
        live(x[:n_rows])
    assert backend.n_graphs == len(Network.exits) * len(SIZES)


def test_compiled_again_for_other_sizes(live, data):
    backend = CountingBackend()
    live.compile_stages(SIZES, backend="eager").compile_stages([5], backend=backend)(data[0])
    assert backend.n_rows == {5}


def test_the_networks_themselves_are_kept_for_an_export(live):
    plain = [stage.network for stage in live.stages.values()]
    live.compile_stages(SIZES, backend="eager")
    for network, stage in zip(plain, live.stages.values(), strict=True):
        assert stage.network is not network
        assert plain_network(stage.network) is network


@pytest.mark.parametrize("pad_to", [(), (0, 8), (8, 2.5), (-1,)])
def test_wrong_sizes(live, pad_to):
    with pytest.raises(ValueError, match="must be a sequence of one or more positive integers"):
        live.compile_stages(pad_to)


def test_a_network_that_is_not_divided(network, policy):
    with pytest.raises(RuntimeError, match="call prepare"):
        EarlyExitModel(network, EXITS, policy).compile_stages()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data", "ignore:no budget qualifies")
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: str(policy).replace("\n", "")[:60])
def test_decisions_are_compiled_with_the_stages(policy):
    live, x = make_live(clone(policy))
    expected = live(x)
    output = live.compile_stages((64,), backend="aot_eager")(x)  # records as "eager" does, and then goes on
    assert output.labels.equal(expected.labels)
    assert output.exits.equal(expected.exits)
    torch.testing.assert_close(output.probabilities, expected.probabilities, rtol=1e-5, atol=1e-6)
