"""Modules, exits, heads and modes of a network."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import nn

#: The `head` parameter: the network's own output, none, or one module name or None per exit, in order or by exit.
Head: TypeAlias = str | Sequence[str | None] | Mapping[str, str | None] | None

#: The head that is the network's own output rather than a module.
NETWORK_OUTPUT = "output"


def check_network(model: Any) -> None:
    """Raise a TypeError unless this is a network whose modules can be observed, or a ValueError if it has no shapes."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"the {type(model).__name__} {model!r:.80}"
        raise TypeError(
            f"the network is {what}; pass a torch.nn.Module, such as torchvision.models.resnet18(weights='DEFAULT'), "
            "as the first argument."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise _hides_modules(
            "a TorchScript module of torch.jit.script or torch.jit.trace, whose modules cannot be watched"
        )
    if isinstance(model, torch.fx.GraphModule) and not _calls_modules(model):
        raise _hides_modules("a graph that calls no modules, such as that of torch.export")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(
                f"the network has a lazy module: {name!r} has no shape yet. Call the network once with a batch, "
                "before you pass it."
            )


def _calls_modules(graph: torch.fx.GraphModule) -> bool:
    # torch.export adds a module that checks the inputs.
    return any(node.op == "call_module" and node.target != "_guards_fn" for node in graph.graph.nodes)


def _hides_modules(what: str) -> TypeError:
    return TypeError(f"the network is {what}. Pass the torch.nn.Module that it was made from.")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of torch.compile, DataParallel and DistributedDataParallel.

    Raises a TypeError if it is not a network.
    """
    check_network(model)
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def find_modules(model: nn.Module, names: Sequence[str], parameter: str) -> list[nn.Module]:
    """Find submodules by name. Raises a ValueError if there are no names, one is repeated, or the network lacks one.

    ``"layer#3"`` names the fourth call of a module that is called several times.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"{parameter}={names!r} must be a list of at least one module name.")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{parameter} names {repeated[0]!r} more than once; name each module once.")
    modules = dict(model.named_modules(remove_duplicate=False))
    modules.pop("")
    for name in names:
        if split_call(name)[0] not in modules:
            near = difflib.get_close_matches(str(name), modules, n=3, cutoff=0.0)
            raise ValueError(
                f"{parameter} names {name!r}, which the network does not have. The nearest names are {near}; "
                "model.named_modules() lists all names."
            )
    found = [modules[split_call(name)[0]] for name in names]
    for name, module in zip(names, found, strict=True):
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{parameter} names {name!r}, which is a TorchScript module. Its output cannot be watched. Name "
                "another module, or replace it by the torch.nn.Module that it was made from."
            )
    return found


def check_can_be_recorded(model: nn.Module) -> None:
    """Raise a ValueError if a module is of TorchScript or quantized, which torch.export cannot record."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"the network cannot be divided at its exits: {name!r} is a TorchScript module, which cannot be "
                "recorded. Replace it by the torch.nn.Module that it was made from, or call it before the network."
            )
        if type(module).__module__.startswith(_QUANTIZED):
            raise ValueError(
                f"the network cannot be divided at its exits: {name!r} is quantized by torch.ao, which torch.export "
                "cannot record. If it is quantized dynamically, its rounding also depends on the other samples of a "
                "batch. Extract with the network before its quantization, and divide that one."
            )


#: Modules of quantized layers.
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def check_independent_rows(model: nn.Module) -> None:
    """Raise a ValueError if a module of a network in evaluation mode computes with the statistics of the batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{name!r} normalizes by the mean of the batch, also in evaluation mode, so that samples depend on one "
                "another and cannot stop one by one. Use running statistics (track_running_stats=True), "
                "and let model.eval() reach this module."
            )


def watched_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their names, except those of TorchScript, which take no hooks."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield name, module


