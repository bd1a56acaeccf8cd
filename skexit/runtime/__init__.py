"""Live networks that stop where a policy says."""

from skexit.runtime.batch import ExitOutput
from skexit.runtime.deployment import Activations, FirstPart, PartialOutput, SecondPart, join_outputs
from skexit.runtime.early_exit import EarlyExitModel
from skexit.runtime.latency import ExitLatency, measure_latency
from skexit.runtime.throughput import LoaderOutput

__all__ = [
    "Activations",
    "EarlyExitModel",
    "ExitLatency",
    "ExitOutput",
    "FirstPart",
    "LoaderOutput",
    "PartialOutput",
    "SecondPart",
    "join_outputs",
    "measure_latency",
]
