"""Every public name is in docs/api.rst, and every name there exists."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import skexit

PAGE = (Path(__file__).parents[1] / "docs" / "api.rst").read_text(encoding="utf-8")
DOCUMENTED = set(re.findall(r"^   ([\w.]+)$", PAGE, flags=re.M)) | set(
    re.findall(r"^\.\. data:: (\w+)$", PAGE, flags=re.M)
)
MODULES = [
    module.name.removeprefix("skexit.")
    for module in pkgutil.iter_modules(skexit.__path__, "skexit.")
    if not module.name.startswith("skexit._") and "__all__" in vars(importlib.import_module(module.name))
]


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_documented_names_exist(name):
    module, _, attribute = f"skexit.{name}".rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_names_of_the_package_are_documented():
    assert set(skexit.__all__) <= DOCUMENTED


@pytest.mark.parametrize("module", MODULES)
def test_names_of_modules_are_documented(module):
    names = importlib.import_module(f"skexit.{module}").__all__
    undocumented = [name for name in names if name not in skexit.__all__ and f"{module}.{name}" not in DOCUMENTED]
    assert not undocumented
