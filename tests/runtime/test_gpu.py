"""On a GPU a network gives what it gives on the processor, and waits for the host no more often than it must.

Skipped where torch finds no GPU, as in CI.
"""

import copy
import warnings

import numpy as np
import pytest
import torch
from live_networks import Network, make_live, make_token_live, policies
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skexit import ExitHeads, ThresholdPolicy
from skexit.backbone import exit_costs
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, join_outputs, measure_latency

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")

GPU = torch.device("cuda")
CNN_EXITS = ["2", "5", "8"]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """By default cuDNN rounds the inputs of convolutions to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def make_cnn():
    torch.manual_seed(0)
    blocks = [
        (nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))
        for n_in, n_out in ((3, 8), (8, 8), (8, 16))
    ]
    return nn.Sequential(*sum(blocks, ()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def cnn():
    return make_cnn()


@pytest.fixture(scope="module")
def images():
    return torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 3


@pytest.fixture(scope="module")
def live(cnn, images, tmp_path_factory):
    """A live network on the GPU, whose heads and policy were fitted on what it said on the processor."""
    cache = ExitExtractor(cnn, CNN_EXITS).extract([images], tmp_path_factory.mktemp("gpu") / "cache")
    policy = ThresholdPolicy(budget=0.6, heads=ExitHeads(random_state=0)).fit(cache.X, cache.y)
    return EarlyExitModel(copy.deepcopy(cnn).to(GPU), CNN_EXITS, policy, example_input=images[0][:1].to(GPU))


def assert_nearly_same(output, expected):
    """A sample whose score is within rounding of a threshold may leave elsewhere."""
    same = output.exits.cpu() == torch.as_tensor(expected.exits).cpu()
    assert (~same).sum() <= 2
    assert np.array_equal(np.asarray(output.labels.cpu())[same], np.asarray(expected.labels.cpu())[same])
    found, wanted = (part.probabilities.cpu()[same].double() for part in (output, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_caches_are_those_of_the_processor(cnn, images, tmp_path):
    loader = DataLoader(TensorDataset(*images), batch_size=64, pin_memory=True)
    expected = ExitExtractor(cnn, CNN_EXITS).extract(loader, tmp_path / "cpu")
    cache = ExitExtractor(copy.deepcopy(cnn).to(GPU), CNN_EXITS).extract(loader, tmp_path / "gpu")
    np.testing.assert_allclose(cache.X, expected.X, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cache.y, expected.y)
    assert cache.layout.to_dict() == expected.layout.to_dict()


def test_an_extraction_goes_on_on_another_device(cnn, images, tmp_path):
    batches = [(x, y) for x, y in zip(*(part.split(50) for part in images), strict=True)]
    expected = ExitExtractor(cnn, CNN_EXITS).extract(batches, tmp_path / "cpu")

    def interrupted():
        yield from batches[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ExitExtractor(cnn, CNN_EXITS).extract(interrupted(), tmp_path / "both", shard_rows=50)
    cache = ExitExtractor(copy.deepcopy(cnn).to(GPU), CNN_EXITS).extract(batches, tmp_path / "both", shard_rows=50)
    np.testing.assert_allclose(cache.X, expected.X, rtol=1e-4, atol=1e-5)


def test_half_precision(cnn, images, tmp_path):
    expected = ExitExtractor(cnn, CNN_EXITS).extract([images], tmp_path / "single")
    half = copy.deepcopy(cnn).to(GPU, torch.bfloat16)
    cache = ExitExtractor(half, CNN_EXITS).extract([images[0].bfloat16()], tmp_path / "half")
    np.testing.assert_allclose(cache.X, expected.X, rtol=0.05, atol=0.05)
    policy = ThresholdPolicy(budget=0.6, heads=ExitHeads(random_state=0)).fit(expected.X, expected.y)
    x = images[0].to(GPU, torch.bfloat16)
    output = EarlyExitModel(half, CNN_EXITS, policy, example_input=x[:1])(x)
    assert (output.exits.cpu().numpy() == policy.predict_exit(cache.X)).mean() > 0.97


def test_autocast(cnn, images, tmp_path):
    network = copy.deepcopy(cnn).to(GPU)
    x = images[0].to(GPU)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        cache = ExitExtractor(network, CNN_EXITS).extract([images], tmp_path / "cache")
        policy = ThresholdPolicy(budget=0.6, heads=ExitHeads(random_state=0)).fit(cache.X, cache.y)
        output = EarlyExitModel(network, CNN_EXITS, policy, example_input=x[:1])(x)
    assert (output.exits.cpu().numpy() == policy.predict_exit(cache.X)).mean() > 0.97


@pytest.mark.parametrize("name", policies())
def test_answers_are_those_of_the_processor(name):
    policy = policies()[name]
    expected, x = make_live(policy)
    live = EarlyExitModel(copy.deepcopy(expected.model).to(GPU), Network.exits, policy, example_input=x[:1].to(GPU))
    output = live(x.to(GPU))
    assert output.labels.device.type == output.probabilities.device.type == output.exits.device.type == "cuda"
    assert_nearly_same(output, expected(x))
    loaded = live.predict_loader(x.split(37), batch_size=64, progress=False)
    assert_nearly_same(loaded, expected(x))


def test_a_network_that_is_moved(images, live):
    expected = live(images[0].to(GPU))
    moved = EarlyExitModel(copy.deepcopy(live.model), CNN_EXITS, live.policy, example_input=images[0][:1].to(GPU))
    for device in ("cpu", GPU):
        assert_nearly_same(moved.to(device)(images[0].to(device)), expected)


def test_masks_of_tokens():
    live, draw = make_token_live(ThresholdPolicy(budget=0.75, heads=ExitHeads(max_epochs=5, random_state=0)), GPU)
    on_processor = EarlyExitModel(copy.deepcopy(live.model).cpu(), live.exits, live.policy)
    for length in (7, 4):
        inputs = draw(30, length)
        assert_nearly_same(live(inputs), on_processor({name: part.cpu() for name, part in inputs.items()}))


@pytest.mark.parametrize("at_exit", [0, 1])
@pytest.mark.parametrize("where", [("cpu", GPU), (GPU, "cpu"), (GPU, GPU)])
def test_two_places(at_exit, where, live, images):
    first, second = (copy.deepcopy(part) for part in (live.truncate(at_exit), live.resume(at_exit)))
    answered = first.to(where[0])(images[0].to(where[0]))
    rest = answered.rest.to(where[1])
    assert_nearly_same(join_outputs([answered, second.to(where[1])(rest)]), live(images[0].to(GPU)))


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}], ids=str)
def test_compiled_stages(options, live, images):
    expected = live(images[0].to(GPU))
    network = copy.deepcopy(live.model)
    compiled = EarlyExitModel(network, CNN_EXITS, live.policy, example_input=images[0][:1].to(GPU))
    compiled.compile_stages(pad_to=(8, 64), **options)
    for _ in range(3):  # CUDA graphs are recorded in the second call
        assert_nearly_same(compiled(images[0].to(GPU)), expected)


def test_costs_in_milliseconds(live, images):
    costs = exit_costs(live.model, CNN_EXITS, images[0][:1], "ms")
    assert costs.unit == "ms"
    assert (np.diff(costs.costs) > 0).all()
    with pytest.raises(ValueError, match=r"^clock='processor' is for networks on a CPU, but this one is on cuda"):
        measure_latency(live, example_input=images[0][:1].to(GPU), clock="processor")
    latency = measure_latency(live, batch_sizes=(1, 8), example_input=images[0][:1].to(GPU))
    assert (np.diff(latency.costs(8)) > 0).all()


def test_inputs_on_another_device(live, images):
    with pytest.raises(ValueError, match="is on cpu, but the network on cuda:0"):
        live(images[0])


@pytest.mark.parametrize("name", policies())
def test_one_wait_for_each_exit(name):
    live, x = make_live(policies()[name], device=GPU)
    live(x), live(x)
    n_exits_in_use = (live.policy.thresholds_ < np.inf).sum()
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            live(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{wait.filename}:{wait.lineno}" for wait in waits if "called a synchronizing" in str(wait.message)]
    assert len(waits) <= n_exits_in_use, waits
