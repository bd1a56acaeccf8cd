"""Does skexit take this network? Exits found by themselves, extracted, run live and compared, network by network.

    python -m benchmarks.networks --out FOLDER [--only NAME ...] [--onnx]

Networks of torchvision, timm and Hugging Face with random weights, and networks with exits of their own. For each, on
48 samples:

exits
    how many of four exits ``exit_points`` finds
extraction
    "yes" if a cache was made with these exits
costs
    largest relative difference of an exit's cost from a count of the benchmark's own, by the shapes of each matrix
    product and convolution as the plain network runs
live
    "yes" if the live network runs
agreement
    share of the samples that leave live where the policy on cached rows says, with the same label
onnx
    share of the samples that leave in onnxruntime where they leave live, with the same label; with ``--onnx``

A cell that says something else says why it is not possible. FOLDER/networks.csv gets each network's row when it is
measured, FOLDER/summary.csv what works of how many. Networks that networks.csv has are left out: delete their rows, or
the file, to measure them again. ``--onnx`` measures those again whose last cell is empty.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.shared import libraries
from benchmarks.shared.own_exits import OWN_EXITS, network_with_exits
from skexit import ExitHeads, ThresholdPolicy
from skexit.backbone import exit_points
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx

N_SAMPLES, N_EXITS = 48, 4
COLUMNS = ["network", "exits", "extraction", "costs", "live", "agreement", "onnx"]

Network = tuple[nn.Module, Any]


def networks() -> Iterator[tuple[str, Callable[[], Network]]]:
    """Names, and functions that give a network and inputs for it."""
    texts = [*libraries.ENCODERS, *libraries.DECODERS, *libraries.SEQ2SEQ]
    groups: list[tuple[str, Any, Callable[[str, int], Network]]] = [
        ("torchvision", libraries.TORCHVISION, libraries.torchvision_network),
        ("timm", libraries.TIMM, libraries.timm_network),
        ("Hugging Face", texts, libraries.text_network),
        ("Hugging Face", libraries.IMAGES, libraries.image_network),
        ("Hugging Face", libraries.SOUNDS, libraries.sound_network),
        ("Hugging Face", libraries.SPECTROGRAMS, libraries.spectrogram_network),
        ("own exits", OWN_EXITS, network_with_exits),
    ]
    for group, names, make in groups:
        for name in names:
            yield f"{group}: {name}", partial(make, name, N_SAMPLES)


def measure(make: Callable[[], Network], onnx: bool) -> dict[str, Any]:
    """What works with a network, and what does not, why."""
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for column, cell in _cells(model, inputs, Path(folder), onnx):
            try:
                row[column] = cell()
            except Exception as error:
                row[column] = _why(error)
                if column in ("exits", "extraction"):  # nothing else is possible
                    break
    return row


def _cells(model: nn.Module, inputs: Any, folder: Path, onnx: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The columns of a network in turn, and what gives each; later ones need what earlier ones found."""
    found = _Found(model, inputs, folder)
    yield "exits", found.find_exits
    yield "extraction", found.extract
    yield "costs", found.difference_of_costs
    yield "live", found.run_live
    if found.output is not None:
        yield "agreement", found.agreement
        if onnx:
            yield "onnx", found.onnx_agreement


class _Found:
    """What is known of a network, step by step."""

    def __init__(self, model: nn.Module, inputs: Any, folder: Path) -> None:
        self.model, self.inputs, self.folder = model, inputs, folder
        self.example = _rows(inputs, 2)
        self.output: Any = None

    def find_exits(self) -> int:
        self.exits = exit_points(self.model, example_input=self.example, n_exits=N_EXITS)
        return len(self.exits)

    def extract(self) -> str:
        y = torch.arange(N_SAMPLES) % 2
        extractor = ExitExtractor(self.model, self.exits)
        cache = extractor.extract([(self.inputs, y)], self.folder / "cache", progress=False)
        self.X, self.layout, self.y = cache.X, cache.layout, cache.y
        return "yes"

    def difference_of_costs(self) -> float:
        has_logits = [self.layout.has_logits(k) for k in range(self.layout.n_exits)]
        counted = count_exits(self.model, self.exits, has_logits, _rows(self.inputs, 1))
        return float(np.abs(np.asarray(self.layout.costs) / counted - 1).max().round(4))

    def run_live(self) -> str:
        last = len(self.exits) - 1
        y = np.argmax(self.X.logits(last), axis=1) if self.layout.has_logits(last) else self.y.copy()
        n_classes = self.layout.n_classes or 2
        y[:n_classes] = np.arange(n_classes)
        heads = ExitHeads(cv=2, random_state=0)
        self.policy = ThresholdPolicy(budget=0.8, heads=heads).fit(self.X, y)
        self.live = EarlyExitModel(self.model, self.exits, self.policy, example_input=self.example)
        self.output = self.live(**self.inputs) if isinstance(self.inputs, dict) else self.live(self.inputs)
        return "yes"

    def agreement(self) -> float:
        same = self.output.exits.numpy() == self.policy.predict_exit(self.X)
        same &= self.output.labels.numpy() == self.policy.predict(self.X)
        return float(same.mean().round(4))

    def onnx_agreement(self) -> float:
        session = OnnxEarlyExit(export_onnx(self.live, str(self.folder / "network.onnx")))
        arrays = (
            {k: v.numpy() for k, v in self.inputs.items()} if isinstance(self.inputs, dict) else self.inputs.numpy()
        )
        output = session.predict(arrays)
        same = (output.exits == self.output.exits.numpy()) & (output.labels == self.output.labels.numpy())
        return float(same.mean().round(4))


