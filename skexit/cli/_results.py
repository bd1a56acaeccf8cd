"""The commands that apply policies: ``predict``, ``evaluate``, ``report`` and ``savings``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
import numpy as np

from skexit.cli._commands import aligned, columns, command, percent, printable
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
@POLICY
@_per_day
@_LIVE_MS
def _evaluate(
    cache: str,
    policy: str,
    per_day: float | None,
    network_ms: float | None,
    live_ms: float | None,
    price_per_hour: float | None,
) -> Any:
    """Compare the accuracy and cost of a policy with the plain network, on a labelled cache.

    Intervals are 95 % intervals. Neither network nor policy should have been fitted on the rows of CACHE. POLICY is a
    file from skexit fit. Loading it can run code in the file, so give only files that you trust.
    """
    from skexit.data._network_logits import network_logits
    from skexit.metrics import bootstrap_interval, daily_savings, exit_report
    from skexit.policies._access import only_rows_with_labels, policy_and_data

    opened = open_labelled(cache, "an evaluation")
    estimator = load_fitting(policy, opened, cache)
    rows, y = only_rows_with_labels(estimator, opened.X, opened.y)
    fitted, X = policy_and_data(estimator, rows)
    exits, answers, costs = fitted.predict_exit(X), fitted.predict_at_exits(X), fitted.costs_
    right = answers[np.arange(len(y)), exits] == y
    report = exit_report(y, answers, exits, costs, output="dict")
    by_exit = [row for name, row in report.items() if name != "total"]
    logits = network_logits(rows)
    network_right = None if logits is None else fitted.classes_[logits.argmax(axis=1)] == y
    savings = daily_savings(
        costs,
        [row["share"] for row in by_exit],
        accuracies=[row["accuracy_leaving"] for row in by_exit],
        network_accuracy=None if network_right is None else float(network_right.mean()),
        samples_per_day=per_day,
        network_cost=float(fitted.layout_.network_cost),
        network_ms=network_ms,
        live_ms=live_ms,
        price_per_hour=price_per_hour,
    )
    interval = bootstrap_interval(np.mean, right, method="share", random_state=0)
    facts = {"rows": len(y), "accuracy_interval": interval, "compute_saved": savings.compute, **asdict(savings)}
    lines = {"rows": f"{len(y):,}", "accuracy": f"{percent(savings.accuracy)} ({_range(interval)})"}
    lines["mean cost"] = f"{percent(savings.mean_cost)} of the plain network, heads included"
    if network_right is not None:
        lost = bootstrap_interval(_difference, network_right, right, method="difference", random_state=0)
        facts |= {"network_accuracy": network_right.mean(), "accuracy_lost_interval": lost}
        lines["plain network"] = f"{percent(network_right.mean())} accuracy"
        lines["difference"] = f"{_points(-savings.accuracy_lost)} ({_signed(-lost[1])} to {_signed(-lost[0])})"
    lines |= _saved(facts, fitted.layout_.cost_unit)
    table = [("exit", "samples", "cost", "accuracy there")]
    for k, row in enumerate(by_exit):
        table.append((str(k), percent(row["share"]), percent(row["cost"]), percent(row["accuracy_leaving"])))
    facts["exits"] = by_exit
    return facts, "\n".join([*map(printable, aligned(lines)), "", *columns(table), *_note(lines)])


@CACHE
@click.argument("policies", metavar="POLICY...", nargs=-1, required=True)
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
        lines["difference"] = _points(-savings.accuracy_lost)
    lines |= _saved(facts)
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


def _saved(facts: dict[str, Any], unit: str | None = None) -> dict[str, str]:
    lines = {"saves": f"{percent(facts['compute_saved'])} of compute"}
    if np.isfinite(facts["operations"]) and unit not in (None, "fraction"):
        lines["saved per day"] = f"{facts['operations']:.3g} {unit}"
    if np.isfinite(facts["hours"]):
        lines["hours per day"] = f"{facts['hours']:,.2f}"
    if np.isfinite(facts["money"]):
        lines["money per day"] = f"{facts['money']:,.2f}"
    return lines


def _note(lines: dict[str, str]) -> list[str]:
    return ["", _BATCHES] if "hours per day" in lines else []


def _difference(network: Any, policy: Any) -> float:
    return float(network.mean() - policy.mean())


def _points(difference: float) -> str:
    return f"{_signed(difference)} points of accuracy"


def _signed(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _range(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
