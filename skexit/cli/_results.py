"""The commands that apply policies: ``predict``, ``evaluate``, ``report`` and ``savings``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click
import numpy as np

from skexit.cli._commands import aligned, columns, command, percent, printable
from skexit.cli._evaluation import evaluate, points, saved
from skexit.cli._files import (
    CACHE,
    POLICY,
    check_out_file,
    load_fitting,
    names_of,
    open_cache,
    open_labelled,
    out_option,
)

_BATCHES = (
    "Times are estimated from operations unless --live-ms is given.\n"
    "In batches, early exits save less time than operations: measure times with skexit latency."
)


def add_result_commands(group: click.Group) -> None:
    """Add ``predict``, ``evaluate``, ``report`` and ``savings`` to a group."""
    for name, function, example in (
        ("predict", _predict, "skexit predict cache-new policy.joblib --out predictions.csv"),
        ("evaluate", _evaluate, "skexit evaluate cache-test policy.joblib --per-day 1e6 --network-ms 20"),
        ("report", _report, "skexit report cache-test policy.joblib --budget 0.5 --budget 0.7 --out report.html"),
        ("savings", _savings, "skexit savings --exit 0.25:0.6 --exit 1:0.4 --per-day 1e6 --network-ms 20"),
    ):
        command(group, name, example)(function)


_PER_DAY = {
    "--per-day": "Number of samples per day.",
    "--network-ms": "Milliseconds per sample of the plain network, at your batch size.",
    "--price-per-hour": "Price of the machine per hour.",
}


def _per_day(function: Any) -> Any:
    """Add the options for the savings per day to a command."""
    for name, help_text in reversed(_PER_DAY.items()):
        function = click.option(name, type=float, help=help_text)(function)
    return function


_POLICIES = click.argument("policies", metavar="POLICY...", nargs=-1, required=True)
_LIVE_MS = click.option(
    "--live-ms", type=float, help="Milliseconds per sample of the live network, measured at your batch size."
)


@CACHE
@POLICY
@click.option("--out", help="CSV file to write; by default, the table is printed.")
def _predict(cache: str, policy: str, out: str | None) -> Any:
    """Predict the label, probability and exit of each row of a cache.

    POLICY is a file from skexit fit. Loading it can run code in the file, so give only files that you trust.
    """
    import pandas as pd

    path = None if out is None else check_out_file(out)
    opened = open_cache(cache)
    X = opened.X
    fitted = load_fitting(policy, opened, cache)
    table = pd.DataFrame(
        {"label": fitted.predict(X), "probability": fitted.predict_proba(X).max(axis=1), "exit": fitted.predict_exit(X)}
    )
    if path is not None:
        table.to_csv(path, index_label="row")
        return {"file": out, "rows": len(table)}, f"{out}: {len(table):,} rows"
    return table.to_dict("list"), table.to_csv(index_label="row").rstrip("\n")


@CACHE
@_POLICIES
@_per_day
@_LIVE_MS
def _evaluate(
    cache: str,
    policies: tuple[str, ...],
    per_day: float | None,
    network_ms: float | None,
    live_ms: float | None,
    price_per_hour: float | None,
) -> Any:
    """Compare the accuracy and cost of policies with the plain network, on a labelled cache.

    One policy is described with its exits, several in a table with a row for each. Intervals are 95 % intervals.
    Neither network nor policies should have been fitted on the rows of CACHE. A POLICY is a file from skexit fit.
    Loading it can run code in the file, so give only files that you trust.
    """
    if live_ms is not None and len(policies) > 1:
        raise click.UsageError("--live-ms is the time of one policy; evaluate each policy alone with its own time.")
    opened = open_labelled(cache, "an evaluation")
    evaluated = {
        name: evaluate(
            load_fitting(path, opened, cache),
            opened,
            samples_per_day=per_day,
            network_ms=network_ms,
            live_ms=live_ms,
            price_per_hour=price_per_hour,
        )
        for path, name in zip(policies, names_of(policies), strict=True)
    }
    if len(evaluated) == 1:
        (one,) = evaluated.values()
        return one.facts, "\n".join([*map(printable, aligned(one.lines)), "", *columns(one.exits), *_note(one.lines)])
    table = [("policy", *next(iter(evaluated.values())).cells)]
    table += [(printable(name), *one.cells.values()) for name, one in evaluated.items()]
    facts = {"policies": [{"policy": name} | one.facts for name, one in evaluated.items()]}
    return facts, "\n".join([*columns(table), *_note(table[0])])


@CACHE
@_POLICIES
@click.option(
    "--budget",
    "budgets",
    type=float,
    multiple=True,
    help="Mean cost of a sample, a fraction of the plain network's; repeat. By default, policies keep their budgets.",
)
@_per_day
@out_option("report.html", "File to write.")
def _report(
    cache: str,
    policies: tuple[str, ...],
    budgets: tuple[float, ...],
    per_day: float | None,
    network_ms: float | None,
    price_per_hour: float | None,
    out: str,
) -> Any:
    """Measure saved policies on a labelled cache, and write an HTML report.

    Neither network nor policies should have been fitted on the rows of CACHE. Loading a POLICY can run code in its
    file, so give only files that you trust.
    """
    from skexit.report import write_report

    check_out_file(out)
    opened = open_labelled(cache, "a report")
    loaded = {name: load_fitting(path, opened, cache) for path, name in zip(policies, names_of(policies), strict=True)}
    path = write_report(
        opened.X,
        opened.y,
        loaded,
        out,
        budgets=budgets,
        source=f"the cache {cache!r}",
        network_ms=network_ms,
        price_per_hour=price_per_hour,
        samples_per_day=1e6 if per_day is None else per_day,
    )
    return {"file": str(path)}, str(path)


@click.option(
    "--exit",
    "exits",
    multiple=True,
    required=True,
    metavar="COST:SHARE[:ACCURACY]",
    help="Cost up to an exit, a fraction of the plain network's; share of samples at the exit; their accuracy. Repeat.",
)
@click.option("--network-accuracy", type=float, help="Accuracy of the plain network, between 0 and 1.")
@_per_day
@_LIVE_MS
def _savings(
    exits: tuple[str, ...],
    network_accuracy: float | None,
    per_day: float | None,
    network_ms: float | None,
    live_ms: float | None,
    price_per_hour: float | None,
) -> Any:
    """Compute what early exits save per day, from a few numbers.

    This needs no cache. For a fitted policy, skexit evaluate prints the same values.
    """
    from skexit.metrics import daily_savings

    rows = [_parse_exit(text) for text in exits]
    accuracies = [row[2] for row in rows] if all(len(row) == 3 for row in rows) else None
    savings = daily_savings(
        [row[0] for row in rows],
        [row[1] for row in rows],
        accuracies=accuracies,
        network_accuracy=network_accuracy,
        samples_per_day=per_day,
        network_ms=network_ms,
        live_ms=live_ms,
        price_per_hour=price_per_hour,
    )
    facts = {"compute_saved": savings.compute, **asdict(savings)}
    lines = {"mean cost": f"{percent(savings.mean_cost)} of the plain network"}
    if np.isfinite(savings.accuracy):
        lines["accuracy"] = percent(savings.accuracy)
    if np.isfinite(savings.accuracy_lost):
        lines["difference"] = points(-savings.accuracy_lost)
    lines |= saved(facts)
    return facts, "\n".join([*aligned(lines), *_note(lines)])


def _parse_exit(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3):
        raise click.BadParameter(
            f"{text!r} must be COST:SHARE or COST:SHARE:ACCURACY, such as 0.25:0.6.", param_hint="--exit"
        )
    return numbers


def _note(names: Iterable[str]) -> list[str]:
    """A note on estimated times, if hours are among the names of the values that are printed."""
    return ["", _BATCHES] if "hours per day" in names else []
