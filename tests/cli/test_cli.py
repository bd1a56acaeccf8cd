"""The command line, run as a user runs it."""

import subprocess
import sys

import joblib
import pandas as pd
import pytest

from skexit import FeatureCache, __version__
from skexit.cli import main


@pytest.mark.slow
def test_demo(tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "skexit.cli", "demo", "--out", str(out), "--seed", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    results = pd.read_csv(out / "results.csv")

    assert "the reloaded" not in printed
    assert "0 leave at another exit and 0 have another label" in printed
    for method in results["method"].unique():
        assert method in printed
    fixed_budget = results.dropna(subset="budget")
    assert set(fixed_budget["budget"]) == {0.4, 0.5, 0.6, 0.7, 0.8, 0.9}
    difference = fixed_budget["cost"] - fixed_budget["budget"]
    assert (difference < 0.1).all()
    # The network's last exit is not its best, and optimal stopping does not pay for harm.
    assert (difference[fixed_budget["method"] != "optimal stopping"] > -0.1).all()
    learned = results[results["method"] == "EM routing"].set_index("budget")["accuracy"]
    chance = results[results["method"] == "random"].set_index("budget")["accuracy"]
    # The larger the budget, the more samples get to the last exit either way. The network, and with it what is
    # left of the difference there, is not the same on every processor: two standard errors are .02.
    assert (learned - chance).mean() > 0.02
    assert (learned > chance - 0.02).all()
    assert (learned > chance)[:3].all()
    assert (out / "accuracy_cost.png").read_bytes().startswith(b"\x89PNG")

    test = FeatureCache(out / "cache-test")
    pipeline = joblib.load(out / "policy.joblib")
    assert pipeline.score(test.X, test.y) > 0.85


@pytest.mark.slow
def test_demo_of_few_digits(tmp_path, monkeypatch):
    import skexit.cli._demo as demo

    split = demo._split_digits
    monkeypatch.setattr(demo, "_split_digits", lambda seed: [(images[:150], y[:150]) for images, y in split(seed)])
    monkeypatch.setattr(demo, "_PRICES", (1.0,))
    printed = []
    results = demo.run_demo(tmp_path, report=printed.append)
    assert "0 leave at another exit and 0 have another label" in "".join(printed)
    assert set(results["budget"].dropna()) == {0.4, 0.5, 0.6, 0.7, 0.8, 0.9}
    assert len(pd.read_csv(tmp_path / "results.csv")) == len(results)
    assert (tmp_path / "accuracy_cost.png").read_bytes().startswith(b"\x89PNG")
    pipeline = joblib.load(tmp_path / "policy.joblib")
    assert pipeline.predict(FeatureCache(tmp_path / "cache-test").X).shape == (150,)


def test_quiet_prints_nothing(capsys, tmp_path, monkeypatch):
    import skexit.cli._demo

    monkeypatch.setattr(skexit.cli._demo, "run_demo", lambda out, seed, report: report(f"{out} {seed}"))
    main(["demo", "--quiet", "--out", str(tmp_path)])
    assert capsys.readouterr().out == ""
    main(["demo", "--out", "folder", "--seed", "3"])
    assert capsys.readouterr().out == "folder 3\n"


def test_demo_without_the_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo"]) == 1
    message = "skexit demo draws with matplotlib, which is not installed: pip install 'skexit[demo]'"
    assert capsys.readouterr().err == f"skexit demo: error: {message}\n"
    assert not list(tmp_path.iterdir())


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"skexit {__version__}\n"


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "demo" in capsys.readouterr().err
