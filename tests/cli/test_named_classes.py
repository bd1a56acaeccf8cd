"""Commands on labels with names, in the order of the logits."""

import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import run_json

from skexit.cli import main

NAMED_CLASSES = """
import torch

x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
names = ["wolf", "cat", "ant"]  # of the logits, which are not in the order of the alphabet


def network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3), torch.nn.Tanh())
    model.append(torch.nn.Linear(3, 3))
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)  # so that each class is frequent
    return model.eval()


def numbers():
    with torch.no_grad():
        return network()(x).argmax(1)


def words():
    return network(), [(x, [names[label] for label in numbers()])], names


def indices():
    return network(), [(x, numbers())], names


def without_classes():
    return network(), [(x, [names[label] for label in numbers()])]


def too_few():
    return network(), [(x, numbers() % 2)], names[:2]
"""


@pytest.fixture
def named_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("named.py").write_text(NAMED_CLASSES, encoding="utf-8")
    sys.modules.pop("named", None)
    yield tmp_path
    sys.modules.pop("named", None)


EXITS_OF_NAMED = ["--exit", "1", "--exit", "3"]


@pytest.mark.parametrize("function", ["words", "indices"])
def test_classes_with_names(named_classes, capsys, function):
    from skexit import FeatureCache

    names = ["wolf", "cat", "ant"]
    run_json(capsys, "extract", f"named:{function}", "--out", "cache", *EXITS_OF_NAMED)
    cache = FeatureCache("cache")
    assert cache.layout.classes.tolist() == names
    assert set(cache.y) == set(names)
    run_json(capsys, "fit", "cache", "--policy", "max_prob", "--budget", "0.95")
    predicted = run_json(capsys, "predict", "cache", "policy.joblib")["label"]
    assert set(predicted) <= set(names)
    last = np.array(names)[cache.X.logits(1).argmax(axis=1)]
    at_last = np.array(run_json(capsys, "predict", "cache", "policy.joblib")["exit"]) == 1
    np.testing.assert_array_equal(np.array(predicted)[at_last], last[at_last])


def test_classes_that_are_missing(named_classes, capsys):
    assert main(["extract", "named:without_classes", "--out", "cache", *EXITS_OF_NAMED]) == 0
    assert main(["fit", "cache", "--policy", "max_prob", "--budget", "0.95"]) == 1
    error = capsys.readouterr().err
    assert "in the order ['wolf', 'cat', 'ant']" in error
    assert error.endswith(
        "\nOn the command line, let MODULE:FUNCTION return (network, loader, classes), with the classes in the order of "
        "the logits, and run skexit extract again with another --out.\n"
    )
    assert main(["extract", "named:words", "--out", "another", *EXITS_OF_NAMED]) == 0
    assert main(["fit", "another", "--policy", "max_prob", "--budget", "0.95"]) == 0


def test_classes_that_do_not_fit_the_logits(named_classes, capsys):
    assert main(["extract", "named:too_few", "--out", "cache", *EXITS_OF_NAMED]) == 1
    assert "classes has 2 labels but each exit has 3 logits; give one label for each logit" in capsys.readouterr().err
