"""Time and memory of fits and predictions, of an extraction and of the import.

pytest benchmarks/speed --benchmark-json=speed.json
python -m benchmarks.speed.report speed.json --out docs/benchmarks/speed
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from benchmarks.speed.cases import BASE, ESTIMATORS, SIZES, Size, make_data, predict
from benchmarks.speed.memory import growth_of

pytestmark = pytest.mark.filterwarnings("ignore")

IMPORTS = ["nothing", "numpy", "sklearn", "sklearn.linear_model", "skexit"]


@pytest.fixture(scope="module", autouse=True)
def imports_are_done():
    """What is imported when it is first needed, above all torch."""
    for name, make in ESTIMATORS.items():
        X, y = make_data(name, Size(200, 3, 2))
        predict(make().fit(X, y), X)


@pytest.fixture(scope="module")
def fitted():
    """Estimators that were fitted to measure it, for the predictions."""
    return {}


@lru_cache(maxsize=1)
def data(name: str, size: Size) -> tuple[Any, np.ndarray]:
    return make_data(name, size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_fit(benchmark, name, size, fitted):
    X, y = data(name, size)
    rounds = 3 if size.rows < BASE.rows else 1
    fitted[name, size] = benchmark.pedantic(lambda: ESTIMATORS[name]().fit(X, y), rounds=rounds)
    note(benchmark, "fit", name, size, growth_of("fit", name, size, None))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_predict(benchmark, name, size, fitted):
    X, y = data(name, size)
    estimator = fitted.pop((name, size), None) or ESTIMATORS[name]().fit(X, y)
    benchmark.pedantic(lambda: predict(estimator, X), rounds=5, warmup_rounds=1)
    note(benchmark, "predict", name, size, growth_of("predict", name, size, estimator))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_read(benchmark, size):
    """What it takes to read X once."""
    X, _ = data("LogisticRegression", size)
    benchmark.pedantic(lambda: np.add.reduce(X, axis=None), rounds=5, warmup_rounds=1)
    note(benchmark, "read", "X", size, 0.0)


@pytest.mark.parametrize("module", IMPORTS)
def test_import(benchmark, module):
    command = [sys.executable, "-c", "" if module == "nothing" else f"import {module}"]
    benchmark.pedantic(lambda: subprocess.run(command, check=True), rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {"what": "import", "name": module}


def test_extraction(benchmark):
    """Extraction and a bare forward loop take turns, so that whatever else the machine does meets both."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from torchvision.models import resnet18

    from benchmarks.speed.extraction_throughput import N_IMAGES, extract, forward_only

    torch.manual_seed(0)
    model = resnet18(weights=None)
    images = TensorDataset(torch.randn(N_IMAGES, 3, 64, 64), torch.randint(1000, (N_IMAGES,)))
    loader = DataLoader(images, batch_size=64)
    bare = []

    def run_bare() -> None:
        start = time.perf_counter()
        forward_only(model, loader)
        bare.append(time.perf_counter() - start)

    run_bare()
    bare.clear()
    benchmark.pedantic(lambda: extract(model, loader), setup=run_bare, rounds=3)
    benchmark.extra_info |= {"what": "extraction", "name": "ResNet-18", "bare": sorted(bare)[len(bare) // 2]}


def note(benchmark: Any, what: str, name: str, size: Size, growth: float) -> None:
    X, _ = data(name if name in ESTIMATORS else "LogisticRegression", size)
    n_bytes = X.shape[0] * X.shape[1] * X.dtype.itemsize
    benchmark.extra_info |= {"what": what, "name": name, **size._asdict(), "MiB": growth, "MiB of X": n_bytes / 2**20}
