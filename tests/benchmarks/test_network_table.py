"""The table of networks: its summary, and the count of operations that costs are compared with."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks.networks import count_exits, measure, summary
from benchmarks.shared.own_exits import network_with_exits

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks" / "networks"


def test_summary_in_docs_is_that_of_the_table_in_docs():
    table = pd.read_csv(FOLDER / "networks.csv", dtype=object)
    pd.testing.assert_frame_equal(summary(table), pd.read_csv(FOLDER / "summary.csv"), check_dtype=False)


def test_summary_counts_what_passes():
    cells = {
        "network": ["a: x", "a: y", "b: z"],
        "exits": ["4", "1", "ValueError: none"],
        "extraction": ["yes", "yes", None],
        "costs": ["0.01", "0.2", None],
        "live": ["yes", "ValueError: not cut", None],
        "agreement": ["1.0", None, None],
        "onnx": ["0.5", None, None],
    }
    counts = summary(pd.DataFrame(cells)).set_index("group")
    assert counts.loc["a"].tolist() == [2, 1, 2, 1, 1, 1, 0]
    assert counts.loc["all"].tolist() == [3, 1, 2, 1, 1, 1, 0]


def test_exits_take_what_runs_before_their_end():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    assert count_exits(network, ["0", "2"], [False, True], torch.zeros(1, 3, 4, 4)).tolist() == [864, 1024]


def test_exits_with_logits_take_their_classifiers():
    network, images = network_with_exits("branchy ResNet", 1)
    exits = [f"blocks.{k}" for k in range(4)]
    with_all = count_exits(network, exits, [True] * 4, images)
    without = count_exits(network, exits, [False] * 4, images)
    assert (with_all - without).tolist() == [80, 160, 240, 320]


def test_failures_are_cells():
    def fails():
        class Fails(nn.Module):
            def forward(self, x):
                raise RuntimeError("this network fails")

        return Fails(), torch.zeros(48, 3)

    assert "this network fails" in measure(fails, onnx=False)["exits"]


@pytest.mark.slow
def test_network_with_exits_passes():
    row = measure(lambda: network_with_exits("branchy ResNet", 48), onnx=False)
    assert row == {"exits": 4, "extraction": "yes", "costs": 0.0, "live": "yes", "agreement": 1.0}
