"""What ``skexit evaluate`` measures of a policy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from skexit.cli._commands import percent

if TYPE_CHECKING:
    from skexit.cache import FeatureCache


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and cost of a policy on the labelled rows of a cache.

    `facts` are values for JSON, `lines` and `exits`, a table, are the text for one policy, and `cells` are a row of the
    table of several, by the names of its columns.
    """

    facts: dict[str, Any]
    lines: dict[str, str]
    exits: list[tuple[str, ...]]
    cells: dict[str, str]


def evaluate(estimator: Any, cache: FeatureCache, **per_day: Any) -> Evaluation:
    """Measure a fitted policy. `per_day` are parameters of `daily_savings`."""
    from skexit.data._network_logits import network_logits
    from skexit.metrics import bootstrap_interval, daily_savings, exit_report
    from skexit.policies._access import only_rows_with_labels, policy_and_data

    rows, y = only_rows_with_labels(estimator, cache.X, cache.y)
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
        network_cost=float(fitted.layout_.network_cost),
        **per_day,
    )
    interval = bootstrap_interval(np.mean, right, method="share", random_state=0)
    facts = {"rows": len(y), "accuracy_interval": interval, "compute_saved": savings.compute, **asdict(savings)}
    lines = {"rows": f"{len(y):,}", "accuracy": f"{percent(savings.accuracy)} ({_range(interval)})"}
    lines["mean cost"] = f"{percent(savings.mean_cost)} of the plain network, heads included"
    cells = {"accuracy": percent(savings.accuracy), "95 % interval": _range(interval)}
    if network_right is not None:
        lost = bootstrap_interval(_difference, network_right, right, method="difference", random_state=0)
        facts |= {"network_accuracy": network_right.mean(), "accuracy_lost_interval": lost}
        lines["plain network"] = f"{percent(network_right.mean())} accuracy"
        lines["difference"] = f"{points(-savings.accuracy_lost)} ({_signed(-lost[1])} to {_signed(-lost[0])})"
        cells["points of difference"] = _signed(-savings.accuracy_lost)
    lines |= saved(facts, fitted.layout_.cost_unit)
    table: list[tuple[str, ...]] = [("exit", "samples", "cost", "accuracy there")]
    for k, row in enumerate(by_exit):
        table.append((str(k), percent(row["share"]), percent(row["cost"]), percent(row["accuracy_leaving"])))
    facts["exits"] = by_exit
    cells["mean cost"] = percent(savings.mean_cost)
    cells |= {name: text for name, text in saved(facts).items() if name != "saves"}
    return Evaluation(facts, lines, table, cells)


def saved(facts: dict[str, Any], unit: str | None = None) -> dict[str, str]:
    """What early exits save, as text by name; `facts` has the values of `daily_savings`."""
    lines = {"saves": f"{percent(facts['compute_saved'])} of compute"}
    if np.isfinite(facts["operations"]) and unit not in (None, "fraction"):
        lines["saved per day"] = f"{facts['operations']:.3g} {unit}"
    if np.isfinite(facts["hours"]):
        lines["hours per day"] = f"{facts['hours']:,.2f}"
    if np.isfinite(facts["money"]):
        lines["money per day"] = f"{facts['money']:,.2f}"
    return lines


def _difference(network: Any, policy: Any) -> float:
    return float(network.mean() - policy.mean())


def points(difference: float) -> str:
    """A difference of accuracies as text."""
    return f"{_signed(difference)} points of accuracy"


def _signed(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _range(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
