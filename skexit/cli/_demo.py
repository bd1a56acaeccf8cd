"""The demo: train a small network on scikit-learn's digits, and run it with early exits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skexit.cache import FeatureCache
from skexit.cli._demo_methods import BASELINE, RECOMMENDED, draw, fit_methods, measure, short_table
from skexit.report import write_report
from skexit.utils._optional import check_torch, optional_import
from skexit.utils._warnings import silenced

if TYPE_CHECKING:
    import torch

    from skexit.cli._digits_network import Digits

#: The budget of the policy that is saved and runs live.
_BUDGET = 0.2


def run_demo(
    out: str | Path, *, seed: int = 0, full: bool = False, report: Callable[[str], None] | None = print
) -> pd.DataFrame:
    """Train a network, cache its exits, fit policies, run the network live, and return a table of results.

    The folder `out` gets the caches, ``results.csv``, ``accuracy_cost.png``, ``report.html``, ``policy.joblib`` and, if
    the ONNX packages are installed, ``network.onnx``. `report` is called with each line of output; None prints no lines
    and shows no progress bars. With `full`, all policies are fitted. The table has one row per method and budget.
    """
    check_torch("skexit demo trains a network with", extra="demo")
    with optional_import("skexit demo draws with", "demo"):
        import matplotlib  # noqa: F401
    from skexit.cli._demo_live import run_live
    from skexit.cli._digits_network import split_digits, train_network

    say, progress = report or (lambda line: None), report is not None
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    network_data, fit_data, test_data = split_digits(seed)

    say("1/4  Train a ResNet with four exits on scikit-learn's digits, each at a random place on a noisy image.")
    network = train_network(network_data, seed=seed, progress=progress)
    accuracy = float(np.mean(_labels(network, test_data.images) == test_data.y.numpy()))

    say(f"2/4  Run the network on {len(fit_data.y)} other digits, and cache the logits and features of each exit.")
    fit_cache, test_cache = (
        _extract(network, data, folder / name) for data, name in ((fit_data, "cache-fit"), (test_data, "cache-test"))
    )
    assert fit_cache.y is not None
    assert test_cache.y is not None

    say(f"3/4  Fit policies on the cache, and measure them on {len(test_data.y)} test digits.")
    methods = fit_methods(fit_cache.X, fit_cache.y, seed=seed, full=full, progress=progress)
    results = measure(methods, test_cache.X, test_cache.y, random_state=seed)
    results.to_csv(folder / "results.csv", index=False)
    draw(results, accuracy).savefig(folder / "accuracy_cost.png", dpi=150)
    say(short_table(results, accuracy, _BUDGET))
    chosen = {name: methods[name].with_budget(_BUDGET) for name in (RECOMMENDED, BASELINE)}
    with silenced():  # the report has the same information as the warnings
        write_report(test_cache.X, test_cache.y, chosen, folder / "report.html", budgets=[_BUDGET])
    pipeline = chosen[RECOMMENDED]
    joblib.dump(pipeline, folder / "policy.joblib")

    say(f"4/4  Run the network live, with a budget of {_BUDGET:.0%}: each sample stops where the policy decides.")
    for line in run_live(network, pipeline, test_data.images, test_cache, folder / "network.onnx"):
        say(f"     {line}")
    say(f"\nOpen {folder / 'report.html'} in a browser. {folder} also has the plot accuracy_cost.png, the table")
    say("results.csv, the pipeline policy.joblib, and the caches. skexit demo --full compares all policies.")
    return results


def _labels(network: torch.nn.Module, images: torch.Tensor) -> NDArray[np.int64]:
    import torch

    with torch.inference_mode():
        labels: NDArray[np.int64] = network(images).argmax(dim=1).numpy()
    return labels


def _extract(network: torch.nn.Module, data: Digits, path: Path) -> FeatureCache:
    from torch.utils.data import DataLoader, TensorDataset

    from skexit.cli._digits_network import EXITS
    from skexit.extraction import ExitExtractor

    if path.exists():  # from an earlier demo, which may have had another seed
        shutil.rmtree(path)
    loader = DataLoader(TensorDataset(data.images, data.y), batch_size=100)
    return ExitExtractor(network, exits=EXITS).extract(loader, path, progress=False)
