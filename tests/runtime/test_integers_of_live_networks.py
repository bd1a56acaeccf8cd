"""Numbers of exits, rows and repetitions of a live network are integers, not True or False."""

import pytest
import torch
from live_networks import make_live
from messages import exactly

from skexit import ThresholdPolicy
from skexit.backbone import exit_costs, exit_points
from skexit.cache import CacheWriter
from skexit.extraction import ExitExtractor
from skexit.runtime import measure_latency, pruned


@pytest.fixture(scope="module")
def live_and_inputs():
    return make_live(ThresholdPolicy(budget=0.6))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda live, x: live.truncate(True),
            "at_exit=True must be the number of an exit before the last: an integer from 0 to 2.",
        ),
        (
            lambda live, x: live.resume(False),
            "at_exit=False must be the number of an exit before the last: an integer from 0 to 2.",
        ),
        (
            lambda live, x: live.compile_stages([True]),
            "pad_to=[True] must be a sequence of one or more positive integers, the batch sizes.",
        ),
        (
            lambda live, x: live.predict_loader([x], batch_size=True),
            "batch_size=True must be an integer of at least 1.",
        ),
        (
            lambda live, x: measure_latency(live, batch_sizes=[True], example_input=x),
            "batch_sizes=[True] must be one or more positive integers.",
        ),
        (
            lambda live, x: measure_latency(live, batch_sizes=[1], example_input=x, n_repeats=True),
            "n_repeats=True must be an integer of at least 1.",
        ),
        (
            lambda live, x: exit_costs(live.model, live.exits, x, unit="ms", n_repeats=True),
            "n_repeats=True must be an integer of at least 1.",
        ),
        (
            lambda live, x: exit_points(live.model, example_input=x, n_exits=True),
            "n_exits=True must be an integer of at least 1.",
        ),
        (
            lambda live, x: CacheWriter("nowhere", live.policy.layout_, origin={}, shard_rows=True),
            "shard_rows=True must be an integer of at least 1.",
        ),
        (
            lambda live, x: ExitExtractor(live.model, live.exits).extract([x], "nowhere", worker=(False, True)),
            "worker=(False, True) must be None, 'torchrun' or (rank, n_workers) with 0 <= rank < n_workers.",
        ),
    ],
)
def test_bools(live_and_inputs, use, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=exactly(message)):
        use(*live_and_inputs)
    assert not list(tmp_path.iterdir())


def test_the_batch_size_of_measured_times(live_and_inputs):
    live, x = live_and_inputs
    latency = measure_latency(live, batch_sizes=(1, 2), example_input=x[:1], n_repeats=1)
    message = "batch_size=True must be an integer of at least 1."
    for use in (
        lambda: latency.costs(True),
        lambda: latency.layout(live.policy.layout_, True),
        lambda: pruned(live.policy, latency, batch_size=True),
    ):
        with pytest.raises(ValueError, match=exactly(message)):
            use()
    assert torch.as_tensor(latency.costs(1)).shape == (4,)
