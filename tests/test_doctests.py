"""The examples in docstrings, of the package as it is installed, and in the documentation."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import matplotlib.pyplot
import pytest

import skexit

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
MODULES = [module.name for module in pkgutil.walk_packages(skexit.__path__, "skexit.")]
PAGES = sorted((Path(__file__).parents[1] / "docs").glob("**/*.rst"))
SLOW = {"skexit.model_selection", "skexit.pipeline", "check", "choosing", "jei", "start", "text", "timm"}


def mark_slow(value, name):
    """The parameter, with the mark slow where its examples take seconds."""
    return pytest.param(value, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("name", [mark_slow(name, name) for name in ["skexit", *MODULES]])
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=OPTIONS).failed == 0


@pytest.mark.parametrize("page", [mark_slow(page, page.stem) for page in PAGES])
def test_documentation(page):
    assert doctest.testfile(str(page), module_relative=False, optionflags=OPTIONS).failed == 0