def _rows(inputs: Any, n: int) -> Any:
    return {name: value[:n] for name, value in inputs.items()} if isinstance(inputs, dict) else inputs[:n]


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


class _Work(TorchDispatchMode):
    """Notes the FLOPs of each operation, and between which operations each of some modules runs."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.flops: list[int] = []
        self.spans = {name: [0, 0] for name in names}
        self._hooks = []
        for name, span in self.spans.items():
            # "layer#3" is the fourth call of the module.
            module_name, _, number = name.partition("#")
            module, n_calls = model.get_submodule(module_name), [0, 0]
            call = int(number) if number else None
            self._hooks.append(module.register_forward_pre_hook(partial(self._note, span, 0, n_calls, call)))
            self._hooks.append(module.register_forward_hook(partial(self._note, span, 1, n_calls, call)))

    def _note(self, span: list[int], end: int, n_calls: list[int], call: int | None, *_: Any) -> None:
        if call in (None, n_calls[end]):
            span[end] = len(self.flops)
        n_calls[end] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.flops.append(_flops(str(func.overloadpacket), args, output))
        return output

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)


def _flops(operation: str, args: Any, output: Any) -> int:
    """Two for each multiply-add."""
    if operation in ("aten.mm", "aten.bmm"):
        return 2 * args[0].numel() * int(args[1].shape[-1])
    if operation in ("aten.addmm", "aten.baddbmm"):
        return 2 * args[1].numel() * int(args[2].shape[-1])
    if operation == "aten.convolution":
        return 2 * output.numel() * math.prod(args[1].shape[1:])
    return 0


def count_exits(model: nn.Module, exits: list[str], has_logits: list[bool], inputs: Any) -> np.ndarray[Any, Any]:
    """FLOPs of an answer at each exit for one row, as the plain network runs.

    An exit takes what runs before the end of its module, and the classifiers up to it. The modules in
    ``model.classifiers`` are classifiers; in a network without them, the whole network answers at an exit with logits.
    """
    classifiers = [f"classifiers.{k}" for k in range(len(getattr(model, "classifiers", [])))]
    work = _Work(model, exits + classifiers)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), work:
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    flops = np.array(work.flops)
    of_classifier = [flops[slice(*work.spans[name])].sum() for name in classifiers]
    for name in classifiers:
        flops[slice(*work.spans[name])] = 0
    counted, n_answers = [], 0
    for name, answers in zip(exits, has_logits, strict=True):
        n_answers += answers
        whole = answers and not classifiers
        counted.append(flops[: None if whole else work.spans[name][1]].sum() + sum(of_classifier[:n_answers]))
    return np.array(counted)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How many networks of each group, and of all, pass; a row per group, with nothing where none was tried."""
    number = {name: pd.to_numeric(table[name], errors="coerce") for name in ("exits", "costs", "agreement", "onnx")}
    passes = pd.DataFrame({
        "networks": table["network"].notna(),
        "exits found": number["exits"] >= 2,
        "extracted": table["extraction"] == "yes",
        "costs within 3 %": number["costs"] <= 0.03,
        "live": table["live"] == "yes",
        "agreement 1": number["agreement"] == 1,
        "ONNX as live": (number["onnx"] == 1).where(table["onnx"].notna()),
    }).astype("boolean")  # fmt: skip
    groups = passes.groupby(table["network"].str.partition(":")[0], sort=False).sum(min_count=1)
    return pd.concat([groups, passes.sum(min_count=1).to_frame("all").T]).rename_axis("group").reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="a folder; its networks.csv is continued if it exists")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--onnx", action="store_true", help="export each live network and run it in onnxruntime")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)  # fused layers hide their matrix products
    options.out.mkdir(parents=True, exist_ok=True)
    rows = _read(options.out / "networks.csv")
    for name, make in networks():
        known = name in rows and not (options.onnx and pd.isna(rows[name]["onnx"]))
        if known or not any(part in name for part in options.only):
            continue
        rows[name] = {"network": name} | measure(make, options.onnx)
        print(rows[name], flush=True)
        _write(rows, options.out)
    _write(rows, options.out)
    print(summary(_table(rows)).to_string())


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    return {row["network"]: row for row in pd.read_csv(path, dtype=object).to_dict("records")}


def _table(rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([rows[name] for name, _ in networks() if name in rows], columns=COLUMNS)


def _write(rows: dict[str, Any], folder: Path) -> None:
    """Each file whole or not at all, so that the next run continues one that was killed."""
    table = _table(rows)
    for name, part in {"networks": table, "summary": summary(table)}.items():
        file = folder / f"{name}.csv"
        part.to_csv(file.with_suffix(".part"), index=False)
        file.with_suffix(".part").replace(file)


if __name__ == "__main__":
    main()
