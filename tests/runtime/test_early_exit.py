"""The live network answers as the policy does on the cache, and stops where it says."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import POLICIES
from live_networks import make_live, policies
from sklearn.base import clone
from torch import nn
from torch.overrides import TorchFunctionMode

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    OptimalStoppingPolicy,
    StaticExit,
    ThresholdPolicy,
    recommended_pipeline,
    stack_exits,
)
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, measure_latency

EXITS = ["0", "1", "2", "3"]


def make_network(seed=0):
    torch.manual_seed(seed)

    def block(n_in, n_out):
        return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))

    blocks = [block(1, 8), block(8, 8), block(8, 16), block(16, 16)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(240, 1, 8, 8, generator=generator)
    noise = torch.randn(240, generator=generator)
    return x, (x.mean((1, 2, 3)) * 8 + noise).clamp(-1, 1).round().long() + 1


@pytest.fixture(scope="module")
def cache(network, images, tmp_path_factory):
    return ExitExtractor(network, EXITS).extract([images], tmp_path_factory.mktemp("live") / "cache")


@pytest.fixture
def calls(network):
    """How many samples each block saw."""
    counts = Counter()
    hooks = [
        network[k].register_forward_hook(lambda module, args, output, k=k: counts.update({k: len(args[0])}))
        for k in range(len(network))
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def assert_same(output, policy, X):
    """Equal answers; a row or two may leave elsewhere if a score is within rounding of its threshold."""
    same = np.asarray(output.exits) == policy.predict_exit(X)
    finite = np.isfinite(policy.thresholds_)
    thresholds = policy.thresholds_[finite]
    distance = np.abs(policy.exit_scores(X)[~same][:, finite] - thresholds) / np.maximum(1, np.abs(thresholds))
    assert (~same).sum() <= 2
    assert (distance < 1e-5).any(axis=1).all()
    np.testing.assert_array_equal(np.asarray(output.labels)[same], policy.predict(X)[same])
    np.testing.assert_allclose(output.probabilities[same], policy.predict_proba(X)[same], atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: str(policy).replace("\n", "")[:60])
@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data", "ignore:no budget qualifies")
def test_answers_as_on_the_cache(policy, network, images, cache):
    policy = clone(policy).fit(cache.X, cache.y)
    live = EarlyExitModel(network, EXITS, policy, example_input=images[0][:1])
    assert_same(live(images[0]), policy, cache.X)


@pytest.mark.parametrize(("confidence_weight", "read"), [(np.inf, False), (0, True)])
def test_features_are_read_where_routers_are_used(confidence_weight, read, monkeypatch):
    policy = EMExitAssigner(budget=0.7, confidence_weight=confidence_weight, max_epochs=1, random_state=0)
    score, seen = EMExitAssigner.score_exit, []

    def spy(self, k, logits, features, memory):
        seen.append(features is not None)
        return score(self, k, logits, features, memory)

    monkeypatch.setattr(EMExitAssigner, "score_exit", spy)
    make_live(policy)  # the last calls record the exits
    assert set(seen[-2:]) == {read}


def test_pipelines_heads_and_calibration(network, images, cache):
    X, y = cache.X, cache.y
    pipeline = recommended_pipeline(0.6, random_state=0)
    pipeline.set_params(ensemble__heads__hidden_layer_sizes=(8,), ensemble__heads__max_epochs=3).fit(X, y)
    live = EarlyExitModel(network, EXITS, pipeline, example_input=images[0][:1])
    transformed = pipeline[:-1].transform(X)
    assert_same(live(images[0]), pipeline[-1], transformed)
    heads = ExitEnsemble(ExitHeads(random_state=0)).fit(X, y)
    policy = ThresholdPolicy(budget=0.7).fit(heads.transform(X), y).calibrate(heads.transform(X), y)
    live = EarlyExitModel(network, EXITS, policy, heads, example_input=images[0][:1])
    assert_same(live(images[0]), policy, heads.transform(X))
    assert (policy.temperatures_ != 1).any()


def test_a_later_fit_changes_nothing(network, images, cache):
    """Also before the network has been divided, at the first input."""
    heads, policy = ExitHeads(random_state=0).fit(cache.X, cache.y), ThresholdPolicy(budget=0.6)
    policy.fit(heads.transform(cache.X), cache.y)
    live, expected = EarlyExitModel(network, EXITS, policy, heads=heads), policy.predict(heads.transform(cache.X))
    heads.fit(cache.X[:80], (cache.y[:80] + 1) % 3)
    policy.fit(heads.transform(cache.X[:80]), (cache.y[:80] + 1) % 3)
    labels, _, _ = live(images[0])
    assert np.mean(labels.numpy() == expected) > 0.99


def test_first_inputs_in_several_threads(network, images, cache):
    """As in a service that answers each request in a thread: networks are divided one after another."""
    policy = ThresholdPolicy(budget=0.6).fit(ExitHeads(random_state=0).fit_transform(cache.X, cache.y), cache.y)
    heads = ExitHeads(random_state=0).fit(cache.X, cache.y)
    lives = [EarlyExitModel(model, EXITS, policy, heads=heads) for model in (network, make_network(1))]
    expected = [EarlyExitModel(live.model, EXITS, policy, heads=heads)(images[0]).exits for live in lives]
    start = threading.Barrier(6)

    def answer(number):
        start.wait(10)
        return lives[number % 2](images[0]).exits

    with ThreadPoolExecutor(6) as threads:
        for number, exits in enumerate(threads.map(answer, range(6))):
            assert (exits == expected[number % 2]).all()


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.integers(0, 239), min_size=1, max_size=40))
def test_any_batch_in_the_order_of_the_inputs(network, images, cache, rows):
    policy = _stopping(cache)
    live = _live(network, policy, images)
    assert_same(live(images[0][rows]), policy, cache.X[rows])


_fitted = {}


def _stopping(cache):
    if "policy" not in _fitted:
        _fitted["policy"] = OptimalStoppingPolicy(0.6, random_state=0).fit(cache.X, cache.y)
    return _fitted["policy"]


def _live(network, policy, images):
    if "live" not in _fitted:
        _fitted["live"] = EarlyExitModel(network, EXITS, policy, example_input=images[0][:1])
    return _fitted["live"]


class TestStops:
    """Later stages are not called, by the counts of the modules themselves."""

    @pytest.fixture
    def policy(self, cache):
        return ThresholdPolicy(budget=0.6).fit(cache.X, cache.y)

    @pytest.fixture
    def live(self, network, policy, images):
        return EarlyExitModel(network, EXITS, policy, example_input=images[0][:1])

    def test_one_sample(self, live, policy, images, cache, calls):
        exits = policy.predict_exit(cache.X)
        for exit_ in range(4):
            row = int(np.flatnonzero(exits == exit_)[0])
            calls.clear()
            live(images[0][row : row + 1])
            assert [calls[k] for k in range(4)] == [int(k <= exit_) for k in range(4)]

    def test_a_batch_that_all_leaves_at_the_first_exit(self, live, policy, images, cache, calls):
        rows = np.flatnonzero(policy.predict_exit(cache.X) == 0)
        live(images[0][rows])
        assert dict(calls) == {0: len(rows)}

    def test_a_mixed_batch(self, live, policy, images, cache, calls):
        exits = policy.predict_exit(cache.X)
        live(images[0])
        assert [calls[k] for k in range(4)] == [(exits >= k).sum() for k in range(4)]

    def test_heads_of_the_network_are_not_called_either(self, network, images, cache, calls):
        policy = StaticExit(1).fit(cache.X, cache.y)
        output = EarlyExitModel(network, EXITS, policy, example_input=images[0][:1])
        calls.clear()
        output(images[0])
        assert dict(calls) == {0: 240, 1: 240}

    def test_exits_that_are_not_used_are_not_looked_at(self, network, images, cache, monkeypatch):
        policy = ThresholdPolicy(budget=0.6).fit(cache.X, cache.y)
        policy.thresholds_ = np.array([np.inf, policy.thresholds_[1], np.inf, -np.inf])
        live = EarlyExitModel(network, EXITS, policy, example_input=images[0][:1])
        seen = []
        runner = type(live._network.used_exits)
        decide = runner.decide
        monkeypatch.setattr(runner, "decide", lambda self, k, batch: seen.append(k) or decide(self, k, batch))
        assert_same(live(images[0]), policy, cache.X)
        assert seen == [1, 3]

    def test_what_later_exits_need_is_looked_at(self, network, images, cache):
        policy = EENetPolicy(max_epochs=3, random_state=0).fit(cache.X, cache.y)
        policy.thresholds_[:2] = np.inf
        live = EarlyExitModel(network, EXITS, policy, example_input=images[0][:1])
        assert live._network.all_exits.decisions.is_observed == [True] * 4
        assert_same(live(images[0]), policy, cache.X)


def test_one_sample_as_the_example(network, images, cache):
    message = r"shape \(1, 8, 8\), which is that of one sample; .* Pass example_input\[None\]"
    with pytest.raises(ValueError, match=message):
        EarlyExitModel(network, EXITS, _stopping(cache), example_input=images[0][0])


def test_names_of_classes(network, images, cache):
    names = np.array(["cat", "ant", "bee"])
    X = cache.X.with_layout(cache.X.layout.replace(classes=names))
    policy = ThresholdPolicy(budget=0.6).fit(X, names[cache.y])
    output = EarlyExitModel(network, EXITS, policy)(images[0])
    np.testing.assert_array_equal(output.labels, policy.predict(X))
    np.testing.assert_allclose(output.probabilities, policy.predict_proba(X), atol=1e-5)


def test_cut_at_the_first_input(network, images, cache):
    policy = ThresholdPolicy(budget=0.6).fit(cache.X, cache.y)
    assert_same(EarlyExitModel(network, EXITS, policy)(images[0]), policy, cache.X)


def test_after_a_move_and_from_a_file(network, images, cache, tmp_path):
    policy = ThresholdPolicy(budget=0.6).fit(cache.X, cache.y)
    joblib.dump(policy, tmp_path / "policy.joblib")
    live = EarlyExitModel(make_network(), EXITS, joblib.load(tmp_path / "policy.joblib"), example_input=images[0][:1])
    live.load_state_dict(live.state_dict())
    assert_same(live.to("cpu")(images[0]), policy, cache.X)


def test_latency_decides_where_samples_are_taken_out(network, images, cache, calls):
    heads = ExitHeads(distillation=0, random_state=0)
    policy = OptimalStoppingPolicy(0.6, heads=heads, random_state=0).fit(cache.X, cache.y)
    live = EarlyExitModel(network, EXITS, policy, example_input=images[0][:1])
    latency = measure_latency(live, batch_sizes=(1, 16), example_input=images[0][:1], n_repeats=1)
    exits = policy.predict_exit(cache.X)
    for copying, counts in ((0.0, [(exits >= k).sum() for k in range(4)]), (1e9, [240] * 4)):
        latency.compaction_ms[:] = copying
        latency.stage_ms[:] = [[1.0] * 4, [16.0] * 4]
        taking_along = EarlyExitModel(network, EXITS, policy, example_input=images[0][:1], latency=latency)
        calls.clear()
        assert_same(taking_along(images[0]), policy, cache.X)
        assert [calls[k] for k in range(4)] == counts
    # Nobody is taken along when all have left.
    rows = np.flatnonzero(exits == 0)
    calls.clear()
    assert_same(taking_along(images[0][rows]), policy, cache.X[rows])
    assert calls[1] == 0


def test_latency_by_the_clock_of_the_thread(network, images, cache, monkeypatch):
    readings = count()
    monkeypatch.setattr("time.thread_time", lambda: next(readings) / 1000)  # a millisecond passes between readings
    policy = ThresholdPolicy().fit(cache.X, cache.y)
    example = {"example_input": images[0][:1], "policy": policy, "n_repeats": 2}
    latency = measure_latency(network, EXITS, (1, 4), clock="processor", **example)
    for times in (latency.stage_ms, latency.exit_ms, latency.compaction_ms, latency.network_ms):
        np.testing.assert_allclose(times, 1)
    with pytest.raises(ValueError, match=r"^clock='cpu' must be 'wall' or 'processor'\.$"):
        measure_latency(network, EXITS, (1, 4), clock="cpu", **example)


def test_measured_latency(network, images, cache):
    policy = ThresholdPolicy().fit(cache.X, cache.y)
    latency = measure_latency(network, EXITS, (1, 4, 16), example_input=images[0][:2], policy=policy, n_repeats=3)
    assert latency.stage_ms.shape == latency.exit_ms.shape == latency.compaction_ms.shape == (3, 4)
    assert (latency.stage_ms > 0).all()
    assert (latency.exit_ms > 0).all()
    for size in (1, 2, 16, 40):
        assert all(earlier < later for earlier, later in pairwise(latency.costs(size)))
    np.testing.assert_allclose(latency.costs(32), latency.costs(16))
    np.testing.assert_allclose(latency.costs(4) * 4, np.cumsum(latency.stage_ms[1] + latency.exit_ms[1]))
    layout = latency.layout(cache.X.layout, 4)
    # A budget is a part of the time of the network without exits, whatever the exits take.
    assert latency.network_ms.shape == (3,)
    assert (latency.network_ms > 0).all()
    assert layout.network_cost == latency.network_ms[1] / 4
    np.testing.assert_allclose(layout.head_costs * 4, np.cumsum(latency.exit_ms[1]))
    for network_ms in (latency.costs(4)[-1], latency.costs(4)[-1] * 0.9):
        latency.network_ms[1] = network_ms * 4
        X = cache.X.with_layout(latency.layout(cache.X.layout, 4))
        in_ms = ThresholdPolicy(budget=0.8).fit(X, cache.y)
        assert in_ms.exit_distribution_ @ layout.costs == pytest.approx(0.8 * network_ms, rel=0.02)


class TestErrors:
    @pytest.fixture
    def live(self, network, images, cache):
        return EarlyExitModel(network, EXITS, ThresholdPolicy().fit(cache.X, cache.y), example_input=images[0][:1])

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            (
                (torch.zeros(2, 1, 8, 9),),
                r"x has the shape \(2, 1, 8, 9\), but the network was prepared for \(n, 1, 8, 8\)",
            ),
            ((torch.zeros(2, 8, 8),), r"x has the shape \(2, 8, 8\), but"),
            (
                (torch.zeros(2, 1, 8, 8).double(),),
                "x has the type torch.float64, but the network was prepared for torch.float32",
            ),
            ((torch.zeros(2, 1, 8, 8, device="meta"),), "x is on meta, but the network on cpu"),
            ((torch.zeros(0, 1, 8, 8),), "the inputs have no rows"),
            ((torch.zeros(2, 1, 8, 8), torch.zeros(3)), "the inputs have different numbers of rows"),
            (
                ({"pixels": torch.zeros(2, 1, 8, 8)},),
                r"the network was prepared for the inputs \['x'\], but got \['pixels'\]",
            ),
            (("image",), "the network takes a tensor, .* with one row per sample, but got a str"),
            ((), "but got nothing"),
        ],
    )
    def test_inputs(self, live, calls, inputs, message):
        with pytest.raises(ValueError, match=message):
            live(*inputs)
        assert not calls  # nothing ran

    def test_training(self, live):
        with pytest.raises(RuntimeError, match="an EarlyExitModel cannot be trained"):
            live.train()
        assert live.eval() is live
        live.model.train()
        with pytest.raises(RuntimeError, match=r"the network is in training mode; call model\.eval\(\)"):
            live(torch.zeros(2, 1, 8, 8))
        live.model.eval()

    def test_other_exits(self, network, images, cache):
        policy = ThresholdPolicy().fit(cache.X, cache.y)
        with pytest.raises(ValueError, match="the policy was fitted with 4 exits, but exits="):
            EarlyExitModel(network, EXITS[:2], policy)
        with pytest.raises(ValueError, match="exits names 'block', which the network does not have"):
            EarlyExitModel(network, ["0", "1", "2", "block"], policy)

    def test_other_layouts(self, network, images, cache):
        heads = ExitHeads(random_state=0).fit(cache.X, cache.y)
        X = heads.transform(cache.X)
        policy = ThresholdPolicy().fit(stack_exits([X.logits(k) for k in range(4)]), cache.y)
        with pytest.raises(
            ValueError, match="fitted with logits at exit '0', but the network has none of its own there"
        ):
            EarlyExitModel(network, EXITS, policy, example_input=images[0][:1])
        EarlyExitModel(network, EXITS, policy, heads, example_input=images[0][:1])
        X = cache.X.with_layout(cache.layout.replace(pools=None))
        policy = ThresholdPolicy().fit(X, cache.y)
        with pytest.raises(
            ValueError, match=r"exit '0' gives 8 features, but the policy was fitted on 48\. Pass the exits"
        ):
            EarlyExitModel(network, EXITS, policy, pool="avg", example_input=images[0][:1])

    def test_policies(self, network, cache):
        with pytest.raises(ValueError, match="must be a fitted exit policy, or a pipeline that ends with one"):
            EarlyExitModel(network, EXITS, ExitHeads().fit(cache.X, cache.y))
        with pytest.raises(ValueError, match="policy is None; pass a fitted policy"):
            measure_latency(network, EXITS, example_input=torch.zeros(1, 1, 8, 8))
        policy = ThresholdPolicy().fit(cache.X, cache.y)
        with pytest.raises(ValueError, match=r"batch_sizes=\[0, 4\] must be one or more positive integers"):
            measure_latency(network, EXITS, (0, 4), example_input=torch.zeros(1, 1, 8, 8), policy=policy)


class Conversions(TorchFunctionMode):
    """Notes which functions of torch are given arrays of NumPy."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if any(isinstance(argument, np.ndarray) for argument in args):
            self.found.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", policies())
def test_arrays_are_on_the_device_before_samples_come(name):
    live, x = make_live(policies()[name])
    with Conversions() as conversions:
        live(x)
    assert conversions.found == []
