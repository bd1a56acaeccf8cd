"""Replicas of the two parts of a live network."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter

from skexit.runtime import Activations, ExitOutput, FirstPart, SecondPart
from skexit.serving._batches import (
    Begun,
    complete,
    divide,
    join_arrays,
    join_rests,
    kind_of_arrays,
    kind_of_rest,
    run_together,
)
from skexit.serving._inputs import Arrays
from skexit.serving._monitor import Thresholds
from skexit.serving._retries import call

_logger = logging.getLogger("ray.serve")
#: Longest time, in seconds, that a batch waits for thresholds; longer for the first batch of a replica, which has none.
_MOST_SECONDS, _MOST_SECONDS_AT_FIRST = 0.2, 10.0


class _Replica:
    """A part of the network on the device that Ray gives the replica."""

    _batch: Any

    def __init__(self, part: FirstPart | SecondPart) -> None:
        self._device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._part = part.to(self._device)

    def check_health(self) -> None:
        """Raise an error if the device has failed. Ray also replaces a replica that does not return in time."""
        torch.zeros(1, device=self._device).item()

    def reconfigure(self, settings: Mapping[str, Any]) -> None:
        """Apply the settings of batches from the `user_config` of the deployment."""
        unknown = set(settings) - {"max_batch_size", "batch_wait_timeout_s"}
        if unknown:
            raise ValueError(f"user_config has {sorted(unknown)}; pass only max_batch_size and batch_wait_timeout_s.")
        if "max_batch_size" in settings:
            self._batch.set_max_batch_size(settings["max_batch_size"])
        if "batch_wait_timeout_s" in settings:
            self._batch.set_batch_wait_timeout_s(settings["batch_wait_timeout_s"])

    def _set(self, thresholds: Thresholds | None) -> None:
        if thresholds is not None:
            self._part.thresholds = thresholds.values


class FirstReplica(_Replica):
    """The first part: predicts samples that leave early, and passes the others to the second part."""

    def __init__(
        self,
        part: FirstPart,
        second: DeploymentHandle,
        monitor: DeploymentHandle | None,
        has_controller: bool,
        n_retries: int,
    ) -> None:
        super().__init__(part)
        self._second, self._monitor, self._n_retries = second, monitor, n_retries
        self._has_controller = has_controller
        self._example: Any = part.example
        self._thresholds: Thresholds | None = None
        self._reports: set[asyncio.Task[Any]] = set()
        self._samples = Counter("skexit_samples", description="Samples that were answered.", tag_keys=("exit",))

    async def __call__(self, inputs: Arrays) -> ExitOutput:
        """Predict for the rows of one request."""
        thresholds, begun = await self._batch(inputs)
        if isinstance(begun, Exception):
            raise begun
        output = begun.answers
        if begun.rest is not None:
            output = complete(begun, await call(self._second, begun.rest, thresholds, n_retries=self._n_retries))
        self._count(output, thresholds)
        return output

    @serve.batch
    async def _batch(self, requests: list[Arrays]) -> list[tuple[Thresholds | None, Begun | Exception]]:
        self._thresholds = await self._read_thresholds()
        self._set(self._thresholds)
        # In a thread, so that the replica can take other requests and Ray's health checks meanwhile.
        answers = await asyncio.to_thread(run_together, self._run, requests, kind_of_arrays)
        return [(self._thresholds, answer) for answer in answers]

    def _run(self, requests: Sequence[Arrays]) -> list[Begun]:
        arrays = join_arrays(requests)
        if isinstance(arrays, dict):
            output = self._part(**{name: self._tensor(array, name) for name, array in arrays.items()})
        else:
            output = self._part(self._tensor(arrays))
        return divide(output, [_n_rows(inputs) for inputs in requests])

    def _tensor(self, array: np.ndarray, name: str | None = None) -> torch.Tensor:
        example = self._example if name is None else self._example[name]
        return torch.as_tensor(array).to(self._device, example.dtype)

    async def _read_thresholds(self) -> Thresholds | None:
        if self._monitor is None or not self._has_controller:
            return None
        timeout = _MOST_SECONDS_AT_FIRST if self._thresholds is None else _MOST_SECONDS
        try:
            return await asyncio.wait_for(self._monitor.thresholds.remote(), timeout)
        except (TimeoutError, RayError, RayServeException) as error:
            _logger.warning(f"The monitor did not answer, so the thresholds do not change: {error!r}")
            return self._thresholds

    def _count(self, output: ExitOutput, thresholds: Thresholds | None) -> None:
        """Report the exits of a request, without waiting for the monitor."""
        exits = np.asarray(output.exits)
        for k, n_samples in zip(*np.unique(exits, return_counts=True), strict=True):
            self._samples.inc(float(n_samples), tags={"exit": str(k)})
        if self._monitor is not None:
            decided_at = 0 if thresholds is None else thresholds.n_samples
            confidence = np.asarray(output.probabilities).max(axis=1)
            report = asyncio.create_task(self._report((exits, confidence, decided_at)))
            # The event loop holds only weak references to tasks.
            self._reports.add(report)
            report.add_done_callback(self._reports.discard)

    @serve.batch(max_batch_size=256, batch_wait_timeout_s=0.02)
    async def _report(self, answers: list[tuple[np.ndarray, np.ndarray, int]]) -> list[None]:
        exits, confidence, decided_at = zip(*answers, strict=True)
        try:
            await self._monitor.update.remote(np.concatenate(exits), np.concatenate(confidence), min(decided_at))  # type: ignore[union-attr]
        except (RayError, RayServeException) as error:
            _logger.warning(f"{sum(map(len, exits))} samples were not counted: {error}")
        return [None] * len(answers)


class SecondReplica(_Replica):
    """The second part: predicts the samples that did not leave in the first part."""

    async def __call__(self, rest: Activations, thresholds: Thresholds | None) -> Begun:
        """Predict for the rows of one request that did not leave in the first part."""
        answer = await self._batch((rest, thresholds))
        if isinstance(answer, Exception):
            raise answer
        # The batch counts rows from 0; complete needs their indices in the request.
        return answer._replace(rows=rest.rows.numpy())

    @serve.batch
    async def _batch(self, requests: list[tuple[Activations, Thresholds | None]]) -> list[Begun | Exception]:
        known = [thresholds for _, thresholds in requests if thresholds is not None]
        self._set(max(known, key=lambda thresholds: thresholds.n_samples, default=None))
        return await asyncio.to_thread(run_together, self._run, [rest for rest, _ in requests], kind_of_rest)

    def _run(self, requests: Sequence[Activations]) -> list[Begun]:
        return divide(self._part(join_rests(requests).to(self._device)), [len(rest) for rest in requests])


def _n_rows(inputs: Arrays) -> int:
    return len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)
