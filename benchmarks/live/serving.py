"""Two parts of a live network on Ray Serve, beside one process that holds the whole, with replicas killed in between.

    python -m benchmarks.live.serving [--data-root DIR --weights resnet56.th] [--n-requests 5000]

Single images are sent by Python, at most 64 at a time, to three applications in turn on this machine:

whole
    One deployment of one replica, with the whole live network.
parts
    :func:`serve_parts`: so many replicas of each part as `--replicas` says.
parts, killed
    The same, and after a third of the requests a replica of the first part is killed, after two thirds one of the
    second, each by SIGKILL.

With `--data-root` and `--weights`, the network is a ResNet-56 with three exits on CIFAR-10; else that of ``skexit
demo``, which is trained first. It stops by maximum probability at a mean cost of .65, and is divided after its first
exit.
Printed are requests a second, the median and the 95th percentile of their times in milliseconds, how many were lost,
and how many answers differ from ``live(x)``. Each replica has one thread.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch
from ray import serve

from benchmarks.shared.live import MAXIMUM_PROBABILITY, policies, resnet56
from skexit import ExitHeads, ThresholdPolicy, make_exit_pipeline
from skexit.cli._digits_network import EXITS, split_digits, train_network
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, ExitOutput
from skexit.serving import serve_parts
from skexit.serving._ingress import Ingress
from skexit.serving._inputs import InputFormat

N_FITTING_IMAGES, BUDGET = 2000, 0.65
N_WARM, N_AT_A_TIME = 300, 64
#: The same for the whole network and for each part.
OPTIONS: dict[str, Any] = {"max_ongoing_requests": N_AT_A_TIME}
BATCHES = {"max_batch_size": 32, "batch_wait_timeout_s": 0.002}
AT_EXIT = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--n-requests", type=int, default=5000)
    parser.add_argument("--replicas", type=int, nargs=2, default=[2, 1], help="of the first and of the second part")
    options = parser.parse_args()
    live, images = digits() if options.weights is None else cifar10(options.data_root, options.weights)
    rows = np.arange(options.n_requests) % len(images)
    expected = live(images)
    print(f"samples by exit: {expected.exits.bincount().tolist()} of {len(images)}", flush=True)
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    first, second = ({**OPTIONS, "user_config": BATCHES, "num_replicas": n} for n in options.replicas)
    parts = serve_parts(live, AT_EXIT, first=first, second=second)
    entrance = serve.deployment(Ingress).options(max_ongoing_requests=1000)
    whole = entrance.bind(InputFormat(images[:1]), serve.deployment(Whole).options(**OPTIONS).bind(live), 3)
    results = {}
    for name, application, kills in (("whole", whole, ()), ("parts", parts, ()), ("parts, killed", parts, PARTS)):
        handle = serve.run(application, name=name.partition(",")[0], route_prefix=None)
        send(handle, images, rows[:N_WARM], ())
        answers, times, seconds = send(handle, images, rows, kills)
        results[name] = {
            "requests/s": len(rows) / seconds,
            "median ms": 1000 * np.median(times),
            "95 % ms": 1000 * np.quantile(times, 0.95),
            "lost": sum(isinstance(answer, Exception) for answer in answers),
            "wrong": sum(is_wrong(answer, expected, row) for answer, row in zip(answers, rows, strict=True)),
        }
        print(pd.DataFrame(results).T.round(1).to_string(), flush=True)
        if name != "parts":
            serve.delete(name.partition(",")[0])
    ray.shutdown()


PARTS = ("FirstPart", "SecondPart")


class Whole:
    """The whole live network in one replica."""

    def __init__(self, live: EarlyExitModel) -> None:
        self._live = live

    async def __call__(self, inputs: np.ndarray) -> ExitOutput:
        return await self._batch(inputs)

    @serve.batch(**BATCHES)
    async def _batch(self, requests: list[np.ndarray]) -> list[ExitOutput]:
        output = self._live(torch.from_numpy(np.concatenate(requests)))
        return [ExitOutput(*(part[k : k + 1].numpy() for part in output)) for k in range(len(requests))]


def send(
    handle: Any, images: torch.Tensor, rows: Sequence[int], kills: Sequence[str]
) -> tuple[list[Any], list[float], float]:
    """Answers, or exceptions, in the order of the rows; the time of each request; and of all."""
    n_done, times = 0, []
    due = {(k + 1) * len(rows) // (len(kills) + 1): part for k, part in enumerate(kills)}
    lock = threading.Lock()

    def ask(row: int) -> Any:
        nonlocal n_done
        begin = time.perf_counter()
        try:
            return handle.predict.remote(images[row : row + 1].numpy()).result()
        except Exception as error:
            return error
        finally:
            with lock:
                n_done += 1
                times.append(time.perf_counter() - begin)
                part = due.pop(n_done, None)
            if part is not None:
                kill("parts", part)

    begin = time.perf_counter()
    with ThreadPoolExecutor(N_AT_A_TIME) as pool:
        answers = list(pool.map(ask, rows))
    return answers, times, time.perf_counter() - begin


def kill(application: str, part: str) -> None:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    name = next(name for name in names if name.startswith(f"SERVE_REPLICA::{application}#{part}#"))
    actor = ray.get_actor(name, namespace="serve")
    os.kill(ray.get(actor.__ray_call__.remote(lambda replica: os.getpid())), signal.SIGKILL)
    print(f"killed a replica of {part}", flush=True)


def is_wrong(answer: Any, expected: ExitOutput, row: int) -> bool:
    return not (
        isinstance(answer, ExitOutput)
        and answer.labels[0] == expected.labels[row]
        and answer.exits[0] == expected.exits[row]
        and np.allclose(answer.probabilities[0], expected.probabilities[row], rtol=0, atol=1e-4)
    )


def digits() -> tuple[EarlyExitModel, torch.Tensor]:
    """The demo's network and its test images."""
    training, fitting, test = split_digits(seed=0)
    network = train_network(training, seed=0, progress=True)
    pipeline = make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=BUDGET))
    with TemporaryDirectory() as folder:
        cache = ExitExtractor(network, EXITS).extract([(fitting.images, fitting.y)], folder, progress=False)
        pipeline.fit(cache.X, cache.y)
    return EarlyExitModel(network, EXITS, pipeline, example_input=test.images[:1]), test.images


def cifar10(data_root: Path, weights: Path) -> tuple[EarlyExitModel, torch.Tensor]:
    """A ResNet-56, and the test images on which it was not fitted."""
    case = resnet56(data_root, weights, 3, N_FITTING_IMAGES)
    live: Callable[..., EarlyExitModel] = case.live
    return live(policies(BUDGET)[MAXIMUM_PROBABILITY].fit(*case.extract())), case.inputs[N_FITTING_IMAGES:]


if __name__ == "__main__":
    main()
