"""Print pip constraints that pin each dependency in pyproject.toml to its lower bound."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
bounds = [re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", requirement) for group in groups for requirement in group]
print("\n".join(sorted({f"{bound[1]}=={bound[2]}" for bound in bounds if bound})))
