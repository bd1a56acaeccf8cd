from itertools import count, pairwise

import numpy as np
import pytest
import torch
from live_networks import make_live, make_token_live

from skexit import OptimalStoppingPolicy, ThresholdPolicy
from skexit.runtime import OnnxEarlyExit, measure_onnx_latency, pruned

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture
def exits_run(monkeypatch):
    """Exits at which the rows of each call left."""
    found, predict = [], OnnxEarlyExit.predict

    def watched(self, *inputs, **named_inputs):
        output = predict(self, *inputs, **named_inputs)
        found.append(output.exits)
        return output

    monkeypatch.setattr(OnnxEarlyExit, "predict", watched)
    return found


@pytest.mark.slow
def test_all_rows_run_to_each_exit_whichever_the_policy_uses(exits_run):
    live, x = make_live(OptimalStoppingPolicy(0.8, random_state=0), thresholds={1: np.inf})
    before = live(x)
    latency = measure_onnx_latency(live, (5, 2), example_input=x[:1], n_repeats=3)
    assert latency.batch_sizes.tolist() == [2, 5]
    assert latency.stage_ms.shape == latency.exit_ms.shape == latency.spread_ms.shape == (2, 4)
    assert {(len(exits), *exits) for exits in exits_run} == {(n, *[k] * n) for n in (2, 5) for k in range(4)}
    assert live(x).exits.equal(before.exits)  # the live network is as it was
    for size in (1, 2, 5):
        assert all(earlier <= later for earlier, later in pairwise(latency.costs(size)))
    assert (latency.exit_ms >= 0).all()
    assert (latency.network_ms > 0).all()
    assert latency.layout(live.policy.layout_, 5).cost_unit == "ms"
    pruned(live.policy, latency, batch_size=2)


@pytest.mark.slow
def test_inputs_by_name():
    live, draw = make_token_live(ThresholdPolicy(budget=0.8))
    latency = measure_onnx_latency(live, (3,), example_input=draw(4, 7), n_repeats=1)
    assert latency.stage_ms.shape == (1, 2)


@pytest.mark.slow
def test_by_the_clock_of_the_thread(monkeypatch):
    readings = count()
    monkeypatch.setattr("time.thread_time", lambda: next(readings) / 1000)  # a millisecond passes between readings
    live, x = make_live(ThresholdPolicy(budget=0.8))
    latency = measure_onnx_latency(live, (1,), example_input=x[:1], n_repeats=1, clock="processor")
    assert latency.network_ms[0] == pytest.approx(1)
    assert latency.stage_ms.sum() + latency.exit_ms.sum() == pytest.approx(1, rel=1e-4)
    with pytest.raises(ValueError, match=r"^clock='cpu' must be 'wall' or 'processor'\.$"):
        measure_onnx_latency(live, (1,), example_input=x[:1], clock="cpu")


@pytest.mark.slow
def test_what_all_exits_take_is_shared_out(monkeypatch):
    # The plain network takes 16 ms, and 4, 8, 14 and 22 ms pass until all have left.
    durations = iter([16.0, 4.0, 8.0, 14.0, 22.0] * 3)
    monkeypatch.setattr("skexit.runtime._onnx_latency._time", lambda call, clock: next(durations))
    live, x = make_live(ThresholdPolicy(budget=0.8))
    latency = measure_onnx_latency(live, (1,), example_input=x[:1], n_repeats=1)
    np.testing.assert_allclose(latency.exit_ms, [[2, 2, 2, 0]], rtol=1e-4)
    np.testing.assert_allclose(latency.stage_ms, [[2, 2, 4, 8]], rtol=1e-4)
    np.testing.assert_allclose(latency.costs(1), [4, 8, 14, 22], rtol=1e-4)
    assert latency.network_ms.tolist() == [16]


@pytest.mark.slow
def test_costs_rise_whatever_the_noise(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr("skexit.runtime._onnx_latency._time", lambda call, clock: rng.lognormal(sigma=1.5))
    live, x = make_live(ThresholdPolicy(budget=0.8))
    sizes = range(1, 101)
    latency = measure_onnx_latency(live, sizes, example_input=x[:1], n_repeats=1)
    for size in sizes:
        assert (np.diff(latency.costs(size)) > 0).all()
        latency.layout(live.policy.layout_, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sizes": (0, 4)}, "must be one or more positive integers"),
        ({"n_repeats": 0}, "n_repeats=0 must be at least 1"),
        ({"example_input": torch.zeros(1, 5)}, r"prepared for"),
    ],
)
def test_bad_input(arguments, message):
    live, x = make_live(ThresholdPolicy(budget=0.8))
    with pytest.raises(ValueError, match=message):
        measure_onnx_latency(live, **{"example_input": x[:1]} | arguments)
