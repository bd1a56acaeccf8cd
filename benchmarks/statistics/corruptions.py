"""Corrupted images: what fixed thresholds spend, what a budget controller spends, and when a monitor notices.

    python -m benchmarks.statistics.corruptions --data-root DIR --weights resnet56.th [--out CSV]

CIFAR-10 through a ResNet-56 with nine exits and linear heads. Of the test images, 2,000 fit heads and a policy, 2,000
are the monitor's reference, and the others make streams: 2,000 images as they are, then 2,000 corrupted ones. Streams
are drawn with replacement; the policy is maximum probability with a budget of .6.

Corruptions are those of Hendrycks and Dietterich (ICLR 2019) that need no other images, each at a weak and a strong
setting: Gaussian noise, Gaussian blur, contrast, brightness, pixelation and JPEG.

For each corruption it prints the accuracy of the whole network, the mean cost and the accuracy of fixed thresholds and
of the controller, all on the corrupted part; and of the monitor, without labels and with them, the median number of
corrupted images until the alarm, and the share of streams in which the alarm was false or did not come.
"""

from __future__ import annotations

import argparse
import copy
import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks.shared.data import normalize, read_images
from benchmarks.shared.networks import load_network
from benchmarks.shared.routing import EXITS
from skexit import ExitArray, ExitHeads, ThresholdPolicy, make_exit_pipeline
from skexit.extraction import ExitExtractor
from skexit.monitoring import BudgetController, ExitMonitor
from skexit.utils._warnings import silenced

N_FIT, N_REFERENCE, N_EACH = 2000, 2000, 2000
BUDGET = 0.6


def noise(images: np.ndarray, scale: float) -> np.ndarray:
    return images + np.random.default_rng(0).normal(scale=scale, size=images.shape)


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(images, (0, sigma, sigma, 0))


def contrast(images: np.ndarray, factor: float) -> np.ndarray:
    mean = images.mean(axis=(1, 2), keepdims=True)
    return mean + factor * (images - mean)


def brightness(images: np.ndarray, shift: float) -> np.ndarray:
    return images + shift


def pixelation(images: np.ndarray, size: int) -> np.ndarray:
    return np.stack([_resized(_resized(image, size), 32) for image in _as_bytes(images)]) / 255


def jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    return np.stack([_through_jpeg(image, quality) for image in _as_bytes(images)]) / 255


CORRUPTIONS: dict[str, tuple[Callable[[np.ndarray, Any], np.ndarray], tuple[float, float]]] = {
    "noise": (noise, (0.04, 0.1)),
    "blur": (blur, (0.5, 1.0)),
    "contrast": (contrast, (0.6, 0.3)),
    "brightness": (brightness, (0.1, 0.3)),
    "pixelation": (pixelation, (24, 16)),
    "JPEG": (jpeg, (60, 20)),
}


def _as_bytes(images: np.ndarray) -> np.ndarray:
    return (255 * images).round().astype(np.uint8)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def extract(network: torch.nn.Module, images: np.ndarray, y: np.ndarray) -> Any:
    """Exits of images of shape (n_images, 32, 32, 3), from 0 to 1."""
    inputs = normalize(torch.from_numpy(images.clip(0, 1)).float().permute(0, 3, 1, 2)).contiguous()
    batches = zip(inputs.split(64), torch.from_numpy(y.astype(np.int64)).split(64), strict=True)
    with TemporaryDirectory() as folder:
        X = ExitExtractor(network, EXITS, head="output").extract(list(batches), folder, progress=False).X
        return ExitArray.from_array(np.asarray(X), X.layout)  # the folder goes


def of_streams(policy: Any, reference: tuple[Any, Any], X: Any, y: np.ndarray, n_streams: int) -> dict[str, Any]:
    """Means over streams. X has the images as they are, then the same corrupted."""
    correct, fresh = policy.predict_at_exits(X) == np.tile(y, 2)[:, None], ExitMonitor(policy, *reference)
    rows: list[dict[str, float]] = []
    for seed in range(n_streams):
        draws = np.random.default_rng(seed).integers(len(y), size=2 * N_EACH)
        stream = draws + np.repeat([0, len(y)], N_EACH)
        own, changed = X[stream], slice(N_EACH, None)
        exits = {"fixed": policy.predict_exit(own), "controller": BudgetController(policy).predict_exit(own)}
        found: dict[str, float] = {}
        for name, at in exits.items():
            found[f"cost, {name}"] = policy.costs_[at][changed].mean()
            found[f"accuracy, {name}"] = correct[stream, at][changed].mean()
        confidence = policy.predict_proba(own).max(axis=1)
        right = correct[stream, exits["fixed"]]
        for name, labels in (("", None), (" with labels", right)):
            monitor = copy.deepcopy(fresh)
            with silenced():
                monitor.update(exits["fixed"], confidence=confidence, correct=labels)
            delay = np.inf if monitor.changed_at is None else monitor.changed_at - N_EACH
            found[f"delay{name}"] = delay
            found[f"false{name}"], found[f"missed{name}"] = delay <= 0, np.isinf(delay)
        rows.append(found)
    table = pd.DataFrame(rows).astype(float)
    delays = [name for name in table if name.startswith("delay")]
    return (
        {"accuracy, network": correct[len(y) :, -1].mean()} | table.mean().to_dict() | table[delays].median().to_dict()
    )


def measure(data_root: Path, weights: Path, n_streams: int) -> pd.DataFrame:
    images, y = read_images(data_root, "test")
    network, scaled = load_network(weights).eval(), images / 255
    fit, reference = slice(0, N_FIT), slice(N_FIT, N_FIT + N_REFERENCE)
    new = slice(N_FIT + N_REFERENCE, N_FIT + N_REFERENCE + N_EACH)
    pipeline = make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=BUDGET))
    pipeline.fit(extract(network, scaled[fit], y[fit]), y[fit])
    policy = pipeline.steps[-1][1]
    known = pipeline[:-1].transform(extract(network, scaled[reference], y[reference])), y[reference]
    plain, rows = pipeline[:-1].transform(extract(network, scaled[new], y[new])), []
    for name, (corrupt, settings) in CORRUPTIONS.items():
        for setting in settings:
            corrupted = pipeline[:-1].transform(extract(network, corrupt(scaled[new], setting), y[new]))
            both = ExitArray.from_array(np.concatenate([np.asarray(plain), np.asarray(corrupted)]), plain.layout)
            row = of_streams(policy, known, both, y[new], n_streams)
            rows.append({"corruption": f"{name} {setting:g}"} | row)
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=20, help="of each corruption")
    parser.add_argument("--out", type=Path, help="CSV file for the results")
    options = parser.parse_args()
    results = measure(options.data_root, options.weights, options.streams)
    if options.out is not None:
        results.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
