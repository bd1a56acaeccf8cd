"""Metrics of monitors and controllers for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from skexit.monitoring._budget import BudgetController
from skexit.monitoring._monitor import ExitMonitor
from skexit.utils._optional import optional_import


def prometheus_collector(monitor: ExitMonitor, controller: BudgetController | None = None) -> Any:
    """Export a monitor to Prometheus: ``REGISTRY.register(prometheus_collector(monitor))``.

    Parameters
    ----------
    monitor : ExitMonitor
        Its values become the metrics ``skexit_samples_total``, ``skexit_drift``, ``skexit_recent_mean`` (with the label
        ``quantity``) and ``skexit_drift_e_value`` (with the labels ``quantity`` and ``direction``).
    controller : BudgetController, default=None
        Its nominal budget and mean cost become ``skexit_nominal_budget`` and ``skexit_mean_cost``.

    Returns
    -------
    prometheus_client.registry.Collector
        It reads the values at each request of Prometheus.

    Raises
    ------
    ImportError
        If prometheus_client is not installed.
    """
    with optional_import("metrics for Prometheus need", "prometheus"):
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
        from prometheus_client.registry import Collector

    class _Collector(Collector):
        def collect(self) -> Iterator[Any]:
            frame = monitor.to_frame()
            yield CounterMetricFamily("skexit_samples", "Samples so far.", value=monitor.n_samples)
            yield GaugeMetricFamily("skexit_drift", "1 if inputs have changed, else 0.", value=float(monitor.changed))
            recent = GaugeMetricFamily("skexit_recent_mean", "Recent mean.", labels=["quantity"])
            evidence = GaugeMetricFamily(
                "skexit_drift_e_value", "Evidence for a change.", labels=["quantity", "direction"]
            )
            for name, row in frame.iterrows():
                recent.add_metric([str(name)], row["recent"])
                for direction in ("rise", "fall"):
                    evidence.add_metric([str(name), direction], row[f"e_{direction}"])
            yield from (recent, evidence)
            if controller is not None:
                yield GaugeMetricFamily("skexit_nominal_budget", "Budget in use.", value=controller.nominal_budget)
                yield GaugeMetricFamily("skexit_mean_cost", "Mean cost so far.", value=controller.mean_cost)

    return _Collector()
