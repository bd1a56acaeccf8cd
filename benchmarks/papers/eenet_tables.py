"""Tables 1 and 2 of the EENet paper again: accuracy of exit policies at three budgets, and what exits cost.

    python -m benchmarks.papers.fine_tune sst2 --data-root DIR --out FINE_TUNED/sst2.pt
    python -m benchmarks.papers.fine_tune ag_news --data-root DIR --out FINE_TUNED/ag_news.pt
    python -m benchmarks.papers.eenet_latency --data-root DIR --weights resnet56.th --out DIR
    python -m benchmarks.papers.eenet_tables --data-root DIR --weights resnet56.th \
        --fine-tuned FINE_TUNED --caches DIR --out DIR

`--data-root` and `--weights` are those of ``em_routing.py``; the root also holds ``cifar100`` (mosaics, or what
torchvision downloads), ``sst2`` and ``ag_news`` (see ``shared/data.py``). `--caches` is a folder for features, 4 GB,
which are extracted once, and for heads.

Policies are fitted on half of the held-out rows and measured on the other half, split after split. Budgets are
fractions of what the network costs without early exits: of its FLOPs, and of its milliseconds, where
`--out` has the ``latency.csv`` that ``eenet_latency.py`` wrote. What heads and policy take is in the costs.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.papers.eenet_report import summarize, write_tables
from benchmarks.papers.eenet_settings import SETTINGS, Setting, argument_parser, policies
from benchmarks.shared.routing import half_rows
from skexit import ExitArray, StaticExit
from skexit.policies import BudgetedPolicy
from skexit.runtime import EarlyExitModel

#: Low, middle and high, as fractions of the network's; the paper's budgets over its base latency.
BUDGETS = {
    "CIFAR-10": (0.53, 0.64, 0.74),
    "CIFAR-100": (0.59, 0.66, 0.74),
    "SST-2": (0.47, 0.54, 0.67),
    "AG News": (0.40, 0.54, 0.67),
}
N_SPLITS = 5
#: So many rows have all classes in them.
N_ROWS_WITH_ALL_CLASSES = 1500


def costs_in_ms(latency: pd.DataFrame, setting: str, policy: str) -> tuple[np.ndarray, float]:
    """Milliseconds until each exit, with this policy, and those of the network."""
    measured = policy.removesuffix(", as published")
    rows = latency[(latency["setting"] == setting) & (latency["policy"] == measured)].sort_values("exit")
    return rows["ms"].to_numpy(), float(rows["plain ms"].iloc[0])


def in_units(setting: Setting, name: str, policy: str, latency: pd.DataFrame | None) -> Iterator[tuple[str, ExitArray]]:
    """The unit of costs, and the logits with costs in it."""
    yield "FLOPs", setting.logits
    if latency is not None:
        ms, plain_ms = costs_in_ms(latency, name, policy)
        layout = setting.logits.layout.replace(costs=ms, cost_unit="ms", network_cost=plain_ms)
        yield "ms", setting.logits.with_layout(layout)


def measure(name: str, setting: Setting, latency: pd.DataFrame | None) -> pd.DataFrame:
    """Accuracy and mean cost of each policy, in each unit, at each budget, on each split."""
    rows = []
    for seed in range(N_SPLITS):
        fit, test = half_rows(len(setting.y), seed)
        for policy_name, policy in policies(name, seed).items():
            for unit, X in in_units(setting, name, policy_name, latency):
                for budget in BUDGETS[name]:
                    fitted = fit_to(policy, X[fit], setting.y[fit], budget)
                    rows.append(
                        {
                            "setting": name,
                            "unit": unit,
                            "budget": budget,
                            "policy": policy_name,
                            "split": seed,
                            "accuracy": fitted.score(X[test], setting.y[test]),
                            "cost": fitted.mean_cost(X[test]),
                        }
                    )
    return pd.DataFrame(rows)


def fit_to(policy: BudgetedPolicy, X: ExitArray, y: np.ndarray, budget: float) -> BudgetedPolicy:
    """The policy, fitted for a budget."""
    with warnings.catch_warnings():
        # Votes and exits that do harm leave budget unspent; the tables say how much.
        warnings.simplefilter("ignore", UserWarning)
        return policy.set_params(budget=budget).fit(X, y)


def exit_accuracies(name: str, setting: Setting) -> pd.DataFrame:
    """Accuracy of each exit on all held-out rows."""
    X = setting.logits
    right = [np.mean(X.logits(k).argmax(axis=1) == setting.y) for k in range(X.layout.n_exits)]
    return pd.DataFrame({"setting": name, "exit": np.arange(1, len(right) + 1), "accuracy": right})


def sizes(name: str, setting: Setting) -> pd.DataFrame:
    """Parameters and FLOPs until each exit, what the heads until there add, and EENet's network at the exit."""
    backbone = setting.backbone
    last = StaticExit(-1).fit(setting.X[:N_ROWS_WITH_ALL_CLASSES], setting.y[:N_ROWS_WITH_ALL_CLASSES])
    live = EarlyExitModel(backbone.network, backbone.exits, last, setting.heads, pool=backbone.pool, head=backbone.head)
    live.prepare(backbone.example_input)
    stages = [live.stages[k] for k in range(len(backbone.exits))]
    networks = policies(name, 0)["EENet"].fit(setting.logits, setting.y).networks_
    own_heads = [0 if stage.logits is None else n_parameters(stage.logits) for stage in stages]
    trained = [None] * len(stages) if setting.heads is None else setting.heads.networks_
    heads = [own if head is None else n_numbers(head) for own, head in zip(own_heads, trained, strict=True)]
    head_flops = np.cumsum([2 * n_weights(stage, head) for stage, head in zip(stages, trained, strict=True)])
    return pd.DataFrame(
        {
            "setting": name,
            "exit": np.arange(1, len(stages) + 1),
            "parameters": np.cumsum([n_parameters(stage.network) for stage in stages]),
            "heads' parameters": np.cumsum(heads),
            "EENet's parameters": [n_numbers(network) for network in networks],
            "FLOPs": setting.logits.layout.costs - head_flops,
            "heads' FLOPs": head_flops,
            "EENet's FLOPs": [2 * network.n_multiply_adds for network in networks],
        }
    )


