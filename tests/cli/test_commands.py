"""The commands from a network to a file of ONNX: the session of the guide, JSON, errors and exit statuses."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import joblib
import numpy as np
import pandas as pd
import pytest
from command_line import run_json

from skexit import ThresholdPolicy
from skexit.cli import main
from skexit.cli._main import skexit
from skexit.metrics import daily_savings

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "command_line.rst"


def blocks(kind):
    """The code blocks of the page, of a language."""
    found = re.findall(rf"\.\. code-block:: {kind}\n\n((?:   .*\n|\n)+)", PAGE.read_text(encoding="utf-8"))
    return [textwrap.dedent(block).strip() + "\n" for block in found]


def all_commands():
    """Every command with its words, those of groups within too."""
    for name, command in skexit.commands.items():
        if isinstance(command, click.Group):
            yield from (([name, inner], each) for inner, each in command.commands.items())
        else:
            yield [name], command


#: Commands of the guide that run in a process of their own, in a folder that has only files of other processes. The
#: others share a process, because each new one imports torch again.
IN_PROCESSES_OF_THEIR_OWN = ("skexit extract my_network:test", "skexit predict")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_session_of_the_guide(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_network.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_network", raising=False)
    lines = "".join(blocks("sh")).splitlines()
    for line in lines:
        arguments = shlex.split(line)[1:]
        if line.startswith(IN_PROCESSES_OF_THEIR_OWN):
            command = [sys.executable, "-m", "skexit.cli", *arguments]
            ended = subprocess.run(command, capture_output=True, text=True)
            status, errors = ended.returncode, ended.stderr
        else:
            status, errors = main(arguments), capsys.readouterr().err
        assert status == 0, (line, errors)
        assert "Traceback" not in errors
    assert sum(line.startswith(IN_PROCESSES_OF_THEIR_OWN) for line in lines) == len(IN_PROCESSES_OF_THEIR_OWN)
    written = {"cache", "cache-test", "policy.joblib", "report.html", "network.onnx", "predictions.csv"}
    assert written < set(os.listdir(tmp_path))

    from skexit.runtime import OnnxEarlyExit

    exported = OnnxEarlyExit("network.onnx").predict(sys.modules["my_network"].x[1400:].numpy())
    predictions = pd.read_csv("predictions.csv")
    assert np.mean(exported.exits == predictions["exit"]) > 0.99  # scores within rounding of a threshold may differ
    assert np.mean(exported.labels == predictions["label"]) > 0.99


def test_savings_are_those_of_the_guide(capsys):
    line = next(line for block in blocks("sh") for line in block.splitlines() if line.startswith("skexit savings"))
    assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out == blocks("text")[0]
    printed = run_json(capsys, *shlex.split(line)[1:])
    expected = daily_savings([0.25, 1], [0.6, 0.4], accuracies=[0.97, 0.85], samples_per_day=1e6, network_ms=20)
    assert printed["hours"] == pytest.approx(expected.hours)
    assert printed["accuracy"] == pytest.approx(expected.accuracy)
    assert printed["money"] is None


def test_fit_is_that_of_python(folder, data, capsys):
    X, y = data
    printed = run_json(capsys, "fit", "cache", "--policy", "max_prob", "--budget", "0.7", "--out", "new.joblib")
    expected = ThresholdPolicy(budget=0.7).fit(X, y)
    fitted = joblib.load("new.joblib")
    np.testing.assert_array_equal(fitted.predict_exit(X), expected.predict_exit(X))
    assert printed["mean_cost"] == pytest.approx(0.7, abs=0.01)
    assert printed["exit_distribution"] == pytest.approx(expected.exit_distribution_)
    assert not list(folder.glob(".new*")), "nothing is left of the part of the file"


@pytest.mark.parametrize("name", ["entropy", "margin", "stopping", "em", "eenet", "jei", "recommended"])
@pytest.mark.slow
def test_every_policy_is_fitted(folder, capsys, name):
    assert 0 < run_json(capsys, "fit", "cache", "--policy", name, "--budget", "0.8")["mean_cost"] < 1
    assert run_json(capsys, "evaluate", "cache", "policy.joblib")["accuracy"] > 1 / 3


def test_evaluate_is_what_python_computes(folder, data, capsys):
    X, y = data
    policy = joblib.load("policy.joblib")
    printed = run_json(capsys, "evaluate", "cache", "policy.joblib", "--per-day", "3.6e6", "--network-ms", "10")
    assert printed["accuracy"] == pytest.approx(policy.score(X, y))
    assert printed["mean_cost"] == pytest.approx(policy.mean_cost(X))
    assert printed["compute_saved"] == pytest.approx(1 - policy.mean_cost(X))
    network = np.mean(X.logits(2).argmax(axis=1) == y)
    assert printed["network_accuracy"] == pytest.approx(network)
    assert printed["accuracy_lost"] == pytest.approx(network - policy.score(X, y))
    low, high = printed["accuracy_lost_interval"]
    assert low <= printed["accuracy_lost"] <= high
    assert printed["hours"] == pytest.approx(10 * (1 - policy.mean_cost(X)))
    assert [row["samples"] for row in printed["exits"]] == np.bincount(policy.predict_exit(X)).tolist()
    assert main(["evaluate", "cache", "policy.joblib", "--per-day", "1e6", "--network-ms", "10"]) == 0
    text = capsys.readouterr().out
    assert f"saves          {100 * printed['compute_saved']:.1f} % of compute" in text
    assert "In batches, early exits save less time than operations" in text


def test_several_policies_in_one_table(folder, capsys):
    options = ["--per-day", "3.6e6", "--network-ms", "10"]
    alone = {name: run_json(capsys, "evaluate", "cache", f"{name}.joblib", *options) for name in ("policy", "static")}
    printed = run_json(capsys, "evaluate", "cache", "policy.joblib", "static.joblib", *options)
    assert printed == {"policies": [{"policy": name} | facts for name, facts in alone.items()]}
    assert main(["evaluate", "cache", "policy.joblib", "static.joblib", *options]) == 0
    header, *rows = capsys.readouterr().out.splitlines()[:3]
    assert re.split("  +", header.strip()) == [
        "policy",
        "accuracy",
        "95 % interval",
        "points of difference",
        "mean cost",
        "hours per day",
    ]
    for row, (name, facts) in zip(rows, alone.items(), strict=True):
        cells = re.split("  +", row.strip())
        assert cells[:2] == [name, f"{100 * facts['accuracy']:.1f} %"]
        assert cells[3:5] == [f"{-100 * facts['accuracy_lost']:+.1f}", f"{100 * facts['mean_cost']:.1f} %"]
    assert main(["evaluate", "cache", "policy.joblib", "static.joblib", "--live-ms", "3"]) == 2
    assert "--live-ms is the time of one policy; evaluate each policy alone" in capsys.readouterr().err


def test_predict_needs_no_labels(folder, data, capsys):
    X, _ = data
    policy = joblib.load("policy.joblib")
    printed = run_json(capsys, "predict", "unlabelled", "policy.joblib")
    np.testing.assert_array_equal(printed["label"], policy.predict(X))
    np.testing.assert_array_equal(printed["exit"], policy.predict_exit(X))
    assert printed["probability"] == pytest.approx(policy.predict_proba(X).max(axis=1))
    assert main(["predict", "unlabelled", "policy.joblib", "--out", "p.csv"]) == 0
    assert capsys.readouterr().out == "p.csv: 400 rows\n"
    assert pd.read_csv("p.csv", index_col="row")["label"].tolist() == printed["label"]


def test_calibrate_writes_a_copy(folder, data, capsys):
    X, y = data
    before = Path("policy.joblib").read_bytes()
    printed = run_json(capsys, "calibrate", "cache", "policy.joblib")
    expected = joblib.load("policy.joblib").calibrate(X, y)
    assert printed["temperatures"] == pytest.approx(expected.temperatures_)
    assert joblib.load("calibrated.joblib").predict_set(X[:5]).shape == (5, 3)
    assert Path("policy.joblib").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fit file", "fit: error: 'file' is a file; a cache is a folder"),
        ("cache info file", "cache info: error: 'file' is a file; a cache is a folder"),
        ("cache verify file", "cache verify: error: 'file' is a file"),
        ("evaluate cache cache", "evaluate: error: 'cache' is a cache; a policy is a file"),
        ("evaluate cache .", "evaluate: error: '.' is a folder; a policy is a file"),
        ("predict cache file", "predict: error: 'file' cannot be loaded"),
        ("predict cache absent", "No such file or directory: 'absent'"),
        ("fit absent", "absent': it has no manifest.json"),
        ("fit cache --out cache", "--out 'cache' is a folder; give the name of a file"),
        ("fit cache --out absent/policy.joblib", "there is no folder 'absent'"),
        ("fit cache --budget 3", "budget=3.0"),
        ("fit unlabelled", "has no labels, which a fit needs"),
        ("evaluate unlabelled policy.joblib", "has no labels, which an evaluation needs"),
        ("calibrate unlabelled policy.joblib", "has no labels, which calibration needs"),
        ("report cache policy.joblib --out cache", "--out 'cache' is a folder"),
        ("predict cache policy.joblib --out cache", "--out 'cache' is a folder"),
        ("evaluate cache policy.joblib --per-day -1", "samples_per_day=-1.0 must be"),
        ("savings --exit 0.5:60", "exit_distribution=[60.0] must be shares"),
        ("extract made:make --out file", "--out 'file' is a file; a cache is a folder"),
        ("extract absent_module:make --out new", "there is no module 'absent_module' in"),
        ("extract made:absent --out new", "the module 'made' has no function 'absent'"),
        (
            "extract made:text --out new",
            "made:text returned an object of type str; it must return a network and a loader",
        ),
        ("extract made:number --out new", "made:number returned a loader of type int"),
        ("extract made:fail --out new", "made:fail raised ZeroDivisionError: division by zero"),
        ("extract made:empty --out new", "loader is empty; give at least one batch"),
        ("extract broken:make --out new", "importing 'broken' raised NameError: name 'undefined' is not defined"),
        ("export made:make cache policy.joblib", "does not say which exits it has"),
        ("latency made:make cache policy.joblib", "pass it to export_onnx or measure_latency."),
        ("latency made:make cache policy.joblib --out cache", "--out 'cache' is a folder"),
        ("fit cache --latency absent.json", "No such file or directory: 'absent.json'"),
        ("export made:make file policy.joblib", "'file' is a file; a cache is a folder"),
    ],
)
def test_errors_of_input_are_one_line(folder, capsys, arguments, message):
    Path("made.py").write_text(
        "import torch\n\ndef text():\n    return 'no'\n\ndef number():\n    return torch.nn.ReLU(), 3\n\n"
        "def fail():\n    1 / 0\n\ndef empty():\n    return torch.nn.Sequential(torch.nn.ReLU()), []\n\n"
        "def make():\n    return torch.nn.Sequential(torch.nn.ReLU()), [torch.ones(2, 2)]\n",
        encoding="utf-8",
    )
    Path("broken.py").write_text("undefined\n", encoding="utf-8")
    sys.modules.pop("made", None)
    assert main(arguments.split()) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("skexit ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Usage: skexit"),
        ("absent", "No such command 'absent'"),
        ("fit", "Missing argument 'CACHE'"),
        ("fit cache --budget half", "'half' is not a valid float"),
        ("fit cache --policy best", "'best' is not one of"),
        ("extract made:make", "Missing option '--out'"),
        ("extract made.py:make --out new", "'my_network:make' for the function make in my_network.py"),
        ("extract made --out new", "must be MODULE:FUNCTION"),
        ("extract made:make --out new --exit 1 --n-exits 2", "give one of the two"),
        ("latency made:make cache policy.joblib --batch-size 0", "0 is not in the range x>=1"),
        ("fit cache --latency latency.json --batch-size 0", "0 is not in the range x>=1"),
        ("savings --exit half", "'half' must be COST:SHARE"),
        ("report cache", "Missing argument 'POLICY...'"),
    ],
)
def test_errors_of_usage(folder, capsys, arguments, message):
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err


@pytest.mark.parametrize(("words", "command"), [(words, each) for words, each in all_commands()])
def test_help_shows_an_example_that_parses(capsys, words, command):
    assert main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example:\n  {command.example}\n" in text
    assert "--json" in text
    assert shlex.split(command.example)[: 1 + len(words)] == ["skexit", *words]
    command.make_context("skexit", shlex.split(command.example)[1 + len(words) :])


@pytest.mark.filterwarnings("default:take care")
def test_warnings_are_one_line(folder, capsys, monkeypatch):
    from skexit.utils._warnings import warn

    monkeypatch.setattr("skexit.cli._policies.save_policy", lambda policy, out: warn("take care\x1b[31m"))
    assert main(["fit", "cache", "--policy", "max_prob"]) == 0
    assert capsys.readouterr().err == "skexit fit: warning: take care\\x1b[31m\n"


def test_a_defect_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setattr("skexit.cli._policies.save_policy", lambda policy, out: {}["defect"])
    with pytest.raises(KeyError, match="defect"):
        main(["fit", "cache", "--policy", "max_prob"])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent in another way there")
def test_interrupted_quietly_and_continued(tmp_path):
    (tmp_path / "slow_loader.py").write_text(
        textwrap.dedent("""
            import os, signal, torch

            signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it

            class Loader:
                def __iter__(self):
                    for batch in range(4):
                        if batch == 2 and not os.path.exists("interrupted"):
                            open("interrupted", "w").close()
                            os.kill(os.getpid(), signal.SIGINT)
                        yield torch.full((3, 4), float(batch)), torch.tensor([0, 1, 2])

            def make():
                torch.manual_seed(0)
                return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)), Loader()
        """),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "skexit.cli", "extract", "slow_loader:make", "--out", "cache", "--exit", "0"]
    command += ["--exit", "1", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode in (130, -signal.SIGINT)
    assert (ended.stdout, ended.stderr.strip()) == ("", "")
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["rows"] == 12
