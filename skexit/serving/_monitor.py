"""One replica that counts the exits of all requests."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray
from ray.util.metrics import Gauge

from skexit.monitoring import BudgetController, ExitMonitor


class Thresholds(NamedTuple):
    """Thresholds of the exits, and the number of samples that were counted when they were read."""

    values: NDArray[Any]
    n_samples: int


class Monitor:
    """Holds the controller and the monitor of an application. It has one replica, which handles one call at a time."""

    def __init__(self, controller: BudgetController | None, monitor: ExitMonitor | None) -> None:
        self._controller, self._monitor = controller, monitor
        self._gauges = {name: Gauge(f"skexit_{name}", description=text) for name, text in _METRICS.items()}

    async def thresholds(self) -> Thresholds | None:
        """Thresholds for the next samples; None without a controller."""
        if self._controller is None:
            return None
        n_samples = self._controller.n_samples
        return Thresholds(self._controller.thresholds, n_samples)

    async def update(self, exits: NDArray[Any], confidence: NDArray[Any], decided_at: int) -> None:
        """Update the controller and the monitor with finished samples."""
        if self._controller is not None:
            self._controller.update(exits, decided_at=decided_at)
            self._gauges["mean_cost"].set(self._controller.mean_cost)
            self._gauges["nominal_budget"].set(self._controller.nominal_budget)
        if self._monitor is not None:
            self._monitor.update(exits, confidence=confidence)
            self._gauges["drift"].set(float(self._monitor.changed))
            self._gauges["drift_e_value"].set(self._monitor.e_value)

    async def read(self) -> tuple[BudgetController | None, ExitMonitor | None]:
        """Copies of the controller and the monitor as they are now."""
        return self._controller, self._monitor


_METRICS = {
    "mean_cost": "Mean cost so far.",
    "nominal_budget": "Budget in use.",
    "drift": "1 if inputs have changed, otherwise 0.",
    "drift_e_value": "Evidence for a change.",
}
