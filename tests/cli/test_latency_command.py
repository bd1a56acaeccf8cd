"""Times of live networks, measured by ``skexit latency`` and used by ``skexit fit``."""

import json
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from command_line import run_json

from skexit import ThresholdPolicy
from skexit.cli import main

NETWORK = """
import torch

torch.manual_seed(0)
layers = [torch.nn.Sequential(torch.nn.Conv2d(3 if k == 0 else 4, 4, 3, padding=1), torch.nn.ReLU()) for k in range(3)]
network = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
labels = torch.arange(120) % 2
images = torch.randn(120, 3, 8, 8) + labels[:, None, None, None]

def make():
    return network, list(zip(images.split(40), labels.split(40)))
"""


@pytest.fixture
def network_folder(tmp_path, monkeypatch):
    """A folder with a network of three exits, its cache and a policy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "made_for_latency", raising=False)
    Path("made_for_latency.py").write_text(NETWORK, encoding="utf-8")
    extract = "extract made_for_latency:make --out cache --exit 0 --exit 1 --exit 2 --pool avg --pool grid4 --quiet"
    assert main(extract.split()) == 0
    assert main(["fit", "cache", "--policy", "max_prob", "--budget", "0.9"]) == 0
    return tmp_path


def test_pools_are_joined(network_folder):
    import made_for_latency as made

    from skexit import FeatureCache
    from skexit.extraction import ExitExtractor

    by_hand = ExitExtractor(made.network, ["0", "1", "2"], pool=["avg", "grid4"])
    expected = by_hand.extract(made.make()[1], "by-hand", progress=False)
    cache = FeatureCache("cache")
    assert cache.layout.n_features == expected.layout.n_features == (4 + 64,) * 3
    np.testing.assert_array_equal(cache.X.features(1), expected.X.features(1))


def test_latency_is_what_python_computes(network_folder, capsys):
    from skexit import FeatureCache
    from skexit.runtime import ExitLatency

    capsys.readouterr()
    arguments = (
        "latency made_for_latency:make cache policy.joblib --batch-size 4 --batch-size 1 --repeats 2 --one-thread"
    )
    printed = run_json(capsys, *arguments.split(), "--out", "latency.json")
    latency = ExitLatency.from_dict(printed["latency"])
    assert latency.to_dict() == ExitLatency.from_dict(json.loads(Path("latency.json").read_text())).to_dict()
    assert latency.batch_sizes.tolist() == [1, 4]
    expected = latency.expected(joblib.load("policy.joblib"), FeatureCache("cache").X)
    assert (printed["runtime"], printed["rows"]) == ("torch", 120)
    assert pd.DataFrame(printed["expected"]).set_index("batch_size").to_numpy() == pytest.approx(expected.to_numpy())
    assert main(arguments.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Times per sample in torch."
    assert [line.split()[0] for line in lines[3:5]] == ["1", "4"]
    shares = expected.filter(like="share").iloc[0]
    assert f"leave at the exits: {', '.join(f'{100 * share:.1f} %' for share in shares)}" in lines


def test_text_of_latency_tells_the_cure_of_slow_exits():
    from skexit.cli._network import _table_of

    table = pd.DataFrame({"network_ms": [2.0, 1], "live_ms": [1.5, 0.5], "saved": [0.25, 0.5], "exit0_share": 1.0})
    table.index = pd.Index([1, 8])
    fast = _table_of(table, "onnxruntime")
    assert fast.splitlines() == [
        "Times per sample in onnxruntime.",
        "",
        "batch size  plain network  live network   saved",
        "         1           2 ms        1.5 ms  25.0 %",
        "         8           1 ms        0.5 ms  50.0 %",
        "",
        "leave at the exits: 100.0 %",
    ]
    assert "skexit fit --latency" in _table_of(table.assign(saved=[0.1, -0.1]), "torch")


@pytest.mark.slow
def test_latency_of_onnx(network_folder, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    capsys.readouterr()
    arguments = "latency made_for_latency:make cache policy.joblib --batch-size 2 --repeats 1 --one-thread --onnx"
    printed = run_json(capsys, *arguments.split())
    assert printed["runtime"] == "onnxruntime"
    assert printed["expected"][0]["live_ms"] > 0


def write_latency(path, decisions):
    from skexit.runtime import ExitLatency

    stages = np.array([[1.0, 4, 4], [4, 16, 16]])
    own = np.array([decisions, decisions])
    latency = ExitLatency(np.array([1, 8]), stages, own, 0 * stages, 0 * stages, np.array([9.0, 36]))
    Path(path).write_text(json.dumps(latency.to_dict()), encoding="utf-8")
    return latency


def test_fit_with_a_latency_is_that_of_python(folder, data, capsys):
    from skexit.runtime import pruned

    X, y = data
    latency = write_latency("latency.json", [0.1, 8.0, 0])
    fit = "fit cache --policy max_prob --budget 0.8 --latency latency.json --batch-size 8"
    printed = run_json(capsys, *fit.split())
    fitted = joblib.load("policy.joblib")
    expected = pruned(ThresholdPolicy(budget=0.8).fit(X.with_layout(latency.layout(X.layout, 8)), y), latency, 8)
    np.testing.assert_allclose(fitted.thresholds_, expected.thresholds_, rtol=1e-5)  # the cache is in single precision
    assert np.isposinf(fitted.thresholds_[1]), "its decision takes longer than all stages"
    assert fitted.layout_.cost_unit == "ms"
    assert printed["mean_cost"] == pytest.approx(expected.exit_distribution_ @ expected.costs_)
    assert run_json(capsys, "evaluate", "cache", "policy.joblib")["accuracy"] == pytest.approx(fitted.score(X, y))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "cannot be read: Expecting value"),
        ("3", "cannot be read: "),
        ('{"stage_ms": []}', "cannot be read: times has no batch_sizes, exit_ms"),
    ],
)
def test_files_that_are_no_latency(folder, capsys, text, message):
    Path("latency.json").write_text(text, encoding="utf-8")
    assert main(["fit", "cache", "--latency", "latency.json"]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert "Give a file that skexit latency --out wrote." in printed
    assert printed.count("\n") == 1


def test_a_latency_of_other_exits(folder, capsys):
    from skexit.runtime import ExitLatency

    one = np.ones((1, 2))
    latency = ExitLatency(np.array([1]), one, one, one, one, np.array([2.0]))
    Path("latency.json").write_text(json.dumps(latency.to_dict()), encoding="utf-8")
    assert main(["fit", "cache", "--latency", "latency.json"]) == 1
    assert "the layout has 3 exits, but latency has 2. Measure a live network with" in capsys.readouterr().err
