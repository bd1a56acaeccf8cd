"""Live networks in which a policy decides at which exit each sample stops."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from skexit.utils._optional import optional_import

if TYPE_CHECKING:
    from skexit.runtime._deployment import Activations, FirstPart, PartialOutput, SecondPart, join_outputs
    from skexit.runtime._early_exit import EarlyExitModel
    from skexit.runtime._exit_latency import ExitLatency
    from skexit.runtime._latency import measure_latency
    from skexit.runtime._onnx_export import export_onnx
    from skexit.runtime._onnx_latency import measure_onnx_latency
    from skexit.runtime._onnx_policy import set_policy
    from skexit.runtime._onnx_session import OnnxEarlyExit
    from skexit.runtime._output import ExitOutput
    from skexit.runtime._policy_json import policy_from_json, policy_to_json
    from skexit.runtime._prepared import PreparedNetwork
    from skexit.runtime._pruning import pruned
    from skexit.runtime._throughput import LoaderOutput

#: Module of each public name. Modules are imported on first use, because a network in ONNX runs without torch.
_MODULES = {
    "Activations": "_deployment",
    "EarlyExitModel": "_early_exit",
    "ExitLatency": "_exit_latency",
    "ExitOutput": "_output",
    "FirstPart": "_deployment",
    "LoaderOutput": "_throughput",
    "OnnxEarlyExit": "_onnx_session",
    "PartialOutput": "_deployment",
    "PreparedNetwork": "_prepared",
    "SecondPart": "_deployment",
    "export_onnx": "_onnx_export",
    "join_outputs": "_deployment",
    "measure_latency": "_latency",
    "measure_onnx_latency": "_onnx_latency",
    "policy_from_json": "_policy_json",
    "policy_to_json": "_policy_json",
    "pruned": "_pruning",
    "set_policy": "_onnx_policy",
}

__all__ = [
    "Activations",
    "EarlyExitModel",
    "ExitLatency",
    "ExitOutput",
    "FirstPart",
    "LoaderOutput",
    "OnnxEarlyExit",
    "PartialOutput",
    "PreparedNetwork",
    "SecondPart",
    "export_onnx",
    "join_outputs",
    "measure_latency",
    "measure_onnx_latency",
    "policy_from_json",
    "policy_to_json",
    "pruned",
    "set_policy",
]


_NEED_ONNX = ("export_onnx", "measure_onnx_latency")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with optional_import(f"{__name__}.{name} needs", "onnx-export" if name in _NEED_ONNX else "torch"):
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
