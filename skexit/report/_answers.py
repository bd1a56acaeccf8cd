"""The first section of a report: compute saved and accuracy lost, for the budget that the reader selects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skexit.metrics import Savings, daily_savings
from skexit.report._format import amount, interval, percent, points, points_interval
from skexit.report._html import answer, choice, definitions, folded, heading, paragraph, table
from skexit.report._measures import Candidate, Measured, best_within, candidates_at, difference_interval, is_within

_BATCHES = (
    "Hours are computed from operations. In batches, early exits save less time than operations, and perhaps none on a "
    "GPU that is not fully used. Measure the plain and the live network at your batch size before you rely on them."
)
_MEASURED_TIMES = (
    "Hours are computed from the milliseconds of each exit at the batch size of the measurement. Measure at your batch "
    "size before you rely on them."
)


@dataclass(frozen=True)
class Day:
    """Inputs of the savings: samples per day, milliseconds of the plain network, price of an hour."""

    samples: float
    network_ms: float | None
    price_per_hour: float | None


@dataclass(frozen=True)
class Reference:
    """What policies are compared with: the plain network, or the last exit if its predictions are not known."""

    measured: Measured
    is_network: bool

    @property
    def name(self) -> str:
        return "the plain network" if self.is_network else "the last exit"


def answers(
    asked: Sequence[float], candidates: Sequence[Candidate], static: Sequence[Measured], reference: Reference, day: Day
) -> list[str]:
    """The section. It has one answer per budget, and shows the answer for the selected budget.

    `static` has the results if all samples stop at one exit, for each exit.
    """
    options = _options(asked, candidates)
    parts = [_answer(budget, own, static, reference, day) for budget, own in options.items()]
    if len(options) == 1:
        return [heading("The answer"), *parts]
    labels = ["as fitted" if budget is None else f"{100 * budget:.4g} %" for budget in options]
    selected = list(options).index(asked[0] if asked else None)
    return [
        heading("The answer"),
        paragraph("Select a budget: the mean cost of a sample, as a percentage of the plain network's cost."),
        choice("Budget", list(zip(labels, parts, strict=True)), selected),
        folded("All budgets in one table", _all_budgets(options, labels, reference)),
    ]


def _options(asked: Sequence[float], candidates: Sequence[Candidate]) -> dict[float | None, list[Candidate]]:
    """The candidates of each budget that can be selected.

    None stands for the policies as they were fitted. It is an option unless budgets were passed.
    """
    budgets = sorted({each.set_to for each in candidates if each.set_to is not None} | set(asked))
    options: list[float | None] = [*([] if asked else [None]), *budgets]
    return {budget: candidates_at(candidates, budget) for budget in options}


def _answer(
    budget: float | None, candidates: Sequence[Candidate], static: Sequence[Measured], reference: Reference, day: Day
) -> str:
    best = best_within(candidates, budget)
    if best is None:
        assert budget is not None
        best = min(candidates, key=lambda each: each.measured.cost)
        statement = f"No policy stays within {percent(budget)} of the plain network's cost."
        details = [
            f"The cheapest, {best.measured.name}, costs {percent(best.measured.cost)}. {_lead(best, reference, day)}"
        ]
    else:
        statement = _lead(best, reference, day)
        details = _details(budget, best, static, reference)
    return answer(statement, " ".join(details)) + _per_day(best, reference, day)


def _details(budget: float | None, candidate: Candidate, static: Sequence[Measured], reference: Reference) -> list[str]:
    measured, unit = candidate.measured, candidate.policy.layout_.cost_unit
    scope = "Of these policies" if budget is None else f"Within {percent(budget)} of the plain network's cost"
    counted = f" in {unit}" if unit not in (None, "fraction") else ""
    details = [
        f"{scope}, {measured.name} is the most accurate: {percent(measured.accuracy)} of its predictions are correct "
        f"(95 % interval {interval(measured.accuracy_interval)}), at a mean cost of {percent(measured.cost)}"
        f"{_of_heads(measured)}: a speedup of {1 / measured.cost:.2f}{counted}."
    ]
    comparison = _compare(measured, reference.measured)
    if reference.is_network:
        details.append(f"The plain network has {comparison}.")
    else:
        cost = f"a cost of {percent(reference.measured.cost)}{_of_heads(reference.measured)}"
        details.append(f"With all samples at the last exit, at {cost}, there is {comparison}.")
    within = [exit for exit in static[:-1] if budget is None or is_within(exit, budget)]
    if within:
        other = max(within, key=lambda each: each.accuracy)
        comparison = _compare(measured, other)
        details.append(f"Without a policy, {other.name}, at a cost of {percent(other.cost)}, has {comparison}.")
    if budget is not None and measured.cost > budget + 1e-9:
        details.append(
            f"The policy was set to {percent(measured.budget or 0)}; on these rows its cost is above the budget by no "
            f"more than chance (95 % interval {interval(measured.cost_interval)})."
        )
    return details


def _lead(candidate: Candidate, reference: Reference, day: Day) -> str:
    """One sentence on the saved compute and the lost accuracy."""
    measured = candidate.measured
    saved, lost = 1 - measured.cost, reference.measured.accuracy - measured.accuracy
    low, high = difference_interval(reference.measured, measured)
    if lost < 0:
        low, high = -high, -low
    gain = "loses" if lost >= 0 else "gains"
    return (
        f"{measured.name} {'saves' if saved >= 0 else 'costs'} {percent(abs(saved))} of compute"
        f"{'' if saved >= 0 else ' more'}{_milliseconds(candidate, day)}, and {gain} {100 * abs(lost):.1f} points of "
        f"accuracy (95 % interval {points_interval((low, high))}), compared with {reference.name}."
    )


def _milliseconds(candidate: Candidate, day: Day) -> str:
    """The saved time per sample, if it is known."""
    network_ms = _network_ms(candidate, day)
    if network_ms is None:
        return ""
    about = "" if _is_time(candidate) else "about "
    return f" and {about}{abs(1 - candidate.measured.cost) * network_ms:.3g} ms per sample"


def _compare(measured: Measured, other: Measured) -> str:
    difference = other.accuracy - measured.accuracy
    more = "more" if difference >= 0 else "less"
    return (
        f"{percent(other.accuracy)}, {100 * abs(difference):.1f} points {more} than the policy (95 % interval of the "
        f"difference {points_interval(difference_interval(other, measured))})"
    )


def _per_day(candidate: Candidate, reference: Reference, day: Day) -> str:
    """Savings per day, and how they were computed."""
    savings = _savings(candidate, reference, day)
    unit = candidate.policy.layout_.cost_unit
    compute = percent(savings.compute)
    if unit not in (None, "fraction", "ms"):
        compute += f", {savings.operations:.3g} {unit}"
    entries = {"Samples a day": amount(day.samples), "Compute saved": compute}
    if np.isfinite(savings.hours):
        entries["Hours saved"] = f"{savings.hours:,.2f}"
    if np.isfinite(savings.money):
        entries["Money saved"] = f"{savings.money:,.2f}"
    if not np.isfinite(savings.hours):
        note = "For hours and money, give network_ms and price_per_hour (--network-ms and --price-per-hour)."
    else:
        note = _MEASURED_TIMES if _is_time(candidate) else _BATCHES
    return definitions(entries, "day") + paragraph(note, "note")


def _savings(candidate: Candidate, reference: Reference, day: Day) -> Savings:
    policy = candidate.policy
    exits = candidate.measured.exits
    return daily_savings(
        policy.costs_,
        np.bincount(exits, minlength=len(policy.costs_)) / len(exits),
        network_accuracy=reference.measured.accuracy,
        samples_per_day=day.samples,
        network_cost=float(policy.layout_.network_cost),
        network_ms=_network_ms(candidate, day),
        price_per_hour=day.price_per_hour,
    )


def _is_time(candidate: Candidate) -> bool:
    return candidate.policy.layout_.cost_unit == "ms"


def _network_ms(candidate: Candidate, day: Day) -> float | None:
    """Milliseconds of the plain network: as passed, or its cost if costs are in milliseconds."""
    if day.network_ms is None and _is_time(candidate):
        return float(candidate.policy.layout_.network_cost)
    return day.network_ms


def _all_budgets(options: dict[float | None, list[Candidate]], labels: Sequence[str], reference: Reference) -> str:
    rows = []
    for label, (budget, candidates) in zip(labels, options.items(), strict=True):
        best = best_within(candidates, budget)
        if best is None:
            rows.append([label, "none within it", *[""] * 4])
            continue
        measured = best.measured
        rows.append(
            [
                label,
                best.source,
                percent(measured.cost),
                percent(measured.accuracy),
                points(measured.accuracy - reference.measured.accuracy),
                points_interval(difference_interval(measured, reference.measured)),
            ]
        )
    columns = ["Budget", "Policy", "Mean cost", "Accuracy", f"Points, compared with {reference.name}", "95 % interval"]
    return table(columns, rows)


def _of_heads(measured: Measured) -> str:
    return f", {percent(measured.head_cost)} of it for heads" if measured.head_cost else ""
