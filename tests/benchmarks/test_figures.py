"""Numbers that stand on more than one page: those of the file, which are those of the results."""

import re
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.papers.early_exits import MARKED, fill_in, numbers, table_of_budgets

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "docs" / "benchmarks"
FIGURES = pd.read_csv(BENCHMARKS / "figures.csv", dtype=str)
VALUES = dict(zip(FIGURES["name"], FIGURES["value"], strict=True))
PAGES = sorted((ROOT / "docs").glob("**/*.rst"))


def test_the_file_has_the_numbers_of_the_results():
    results = pd.read_csv(BENCHMARKS / "which" / "results.csv")
    expected = numbers(results, pd.read_csv(BENCHMARKS / "networks" / "networks.csv"))
    pd.testing.assert_frame_equal(FIGURES, expected)
    table = pd.read_csv(BENCHMARKS / "which" / "accuracy.csv", dtype=str).rename(columns={"Unnamed: 0": ""})
    pd.testing.assert_frame_equal(table, table_of_budgets(results))


def test_the_readme_has_the_numbers_of_the_file():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    places = MARKED.findall(text)
    assert len(places) == text.count("<!---->") > 2
    assert dict(places) == {name: VALUES[name] for name, _ in places}


def test_a_number_that_differs_is_noticed_and_put_right():
    wrong = "accuracy: <!--half_accuracy-->12.3 %<!---->."
    assert MARKED.findall(wrong) != [("half_accuracy", VALUES["half_accuracy"])]
    assert fill_in(wrong, VALUES) == f"accuracy: <!--half_accuracy-->{VALUES['half_accuracy']}<!---->."


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_pages_take_numbers_from_the_file(page):
    """Names of a page exist, and no page types the number of networks or the accuracy at half of the cost by hand."""
    text = page.read_text(encoding="utf-8")
    if page.name != "language.rst":  # shows how to write a name
        assert set(re.findall(r"\|([a-z]+_[a-z_]+|networks)\|", text)) <= set(VALUES)
    assert f"{VALUES['networks']} networks" not in text


def test_the_commands_exist():
    for command in FIGURES["command"]:
        module = command.split()[2]
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), command
