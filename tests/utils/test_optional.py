"""The errors where a package of an extra is missing, and what works without it."""

import json
import subprocess
import sys

import pytest

from skexit.utils._optional import optional_import

# A finder, and not None in sys.modules, which SciPy takes for a torch that is there.
_HIDE_TORCH = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
"""
_DATA = """
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from skexit import *
data, y = load_digits(return_X_y=True)
data, y = data[:400], y[:400]
features = stack_exits(features=[data[:, :32], data[:, 32:]], costs=[1, 2])
X = ExitHeads(cv=2).fit_transform(features, y)
"""
#: Statements whose error must be the one beside them.
_ERRORS = {
    "import skexit.extraction": "skexit.extraction runs networks with torch{torch}",
    "from skexit.backbone import exit_costs": "skexit.backbone reads networks of torch{torch}",
    "import skexit.training": "skexit.training trains networks with torch{torch}",
    "from skexit.runtime import EarlyExitModel": "skexit.runtime.EarlyExitModel needs torch{torch}",
    "from skexit.runtime import measure_latency": "skexit.runtime.measure_latency needs torch{torch}",
    "from skexit.runtime import join_outputs": "skexit.runtime.join_outputs needs torch{torch}",
    "from skexit.runtime import PreparedNetwork": "skexit.runtime.PreparedNetwork needs torch{torch}",
    "from skexit.runtime import LoaderOutput": "skexit.runtime.LoaderOutput needs torch{torch}",
    "from skexit.runtime import export_onnx": "skexit.runtime.export_onnx needs torch{onnx-export}",
    "from skexit.runtime import measure_onnx_latency": "skexit.runtime.measure_onnx_latency needs torch{onnx-export}",
    "EENetPolicy().fit(X, y)": "EENetPolicy trains its networks with torch{torch}",
    "EMExitAssigner().fit(X, y)": "EMExitAssigner trains its routers with torch{torch}",
    "JEIGatedEnsemble().fit(features, y)": "JEIGatedEnsemble trains classifiers and gates jointly with torch{torch}",
    "JEIGatedEnsemble().lambda_path(features, y, [1])": (
        "JEIGatedEnsemble trains classifiers and gates jointly with torch{torch}"
    ),
    "ExitHeads((4,)).fit(features, y)": "ExitHeads trains by mini-batches with torch{torch}",
    "ExitHeads((4,), cascade=True).fit(features, y)": "ExitHeads trains by mini-batches with torch{torch}",
    "ExitHeads(solver='adam').fit(features, y)": "ExitHeads trains by mini-batches with torch{torch}",
    "recommended_pipeline(budget=0.7).fit(features, y)": "ExitHeads trains by mini-batches with torch{torch}",
    "ExitHeads().partial_fit(features, y)": "ExitHeads.partial_fit trains with torch{torch}",
    "from skexit.cli._demo import run_demo; run_demo('nowhere')": "skexit demo trains a network with torch{demo}",
}
#: Statements that need no torch.
_WORKING = [
    "import skexit.report, skexit.plotting, skexit.metrics, skexit.model_selection, skexit.datasets",
    "from skexit.runtime import ExitLatency, ExitOutput, OnnxEarlyExit, policy_from_json, policy_to_json",
    "ThresholdPolicy().fit(X, y).predict(X)",
    "OptimalStoppingPolicy(random_state=0).fit(X, y).calibrate(X, y).predict_set(X)",
    "RiskControlledPolicy(ThresholdPolicy()).fit(X, y).predict(X)",
    "StaticExit(0).fit(X, y).predict(X)",
    "JEIGatedEnsemble().fit(X, y).predict(X)",
    "JEIGatedEnsemble(joint=False).fit(features, y).predict(features)",
    "EENetPolicy(learn_scores=False, learn_distribution=False).fit(X, y).predict(X)",
    "ExitHeads(cascade=True).fit(features, y)",
    "ExitHeads(training='boosted').fit(features, y)",
    "make_pipeline(ExitHeads(cv=2), ExitEnsemble(), ThresholdPolicy(budget=0.7)).fit(features, y).predict(features)",
]


def test_without_torch():
    """What needs torch names the extra; what needs none works."""
    script = (
        f"{_HIDE_TORCH}{_DATA}"
        "import json\n"
        "errors = {}\n"
        f"for statement in {[*_ERRORS, *_WORKING]!r}:\n"
        "    try:\n"
        "        exec(statement)\n"
        "    except Exception as error:\n"
        "        errors[statement] = f'{type(error).__name__}: {error}'\n"
        "print(json.dumps(errors))"
    )
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    extras = ("torch", "onnx-export", "demo")
    tails = {extra: f", which is not installed: pip install 'skexit[{extra}]'" for extra in extras}
    expected = {statement: f"ImportError: {message.format(**tails)}" for statement, message in _ERRORS.items()}
    assert json.loads(ended.stdout) == expected


def test_the_missing_package_is_named():
    with (
        pytest.raises(ImportError, match=r"^plots need nosuch, which is not installed: pip install 'skexit\[plot\]'$"),
        optional_import("plots need", "plot"),
    ):
        import nosuch.pyplot  # noqa: F401


def test_other_errors_pass():
    """A package that is there but broken is not called missing."""
    with pytest.raises(ImportError, match=r"cannot import name 'nosuch'"), optional_import("plots need", "plot"):
        from json import nosuch  # noqa: F401
