"""The commands that run a network: ``extract``, ``latency`` and ``export``."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from skexit.cli._commands import columns, command, json_asked, percent
from skexit.cli._files import (
    BATCH_SIZE,
    CACHE,
    POLICY,
    QUIET,
    check_out_file,
    load_fitting,
    open_cache,
    out_option,
    save_latency,
)
from skexit.utils._optional import check_torch, optional_import

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from skexit.backbone._inputs import Inputs
    from skexit.cache import FeatureCache
    from skexit.runtime import EarlyExitModel, ExitLatency

_FUNCTION = click.argument("function", metavar="MODULE:FUNCTION")


def add_network_commands(group: click.Group) -> None:
    """Add ``extract``, ``latency`` and ``export``."""
    for name, function, example in (
        ("extract", _extract, "skexit extract my_network:make --out cache"),
        ("latency", _latency, "skexit latency my_network:make cache policy.joblib --batch-size 1 --batch-size 8"),
        ("export", _export, "skexit export my_network:make cache policy.joblib --out network.onnx"),
    ):
        command(group, name, example)(function)


@_FUNCTION
@out_option(None, "Folder for the cache: new, empty, or from an interrupted extraction.")
@click.option("--exit", "exits", multiple=True, metavar="NAME", help="Module after which the network can stop; repeat.")
@click.option("--n-exits", type=int, help="Number of exits to find, if --exit names none.")
@click.option(
    "--pool",
    "pools",
    multiple=True,
    default=["auto"],
    show_default=True,
    help="How to pool the output of an exit, such as avg or grid4; repeat to join several.",
)
@click.option("--cost-unit", default="FLOPs", show_default=True, help="FLOPs, MACs or ms.")
@QUIET
def _extract(
    function: str,
    out: str,
    exits: tuple[str, ...],
    n_exits: int | None,
    pools: tuple[str, ...],
    cost_unit: str,
    quiet: bool,
) -> Any:
    """Run a network once, and store each exit's logits and features.

    MODULE:FUNCTION is called without arguments and returns (network, loader). The loader returns (inputs, labels) and
    must not shuffle. If labels are names, return (network, loader, classes), with the classes in the order of the
    logits. MODULE is searched in the current folder first. After Ctrl-C, repeat the command to continue.
    """
    if exits and n_exits is not None:
        raise click.UsageError("--exit names the exits, --n-exits is the number of exits to find; give one of the two.")
    if os.path.isfile(out):
        raise NotADirectoryError(f"--out {out!r} is a file; a cache is a folder. Give another name.")
    network, loader, classes = _call_for_classes(function)
    from skexit.backbone import exit_points
    from skexit.extraction import ExitExtractor

    example, loader = _first_inputs(network, loader)
    names = list(exits) or exit_points(network, example_input=example, n_exits=n_exits)
    extractor = ExitExtractor(network, names, pool=pools[0] if len(pools) == 1 else pools, cost_unit=cost_unit)
    cache = extractor.extract(loader, out, classes=classes, progress=not quiet and not json_asked())
    facts = {"cache": out, "rows": cache.n_rows, "exits": names, "costs": cache.layout.cost_fractions}
    return facts, "" if quiet else f"{out}: {cache.n_rows:,} rows, exits {', '.join(names)}"


@_FUNCTION
@CACHE
@POLICY
@click.option(
    "--batch-size",
    "batch_sizes",
    type=BATCH_SIZE,
    multiple=True,
    default=[1, 8, 64],
    show_default=True,
    help="Number of samples that arrive together; repeat.",
)
@click.option(
    "--onnx", is_flag=True, help="Measure in onnxruntime, which runs the file of skexit export, not in torch."
)
@click.option(
    "--one-thread", is_flag=True, help="Use one thread. On a shared machine, times with several threads vary."
)
@click.option(
    "--repeats", type=int, default=10, show_default=True, help="Number of timed runs, of which medians are used."
)
@click.option("--out", help="JSON file to write, for skexit fit --latency.")
def _latency(
    function: str,
    cache: str,
    policy: str,
    batch_sizes: tuple[int, ...],
    onnx: bool,
    one_thread: bool,
    repeats: int,
    out: str | None,
) -> Any:
    """Measure how many milliseconds the live network and the plain network take.

    The time of the live network is the time up to each exit, for the shares of the rows of CACHE that leave there. Give
    a cache of rows that the policy was not fitted on, if you have one.

    MODULE:FUNCTION returns the network that CACHE was extracted from; exits and pooling are those of CACHE. POLICY is a
    file from skexit fit. Loading it can run code in the file, so give only files that you trust.
    """
    path = None if out is None else check_out_file(out)
    live, example, fitted, opened = _live(function, cache, policy)
    measured = _measure(live, batch_sizes, example, repeats, onnx=onnx, one_thread=one_thread)
    if path is not None:
        save_latency(measured, path)
    table = measured.expected(fitted, opened.X)
    runtime = "onnxruntime" if onnx else "torch"
    facts = {"runtime": runtime, "rows": opened.n_rows, "expected": table.reset_index().to_dict("records")}
    return facts | {"latency": measured.to_dict()}, _table_of(table, runtime)


@_FUNCTION
@CACHE
@POLICY
@out_option("network.onnx", "File to write.")
def _export(function: str, cache: str, policy: str, out: str) -> Any:
    """Write the network with its policy as one ONNX file, which stops by itself.

    MODULE:FUNCTION returns the network that CACHE was extracted from; exits and pooling are those of CACHE. POLICY is a
    file from skexit fit. Loading it can run code in the file, so give only files that you trust.
    """
    check_out_file(out)
    live, *_ = _live(function, cache, policy)
    from skexit.runtime import export_onnx

    path = export_onnx(live, out)
    return {"file": str(path), "bytes": path.stat().st_size}, str(path)


def _live(function: str, cache: str, policy: str) -> tuple[EarlyExitModel, Inputs, Any, FeatureCache]:
    """The live network, its example input, its policy as loaded, and the cache with its exits."""
    opened = open_cache(cache)
    fitted = load_fitting(policy, opened, cache)
    network, loader = _call(function)
    from skexit.runtime import EarlyExitModel

    example, _ = _first_inputs(network, loader)
    live = EarlyExitModel(network, policy=fitted, example_input=example, **_settings(opened))
    return live, example, fitted, opened


def _measure(
    live: EarlyExitModel, batch_sizes: Sequence[int], example: Inputs, repeats: int, *, onnx: bool, one_thread: bool
) -> ExitLatency:
    from skexit.utils._threads import one_torch_thread

    with one_torch_thread() if one_thread else nullcontext():
        if not onnx:
            from skexit.runtime import measure_latency

            return measure_latency(live, batch_sizes=batch_sizes, example_input=example, n_repeats=repeats)
        with optional_import("skexit latency --onnx runs the network in", "onnx-export"):
            from onnxruntime import SessionOptions
        from skexit.runtime import measure_onnx_latency

        options = SessionOptions()
        options.intra_op_num_threads = 1 if one_thread else 0  # 0 is the default of onnxruntime
        return measure_onnx_latency(
            live, batch_sizes, example_input=example, session_options=options, n_repeats=repeats
        )


def _table_of(expected: pd.DataFrame, runtime: str) -> str:
    """The expected times as text. `expected` is the result of ``ExitLatency.expected``."""
    lines = [("batch size", "plain network", "live network", "saved")]
    for size, row in expected.iterrows():
        lines.append((str(size), f"{row['network_ms']:.4g} ms", f"{row['live_ms']:.4g} ms", percent(row["saved"])))
    shares = ", ".join(map(percent, expected.filter(like="_share").iloc[0]))
    text = [f"Times per sample in {runtime}.", "", *columns(lines), "", f"leave at the exits: {shares}"]
    if (expected["saved"] < 0).any():
        text += ["", "The live network takes longer where its decisions take more time than early exits save."]
        text += ["skexit fit --latency switches off exits that do not pay. Small networks save no time."]
    return "\n".join(text)


def _settings(cache: FeatureCache) -> dict[str, Any]:
    """Exits, pooling, channels and heads with which a cache was extracted."""
    origin = cache.origin
    if "exits" not in origin:
        raise ValueError(
            f"the cache {str(cache.path)!r} does not say which exits it has, because no ExitExtractor wrote it. "
            "Make an EarlyExitModel of skexit.runtime in Python, and pass it to export_onnx or measure_latency."
        )
    pool, channels = origin["pool"], origin["channels"]
    return {
        "exits": json.loads(origin["exits"]),
        "pool": pool.split("+") if "+" in pool else pool,
        "channels": json.loads(channels) if channels.startswith("{") else channels,
        "head": json.loads(origin["head"]),
    }


def _call(spec: str) -> tuple[torch.nn.Module, Iterable[Any]]:
    """Call MODULE:FUNCTION, and return its network and loader."""
    network, loader, _ = _call_for_classes(spec)
    return network, loader


def _call_for_classes(spec: str) -> tuple[torch.nn.Module, Iterable[Any], Any]:
    """Call MODULE:FUNCTION, and return its network, its loader, and its classes, or None if it returns none."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name.isidentifier() or module_name.endswith(".py") or os.sep in module_name:
        raise click.UsageError(
            f"{spec!r} must be MODULE:FUNCTION, for example 'my_network:make' for the function make in my_network.py."
        )
    check_torch("running a network needs")
    import torch

    function = getattr(_import(module_name), name, None)
    if not callable(function):
        raise ValueError(
            f"the module {module_name!r} has no function {name!r}. Define it there, or name another function."
        )
    try:
        made = function()
    except Exception as error:
        raise RuntimeError(f"{spec} raised {type(error).__name__}: {error}") from error
    if not isinstance(made, Sequence) or len(made) not in (2, 3) or not isinstance(made[0], torch.nn.Module):
        raise ValueError(
            f"{spec} returned an object of type {type(made).__name__}; it must return a network and a loader: "
            "(network, loader), or (network, loader, classes)."
        )
    network, loader, classes = (*made, None)[:3]
    if not isinstance(loader, Iterable):
        raise ValueError(
            f"{spec} returned a loader of type {type(loader).__name__}; return an iterable of (inputs, labels)."
        )
    return network, loader, classes


def _import(module_name: str) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
            raise ValueError(
                f"there is no module {module_name!r} in {os.getcwd()!r} or among the installed packages. Change to the "
                "folder of the module, or install it."
            ) from error
        raise RuntimeError(f"importing {module_name!r} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())


def _first_inputs(network: torch.nn.Module, loader: Iterable[Any]) -> tuple[Inputs, Iterable[Any]]:
    """The first inputs of a loader, on the network's device, and a loader that still starts with them."""
    from skexit.backbone._inputs import map_tensors
    from skexit.backbone._loaders import read_item
    from skexit.backbone._modules import device_of

    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise ValueError("loader is empty; give at least one batch.")
    inputs = map_tensors(lambda tensor: tensor.to(device_of(network)), read_item(0, first)[0])
    return inputs, chain([first], batches) if batches is loader else loader
