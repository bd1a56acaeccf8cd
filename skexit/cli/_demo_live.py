"""Run the live network of the demo: compare its predictions with the cache, and its time with the plain network's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from skexit.cache import FeatureCache
from skexit.cli._digits_network import EXITS
from skexit.pipeline import ExitPipeline
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx
from skexit.utils._threads import one_torch_thread

#: Number of test digits that are timed one by one, and number of timed runs, of which the median is reported.
_N_ALONE, _N_RUNS = 20, 7


def run_live(
    network: torch.nn.Module, pipeline: ExitPipeline, inputs: torch.Tensor, cache: FeatureCache, path: Path
) -> Iterator[str]:
    """Run the network live, export it as ONNX to `path`, and yield lines with the results."""
    with one_torch_thread(), torch.inference_mode():
        live = EarlyExitModel(network, EXITS, pipeline, example_input=inputs[:1])
        labels, _, exits = live(inputs)
        same = (exits.numpy() == pipeline.predict_exit(cache.X)) & (labels.numpy() == pipeline.predict(cache.X))
        yield f"{same.sum()} of {len(inputs)} test digits have the exit and the label that they have on the cache."
        networks: dict[str, Callable[[torch.Tensor], Any]] = {"plain network": network, "live network": live}
        if all(find_spec(name) is not None for name in ("onnx", "onnxruntime", "onnxscript")):
            export_onnx(live, path)
            exported = OnnxEarlyExit(path)
            networks["live network in ONNX"] = lambda batch: exported.predict(batch.numpy())
        alone, at_once = _median_ms(networks, inputs[:_N_ALONE].split(1)), _median_ms(networks, [inputs])
        yield f"{'':<26}{'one digit':>12}{f'{len(inputs)} at once':>16}"
        for name in networks:
            yield f"{name:<26}{alone[name]:>9.2f} ms{at_once[name]:>13.1f} ms"


def _median_ms(networks: dict[str, Callable[[Any], Any]], batches: Sequence[torch.Tensor]) -> dict[str, float]:
    """Milliseconds per batch for each network: the median over runs. In each run, all networks are timed in turn."""
    runs: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(_N_RUNS):
        for name, network in networks.items():
            start = perf_counter()
            for batch in batches:
                network(batch)
            runs[name].append(1000 * (perf_counter() - start) / len(batches))
    return {name: float(np.median(times)) for name, times in runs.items()}
