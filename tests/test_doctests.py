"""The examples in docstrings, of the package as it is installed, and all code of README, guide and gallery."""

import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot
import pytest
from run_page import OPTIONS, examples_of

import skexit

MODULES = [module.name for module in pkgutil.walk_packages(skexit.__path__, "skexit.")]
ROOT = Path(__file__).parents[1]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.rst"))] if examples_of(page)]
#: Pages with blocks that need what only a reader has, such as a stream; their examples run.
EXAMPLES_ONLY = {"choosing", "drift", "heads", "serve"}
GALLERY = sorted((ROOT / "docs" / "examples").glob("plot_*.py"))
#: Warnings are errors, but for those that pages explain, and those of other packages that are about to change.
WARNINGS = (
    "error",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:some of the budget is left unspent:UserWarning",
    "ignore:the heads of all exits add:UserWarning",
)
#: Ray gets its share of a machine that is busy with other tests, and more time to start.
RAY_ON_A_BUSY_MACHINE = {
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
SLOW_MODULES = {"skexit.model_selection", "skexit.pipeline"}


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_MODULES else []) for name in ["skexit", *MODULES]],
)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=OPTIONS).failed == 0


def run_in_new_interpreter(arguments, folder):
    """Runs Python in an empty folder, with warnings as errors."""
    warnings = [option for warning in WARNINGS for option in ("-W", warning)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "docs" / "contributing")])
    environment = {**RAY_ON_A_BUSY_MACHINE, **os.environ, "PYTHONPATH": paths, "MPLBACKEND": "Agg"}
    command = [sys.executable, *warnings, *map(str, arguments)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_pages(page, tmp_path):
    """Every example and block of a page, as a reader pastes them."""
    options = ["--examples"] if page.stem in EXAMPLES_ONLY else []
    run_in_new_interpreter([ROOT / "tests" / "run_page.py", page, *options], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("script", GALLERY, ids=[script.stem for script in GALLERY])
def test_gallery(script, tmp_path):
    run_in_new_interpreter([script], tmp_path)


def test_a_page_that_fails_is_noticed(tmp_path):
    page = tmp_path / "page.rst"
    block = ".. code-block:: python\n\n   x = 1\n   print(x)\n\n"
    page.write_text(
        f"{block}>>> x\n1\n\n.. not run: it fails\n\n.. code-block:: python\n\n   1 / 0\n", encoding="utf-8"
    )
    run_in_new_interpreter([ROOT / "tests" / "run_page.py", page], tmp_path)
    for wrong in (">>> x\n2\n", ".. code-block:: python\n\n   y\n", "```python\n1 / 0\n```\n"):
        page.write_text(f"{block}{wrong}", encoding="utf-8")
        with pytest.raises(AssertionError, match="Failed example"):
            run_in_new_interpreter([ROOT / "tests" / "run_page.py", page], tmp_path)
