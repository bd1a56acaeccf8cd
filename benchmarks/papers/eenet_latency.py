"""Milliseconds to each exit of the networks of ``eenet_tables.py``, with heads and policy.

    python -m benchmarks.papers.eenet_latency --data-root DIR --weights resnet56.th --out DIR [--minilm FOLDER]

The arguments are those of ``eenet_tables.py``, which reads the ``latency.csv`` that is written to `--out`. Run it
where nothing else runs. One input at a time, on one thread. Ten rounds, in each of which all policies and the plain
network run ten times, so that all see the same machine; medians count. Heads and policies are of the sizes that the
tables have, fitted on random inputs: what they have learned changes no time. Nor does the policy change what a stage
takes, so that one number serves all: the median over the policies.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from benchmarks.papers.eenet_settings import BACKBONES, Backbone, argument_parser, policies
from skexit import ExitArray, ExitHeads
from skexit.backbone._costs import exit_costs
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, measure_latency

N_CLASSES = {"CIFAR-10": 10, "CIFAR-100": 100, "SST-2": 2, "AG News": 4}
N_ROUNDS, N_REPEATS = 10, 10
#: Random inputs to fit heads and policies on.
N_ROWS = 200


def measure(name: str, backbone: Backbone) -> pd.DataFrame:
    """A row for each policy and exit."""
    X, y, heads = random_rows(backbone, N_CLASSES[name])
    live = {
        policy_name: EarlyExitModel(
            backbone.network,
            backbone.exits,
            policy.set_params(budget=0.8).fit(X, y),
            heads,
            pool=backbone.pool,
            head=backbone.head,
        )
        for policy_name, policy in policies(name, seed=0).items()
        if policy_name != "EENet, as published"  # takes as long as EENet
    }
    rounds = [measure_round(backbone, live) for _ in range(N_ROUNDS)]
    table = pd.concat(rounds).groupby(["policy", "exit"], sort=False).median().reset_index()
    # A stage takes as long whatever the policy is.
    table["stage ms"] = table.groupby("exit")["stage ms"].transform("median")
    table["ms"] = (table["stage ms"] + table["exit ms"]).groupby(table["policy"]).cumsum()
    table.insert(0, "setting", name)
    return table


def measure_round(backbone: Backbone, live: dict[str, EarlyExitModel]) -> pd.DataFrame:
    """Medians of a few runs of each live network, one after the other, and of the plain network."""
    tables = []
    for name, model in live.items():
        latency = measure_latency(model, batch_sizes=(1,), example_input=backbone.example_input, n_repeats=N_REPEATS)
        times = {"stage ms": latency.stage_ms[0], "exit ms": latency.exit_ms[0]}
        tables.append(pd.DataFrame({"policy": name, "exit": np.arange(1, len(backbone.exits) + 1)} | times))
    table = pd.concat(tables, ignore_index=True)
    table["plain ms"] = plain_ms(backbone)
    return table


def random_rows(backbone: Backbone, n_classes: int) -> tuple[ExitArray, np.ndarray, ExitHeads | None]:
    """What the exits say of random inputs, their labels, and heads where exits have no logits."""
    generator = torch.Generator().manual_seed(0)
    y = np.arange(N_ROWS) % n_classes
    batches = []
    for labels in np.split(y, N_ROWS // 50):
        if isinstance(backbone.example_input, dict):
            size = (len(labels), backbone.example_input["input_ids"].shape[1])
            inputs = {
                "input_ids": torch.randint(1000, 20_000, size, generator=generator),
                "attention_mask": torch.ones(size, dtype=torch.long),
            }
            batches.append(inputs | {"labels": torch.from_numpy(labels)})
        else:
            size = (len(labels), *backbone.example_input.shape[1:])
            batches.append((torch.randn(size, generator=generator), torch.from_numpy(labels)))
    extractor = ExitExtractor(backbone.network, backbone.exits, pool=backbone.pool, head=backbone.head)
    with TemporaryDirectory() as folder:
        cache = extractor.extract(batches, Path(folder, "cache"), progress=False)
        X = ExitArray.from_array(np.asarray(cache.X), cache.layout)
    if isinstance(backbone.head, list):
        return X, y, None
    heads = ExitHeads((256,), max_epochs=2, batch_size=50, random_state=0).fit(X, y)
    return heads.transform(X), y, heads


def plain_ms(backbone: Backbone) -> float:
    """Milliseconds of the network up to its last exit, with its own output where that is an exit."""
    head = "output" if backbone.head == "output" else None
    network, exits = backbone.network, backbone.exits
    costs = exit_costs(network, exits, backbone.example_input, unit="ms", head=head, n_repeats=N_REPEATS)
    return float(costs.costs[-1])


def run(arguments: argparse.Namespace) -> None:
    path = arguments.out / "latency.csv"
    arguments.out.mkdir(parents=True, exist_ok=True)
    tables = [pd.read_csv(path)] if path.exists() else []
    for name in arguments.settings:
        tables = [table[table["setting"] != name] for table in tables]
        tables.append(measure(name, BACKBONES[name](arguments)))
        pd.concat(tables).to_csv(path, index=False, float_format="%.4f")
        print(tables[-1].pivot(index="policy", columns="exit", values="ms").round(2), flush=True)


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    run(arguments)


if __name__ == "__main__":
    main()