def n_parameters(module: object) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def n_numbers(network: object) -> int:
    return sum(part.size for part in (*network.weights, *network.biases))


def n_weights(stage: object, head: object) -> int:
    """Multiply-adds of the head of an exit."""
    if head is not None:
        return sum(weight.size for weight in head.weights)
    matrices = [] if stage.logits is None else [p for p in stage.logits.parameters() if p.ndim == 2]
    return sum(matrix.numel() for matrix in matrices)


def replace_settings(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Write a table to a file that may hold other settings, and give all."""
    if path.exists():
        others = pd.read_csv(path)
        table = pd.concat([others[~others["setting"].isin(table["setting"])], table], ignore_index=True)
    order = {name: place for place, name in enumerate(SETTINGS)}
    table = table.sort_values("setting", key=lambda names: names.map(order), kind="stable")
    table.to_csv(path, index=False, float_format="%.6g")
    return table


def run(arguments: argparse.Namespace) -> None:
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    latency = pd.read_csv(out / "latency.csv") if (out / "latency.csv").exists() else None
    for name in arguments.settings:
        setting = SETTINGS[name](arguments)
        results = replace_settings(out / "results.csv", measure(name, setting, latency))
        exits = replace_settings(out / "exits.csv", exit_accuracies(name, setting))
        counts = replace_settings(out / "sizes.csv", sizes(name, setting))
        write_tables(out, results, exits, counts, latency)
        print(exits[exits["setting"] == name].to_string(), counts[counts["setting"] == name].to_string(), sep="\n")
        print(summarize(results[results["setting"] == name]).round(4).to_string(), flush=True)


if __name__ == "__main__":
    run(argument_parser(__doc__).parse_args())
