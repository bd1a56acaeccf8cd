"""The command line, run as a user runs it."""

import re
import subprocess
import sys

import joblib
import pandas as pd
import pytest

import skexit.cli._demo
from skexit import FeatureCache, __version__, recommended_pipeline
from skexit.cli import main
from skexit.cli._demo import run_demo


@pytest.mark.slow
def test_demo(tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "skexit.cli", "demo", "--full", "--out", str(out), "--seed", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    results = pd.read_csv(out / "results.csv")

    n_same, n_rows = re.search(r"(\d+) of (\d+) test digits have the exit and the label", printed).groups()
    assert n_same == n_rows == "597"
    by_method = {name: rows.set_index("budget") for name, rows in results.groupby("method")}
    assert all(name in printed for name in by_method if name != "fixed exits")
    for name, rows in by_method.items():
        if name != "fixed exits":
            assert list(rows.index) == [0.1, 0.15, 0.2, 0.3, 0.5, 0.7]
            assert (rows["cost"] - rows.index < 0.1).all()
    # The network is not the same on every processor: two standard errors are .03.
    recommended, single = by_method["recommended"], by_method["fixed exits"]["accuracy"].to_numpy()
    assert recommended["accuracy"][0.2] > single[-1] - 0.03
    assert (recommended["accuracy"][0.3:] > by_method["random"]["accuracy"][0.3:] - 0.01).all()
    assert recommended["accuracy"][0.2] > by_method["random"]["accuracy"][0.2] + 0.02
    assert ((results["low"] <= results["accuracy"]) & (results["accuracy"] <= results["high"])).all()

    assert (out / "accuracy_cost.png").read_bytes().startswith(b"\x89PNG")
    assert "recommended" in (out / "report.html").read_text(encoding="utf-8")
    test = FeatureCache(out / "cache-test")
    pipeline = joblib.load(out / "policy.joblib")
    assert pipeline.score(test.X, test.y) == pytest.approx(recommended["accuracy"][0.2])


def recommended_with_few_epochs(**parameters):
    return recommended_pipeline(**parameters).set_params(ensemble__heads__max_epochs=2)


@pytest.mark.slow
def test_demo_of_few_digits(tmp_path, monkeypatch):
    import skexit.cli._demo_live as demo_live
    import skexit.cli._demo_methods as demo_methods
    import skexit.cli._digits_network as digits

    split = digits.split_digits
    monkeypatch.setattr(
        digits, "split_digits", lambda seed: [digits.Digits(rows.images[:150], rows.y[:150]) for rows in split(seed)]
    )
    monkeypatch.setattr(demo_live, "_N_ALONE", 2)
    monkeypatch.setattr(demo_live, "_N_RUNS", 1)
    monkeypatch.setattr(demo_methods, "recommended_pipeline", recommended_with_few_epochs)
    printed = []
    results = run_demo(tmp_path, report=printed.append)
    assert "150 of 150 test digits have the exit" in "".join(printed)
    assert set(results["method"]) == {"recommended", "maximum probability", "fixed exits"}
    pipeline = joblib.load(tmp_path / "policy.joblib")
    assert pipeline.predict(FeatureCache(tmp_path / "cache-test").X).shape == (150,)


def test_options_of_the_demo(capsys, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        skexit.cli._demo, "run_demo", lambda out, **options: calls.append((out, options)) or pd.DataFrame()
    )
    main(["demo", "--quiet", "--out", str(tmp_path)])
    main(["demo", "--full", "--out", "folder", "--seed", "3"])
    assert calls == [
        (str(tmp_path), {"seed": 0, "full": False, "report": None}),
        ("folder", {"seed": 3, "full": True, "report": print}),
    ]


def test_demo_without_the_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo"]) == 1
    message = "skexit demo draws with matplotlib, which is not installed: pip install 'skexit[demo]'"
    assert capsys.readouterr().err == f"skexit demo: error: {message}\n"
    assert not list(tmp_path.iterdir())


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"skexit {__version__}\n"


def test_a_command_is_needed(capsys):
    assert main([]) == 2
    assert "demo" in capsys.readouterr().err
