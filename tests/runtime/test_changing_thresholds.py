"""Thresholds that change while a network runs, as a controller changes them."""

import numpy as np
import pytest
import torch
from torch import nn

from skexit import EENetPolicy, ExitHeads, OptimalStoppingPolicy, ThresholdPolicy, make_exit_pipeline
from skexit.extraction import ExitExtractor
from skexit.monitoring import BudgetController
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx
from skexit.utils._warnings import silenced

EXITS = ["1", "3", "5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    torch.manual_seed(0)
    widths = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 3)]
    network = nn.Sequential(*widths).eval()
    y = torch.arange(600) % 3
    inputs = torch.randn(600, 8) + 1.5 * nn.functional.one_hot(y, 8)
    cache = ExitExtractor(network, EXITS).extract([(inputs, y)], tmp_path_factory.mktemp("thresholds") / "cache")
    return network, inputs, cache


def live_of(data, policy):
    network, inputs, cache = data
    with silenced():
        pipeline = make_exit_pipeline(ExitHeads(random_state=0), policy).fit(cache.X, cache.y)
    return pipeline, EarlyExitModel(network, EXITS, pipeline, example_input=inputs[:1])


POLICIES = [
    ThresholdPolicy(budget=0.6),
    OptimalStoppingPolicy(budget=0.6, random_state=0),
    EENetPolicy(budget=0.6, random_state=0),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_live_network_follows(data, policy):
    pipeline, live = live_of(data, policy)
    _, inputs, cache = data
    before = live(inputs).exits.numpy()
    for budget in (0.4, 0.8):
        with silenced():
            other = pipeline.with_budget(budget)
        live.thresholds = other.thresholds_
        np.testing.assert_array_equal(live.thresholds[:-1], other.thresholds_[:-1])
        assert (live(inputs).exits.numpy() == other.predict_exit(cache.X)).mean() > 0.99
    live.thresholds = pipeline.thresholds_
    np.testing.assert_array_equal(live(inputs).exits.numpy(), before)


def test_all_leave_or_none(data):
    _, live = live_of(data, POLICIES[0])
    live.thresholds = [-np.inf, -np.inf, -np.inf]
    assert (live(data[1]).exits == 0).all()
    live.thresholds = [np.inf, np.inf, -np.inf]
    assert (live(data[1]).exits == 2).all()


@pytest.mark.slow
def test_compiled_network_follows(data):
    pipeline, live = live_of(data, POLICIES[0])
    live.compile_stages(pad_to=(64,), backend="aot_eager")
    first = live(data[1]).exits.numpy()
    other = pipeline.with_budget(0.8)
    live.thresholds = other.thresholds_
    exits = live(data[1]).exits.numpy()
    assert (exits == other.predict_exit(data[2].X)).mean() > 0.99
    assert (exits != first).any()


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_onnx_file_follows(data, policy, tmp_path):
    pipeline, live = live_of(data, policy)
    inputs = data[1].numpy()
    exported = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx", thresholds_as_input=True))
    assert exported.thresholds is None
    before = exported.predict(inputs).exits
    with silenced():
        other = pipeline.with_budget(0.8)
    exported.thresholds = other.thresholds_
    assert (exported.predict(inputs).exits == other.predict_exit(data[2].X)).mean() > 0.99
    exported.thresholds = None
    np.testing.assert_array_equal(exported.predict(inputs).exits, before)


@pytest.mark.slow
def test_a_file_with_fixed_thresholds(data, tmp_path, capfd):
    pipeline, live = live_of(data, POLICIES[0])
    exported = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx"))
    assert capfd.readouterr().err == ""  # onnxruntime has nothing to warn of
    with pytest.raises(ValueError, match="thresholds_as_input=True"):
        exported.thresholds = pipeline.thresholds_


def test_controller_drives_a_live_network(data):
    pipeline, live = live_of(data, POLICIES[0])
    controller = BudgetController(pipeline, step=0.05)
    for batch in (0.7 * data[1]).split(10):  # inputs on which exits are less confident
        live.thresholds = controller.thresholds
        controller.update(live(batch).exits)
    assert abs(controller.mean_cost - 0.6) <= min(controller.bound, 0.03)


@pytest.mark.parametrize("thresholds", [[0.0], [0, np.nan, 0], [[0, 0, 0]]])
def test_wrong_thresholds(data, thresholds):
    _, live = live_of(data, POLICIES[0])
    with pytest.raises(ValueError, match="must be one number for each of the 3 exits"):
        live.thresholds = thresholds


def test_thresholds_before_the_network_is_divided(data):
    network, _, _ = data
    pipeline, _ = live_of(data, POLICIES[0])
    live = EarlyExitModel(network, EXITS, pipeline)
    np.testing.assert_array_equal(live.thresholds, pipeline.thresholds_)
    with pytest.raises(RuntimeError, match="call prepare"):
        live.thresholds = pipeline.thresholds_
