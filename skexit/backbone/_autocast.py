"""Keep the automatic mixed precision that a network switches on for some of its modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

#: Key of the setting in the metadata of a node that calls a module.
_KEY = "autocast"


@dataclass(frozen=True)
class Autocast:
    """A setting of ``torch.autocast`` on a type of device."""

    device_type: str
    dtype: torch.dtype
    enabled: bool

    @classmethod
    def current(cls, device_type: str) -> Autocast:
        """The setting in this thread."""
        return cls(device_type, torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type))


class _InAutocast(nn.Module):
    """A module that runs with a setting."""

    def __init__(self, module: nn.Module, setting: Autocast) -> None:
        super().__init__()
        self.module = module
        self._setting = setting

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        setting = self._setting
        with torch.autocast(setting.device_type, setting.dtype, setting.enabled, cache_enabled=False):
            return self.module(*args, **kwargs)


def mark(node: fx.Node, setting: Autocast | None) -> None:
    """Note the setting with which a node calls a module; None if it is that of the network's caller."""
    if setting is not None:
        node.meta[_KEY] = setting


def apply_settings(module: fx.GraphModule) -> fx.GraphModule:
    """Let the modules that a graph calls run with their settings."""
    marked = [node for node in module.graph.nodes if node.op == "call_module" and _KEY in node.meta]
    for number, node in enumerate(marked):
        own = module.get_submodule(str(node.target))
        node.target = f"_autocast_{number}"
        module.add_submodule(node.target, _InAutocast(own, node.meta[_KEY]))
    if marked:
        module.recompile()
    return module