def names_of_exits(model: nn.Module, exits: Any) -> list[str]:
    """The names of exits, which are given by name, or as modules of the network."""
    if isinstance(exits, str | nn.Module) or not isinstance(exits, Iterable):
        given = repr(exits) if isinstance(exits, str) else f"a {type(exits).__name__}"
        raise ValueError(
            f"exits is {given}; it must be a list of at least one module name, such as ['layer1', 'layer2'], or None "
            "to find exits."
        )
    first = {module: name for name, module in model.named_modules() if name}
    names = []
    for exit in exits:
        if isinstance(exit, nn.Module) and exit not in first:
            raise ValueError(
                f"exits has a {type(exit).__name__} that is not a module of the network. Pass names; "
                "model.named_modules() lists them."
            )
        names.append(first[exit] if isinstance(exit, nn.Module) else exit)
    find_modules(model, names, "exits")
    return names


def split_call(name: str) -> tuple[str, int | None]:
    """The name of a module, and the number of one of its calls, counted from 0; None if the name has no number."""
    module, _, number = str(name).partition("#")
    return (module, int(number)) if number.isdecimal() else (name, None)


def with_first_name(model: nn.Module, name: str) -> str:
    """The name of a module, or of one of its calls, with the first name that the module has in the network."""
    (module,), (_, number) = find_modules(model, [name], "exits"), split_call(name)
    first = next(other for other, found in model.named_modules() if found is module)
    return first if number is None else f"{first}#{number}"


def hook_calls(
    model: nn.Module, name: str, hook: Callable[..., None], *, before: bool = False
) -> torch.utils.hooks.RemovableHandle:
    """Run a hook at each call of a module, or at the one call, counted from now on, that the name has."""
    name, number = split_call(name)
    n_calls = 0

    def count_call(*call: Any) -> None:
        nonlocal n_calls
        if number in (None, n_calls):
            hook(*call)
        n_calls += 1

    module = model.get_submodule(name)
    return module.register_forward_pre_hook(count_call) if before else module.register_forward_hook(count_call)


def resolve_heads(model: nn.Module, head: Head, exits: Sequence[str]) -> list[str | None]:
    """One head for each exit: a module name, ``"output"``, or None.

    Raises a ValueError if `head` does not have one entry per exit, or names an unknown exit or module.
    """
    n_exits = len(exits)
    if isinstance(head, Mapping):
        for name in head:
            if name not in exits:
                raise ValueError(
                    f"head has the key {name!r}, which is not an exit. A dict has the names of exits as keys and "
                    f"those of their heads as values; exits={list(exits)}."
                )
        head = [head.get(name) for name in exits]
    if head is None or head == NETWORK_OUTPUT:
        return [None] * (n_exits - 1) + [head]
    if isinstance(head, str) or len(head) != n_exits:
        raise ValueError(
            f"head={head!r} must be 'output', None, a list with a module name or None for each of {n_exits} exits, or "
            "a dict of these by exit."
        )
    if names := own_heads(head).values():
        find_modules(model, list(names), "head")
    return list(head)


def own_heads(heads: Sequence[str | None]) -> dict[int, str]:
    """The heads that are modules, by exit."""
    return {k: name for k, name in enumerate(heads) if name is not None and name != NETWORK_OUTPUT}


def check_called_once(called: Sequence[str], names: Sequence[str], parameter: str) -> None:
    """Raise a ValueError unless a forward pass called each of the modules exactly once."""
    counts = Counter(called)
    for name in names:
        if counts[name] > 1:
            raise ValueError(
                f"{parameter} names {name!r}, which the forward pass calls {counts[name]} times; name one of the "
                f"calls, from '{name}#0' to '{name}#{counts[name] - 1}', or modules that are called once."
            )
        if counts[name] == 0:
            raise ValueError(
                f"{parameter} names {name!r}, which the forward pass calls 0 times; name modules that it calls as "
                "module(x) rather than module.forward(x). Calls of a module are counted from 0."
            )


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer, the CPU for a network that has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and restore each submodule's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def evaluating_rows(model: nn.Module) -> Iterator[None]:
    """As `evaluating`, for a network whose samples must not depend on one another; a ValueError if they do."""
    with evaluating(model):
        check_independent_rows(model)
        yield
