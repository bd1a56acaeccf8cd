"""Live networks that stop where a policy says."""

from skexit.runtime.batch import ExitOutput
from skexit.runtime.early_exit import EarlyExitModel
from skexit.runtime.latency import ExitLatency, measure_latency

__all__ = ["EarlyExitModel", "ExitLatency", "ExitOutput", "measure_latency"]
