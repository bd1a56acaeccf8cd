"""Peak memory of a fit or a prediction, in a process that has done nothing else."""

from __future__ import annotations

import gc
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.shared.peak_memory import peak_memory, reset_peak_memory
from benchmarks.speed.cases import ESTIMATORS, Size, make_data, predict

#: A server that has imported everything starts each process by a fork.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["benchmarks.speed.cases", "torch", "scipy.optimize", "sklearn.pipeline"])


def growth_of(what: str, name: str, size: Size, fitted: Any) -> float:
    """By how many MiB the resident memory grows at its peak, X being there already."""
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as pool:
        return pool.submit(_growth, what, name, size, fitted if what == "predict" else None).result()


def _growth(what: str, name: str, size: Size, fitted: Any) -> float:
    warnings.simplefilter("ignore")
    X, y = make_data(name, size)
    estimator = ESTIMATORS[name]() if fitted is None else fitted
    gc.collect()
    before = reset_peak_memory()
    if what == "fit":
        estimator.fit(X, y)
    else:
        predict(estimator, X)
    return (peak_memory() - before) / 1024
