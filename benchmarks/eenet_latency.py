"""Milliseconds to each exit of the networks of ``eenet_tables.py``, with heads and policy.

    python benchmarks/eenet_latency.py --data-root DIR --weights resnet56.th --fine-tuned DIR --caches DIR --out DIR

The arguments are those of ``eenet_tables.py``, which reads the ``latency.csv`` that is written to `--out`. Run it
where nothing else runs. One input at a time, on one thread, 100 runs after two that warm up; medians count. What a
stage takes does not depend on the policy, so that one number serves all: the median over the measurements.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch
from eenet_settings import SETTINGS, Setting, argument_parser, policies

from skexit.extraction.costs import exit_costs
from skexit.runtime import EarlyExitModel, measure_latency

N_REPEATS = 100
#: Enough rows to fit policies on, as it does not matter here how good these are.
N_ROWS = 1000


def measure(name: str, setting: Setting) -> pd.DataFrame:
    """A row for each policy and exit."""
    tables, stages = [], []
    for policy_name, policy in policies(name, seed=0).items():
        policy.set_params(budget=0.8).fit(setting.X[:N_ROWS], setting.y[:N_ROWS])
        live = EarlyExitModel(
            setting.network, setting.exits, policy, setting.heads, pool=setting.pool, head=setting.head
        )
        latency = measure_latency(live, batch_sizes=(1,), example_input=setting.example_input, n_repeats=N_REPEATS)
        stages.append(latency.stage_ms[0])
        tables.append(
            pd.DataFrame(
                {
                    "setting": name,
                    "policy": policy_name,
                    "exit": np.arange(1, len(setting.exits) + 1),
                    "exit ms": latency.exit_ms[0],
                    "spread of stage ms": latency.spread_ms[0],
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    table["stage ms"] = np.tile(np.median(stages, axis=0), len(tables))
    table["plain ms"] = plain_ms(setting)
    table["ms"] = (table["stage ms"] + table["exit ms"]).groupby(table["policy"]).cumsum()
    return table


def plain_ms(setting: Setting) -> float:
    """Milliseconds of the network up to its last exit, with its own output where that is an exit."""
    head = "output" if setting.head == "output" else None
    costs = exit_costs(setting.network, setting.exits, setting.example_input, unit="ms", head=head, n_repeats=N_REPEATS)
    return float(costs.costs[-1])


def run(arguments: argparse.Namespace) -> None:
    path = arguments.out / "latency.csv"
    arguments.out.mkdir(parents=True, exist_ok=True)
    tables = [pd.read_csv(path)] if path.exists() else []
    for name in arguments.settings:
        tables = [table[table["setting"] != name] for table in tables]
        tables.append(measure(name, SETTINGS[name](arguments)))
        pd.concat(tables).to_csv(path, index=False, float_format="%.4f")
        print(tables[-1].pivot(index="policy", columns="exit", values="ms").round(2), flush=True)


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    run(arguments)


if __name__ == "__main__":
    main()
