"""What the report says, section by section."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray

from skexit._version import __version__
from skexit.metrics import exit_distribution_by_class, exit_report
from skexit.plotting import AccuracyCostDisplay, CoverageDisplay, ExitDistributionDisplay, ReliabilityDisplay
from skexit.report._calibration import Calibration
from skexit.report._html import answer, definitions, folded, heading, page, paragraph, picture, plot_text, table
from skexit.report._measures import Candidate, Measured, difference_interval, is_within

#: Bars of the picture of exit distributions; more would fill the page.
_MOST_BARS = 20
#: With more classes than this, the table of all is folded.
_MOST_CLASSES = 30
_OF_HEADS = "Of which heads"
_COLUMNS = (
    "Policy",
    "Mean cost",
    "Accuracy",
    "95 % interval",
    "Speedup",
    "Budget",
    "Accuracy below oracle",
    "Cost above oracle",
)


@dataclass(frozen=True)
class Request:
    """What was asked: the policies' parameters by name, the budgets, where the rows come from, and the bootstrap."""

    policies: dict[str, str]
    budgets: tuple[float, ...]
    source: str | None
    n_resamples: int
    random_state: int


def render(
    request: Request,
    y: NDArray[Any],
    candidates: Sequence[Candidate],
    chosen: Sequence[Candidate | None],
    best: Candidate,
    static: Sequence[Measured],
    network: Measured | None,
    calibration: Calibration | None,
) -> str:
    """The page.

    `chosen` are the best candidates within each budget, or of all where there is no budget. The details of `best` are
    shown; `static` is each exit of it, as if all samples stopped there, and `calibration` is that of it. `network` is
    the network without exits, None where its answers are not known.
    """
    return page(
        "Early exits: accuracy and cost",
        [
            *_question(request, y, best),
            *_answers(request, candidates, chosen, static, network),
            *_policies(y, candidates, best, _references(static, network)),
            *_curve(request, y, candidates, best, static),
            *_exits(y, candidates, best),
            *_classes(y, best),
            *_calibration(calibration),
            *_costs(best),
            *_making(request),
        ],
    )


def _question(request: Request, y: NDArray[Any], best: Candidate) -> list[str]:
    budgets = ", ".join(_percent(budget) for budget in request.budgets) or "none was set"
    return [
        paragraph(
            "A network with early exits answers easy samples early, and so saves compute. A policy decides for each "
            "sample at which exit it stops. This page says how often the answers are right, and what they cost."
        ),
        definitions(
            {
                "Rows": f"{len(y):,}, with labels" + (f", of {request.source}" if request.source else ""),
                "Exits, classes": f"{best.answers.shape[1]} exits, {len(best.policy.classes_)} classes",
                "Policies": ", ".join(request.policies),
                "Budgets": f"{budgets} (mean cost of a sample, of the whole network's)",
            }
        ),
    ]


def _references(static: Sequence[Measured], network: Measured | None) -> list[Measured]:
    """What policies are compared with: single exits, and the network unless it is the last of them."""
    is_last = network is None or (static[-1].cost == 1 and np.array_equal(static[-1].correct, network.correct))
    return [*static] if network is None or is_last else [*static, network]


def _answers(
    request: Request,
    candidates: Sequence[Candidate],
    chosen: Sequence[Candidate | None],
    static: Sequence[Measured],
    network: Measured | None,
) -> list[str]:
    parts = [heading("The answer")]
    for budget, candidate in zip(request.budgets or [None], chosen, strict=True):
        if candidate is None:
            assert budget is not None
            cheapest = min(candidates, key=lambda each: each.measured.cost).measured
            parts.append(
                answer(
                    f"No policy stays within {_percent(budget)} of the whole network's cost.",
                    f"The cheapest, {cheapest.name}, costs {_percent(cheapest.cost)}.",
                )
            )
        else:
            parts.append(_answer(request, budget, candidate, static, network))
    return parts


def _answer(
    request: Request, budget: float | None, candidate: Candidate, static: Sequence[Measured], network: Measured | None
) -> str:
    measured, unit = candidate.measured, candidate.policy.layout_.cost_unit
    scope = "Of these policies" if budget is None else f"Within {_percent(budget)} of the whole network's cost"
    counted = f" in {unit}" if unit not in (None, "fraction") else ""
    chosen = (
        f"{scope}, {measured.name} is the most accurate: {_percent(measured.accuracy)} of its answers are right "
        f"(95 % interval {_interval(measured.accuracy_interval)}), at a mean cost of {_percent(measured.cost)}"
        f"{_of_heads(measured)}: a speedup of {1 / measured.cost:.2f}{counted}."
    )
    if network is not None:
        details = [chosen, f"The whole network has {_compare(request, measured, network)}."]
    else:
        last = static[-1]
        cost = f"a cost of {_percent(last.cost)}{_of_heads(last)}"
        details = [
            chosen,
            f"With all samples at the last exit, at {cost}, there is {_compare(request, measured, last)}.",
        ]
    within = [exit for exit in static[:-1] if budget is None or is_within(exit, budget)]
    if within:
        other = max(within, key=lambda each: each.accuracy)
        comparison = _compare(request, measured, other)
        details.append(f"Without a policy, {other.name}, at a cost of {_percent(other.cost)}, has {comparison}.")
    if budget is not None and measured.cost > budget + 1e-9:
        details.append(
            f"The policy was set to {_percent(measured.budget or 0)}; on these rows its cost is above the budget by no "
            f"more than chance (95 % interval {_interval(measured.cost_interval)})."
        )
    statement = _lead(request, candidate, network or static[-1], "the plain network" if network else "the last exit")
    return answer(statement, " ".join(details))


def _lead(request: Request, candidate: Candidate, reference: Measured, name: str) -> str:
    """What is saved and lost, in one sentence: compute, compared with the plain network, and accuracy."""
    measured, layout = candidate.measured, candidate.policy.layout_
    saved = 1 - measured.cost
    time = f" and {abs(saved) * layout.network_cost:.3g} ms per sample" if layout.cost_unit == "ms" else ""
    lost = reference.accuracy - measured.accuracy
    low, high = difference_interval(
        reference, measured, n_resamples=request.n_resamples, random_state=request.random_state
    )
    if lost < 0:
        low, high = -high, -low
    gain = "loses" if lost >= 0 else "gains"
    return (
        f"{measured.name} {'saves' if saved >= 0 else 'costs'} {_percent(abs(saved))} of compute"
        f"{'' if saved >= 0 else ' more'}{time}, and {gain} {100 * abs(lost):.1f} points of "
        f"accuracy (95 % interval {_points(low)} to {_points(high)}), compared with {name}."
    )


def _compare(request: Request, measured: Measured, other: Measured) -> str:
    difference = other.accuracy - measured.accuracy
    more = "more" if difference >= 0 else "less"
    low, high = difference_interval(other, measured, n_resamples=request.n_resamples, random_state=request.random_state)
    return (
        f"{_percent(other.accuracy)}, {100 * abs(difference):.1f} points {more} than the policy "
        f"(95 % interval of the difference {_points(low)} to {_points(high)})"
    )


def _policies(
    y: NDArray[Any], candidates: Sequence[Candidate], best: Candidate, references: Sequence[Measured]
) -> list[str]:
    ordered = sorted((each.measured for each in candidates), key=lambda each: each.cost)
    rows = [_row(measured) for measured in [*ordered, *references]]
    kinds = ["best" if measured is best.measured else "" for measured in ordered] + ["other"] * len(references)
    bound = best.oracle(y)
    rows.append(["oracle", _percent(bound.mean_cost), _percent(bound.accuracy), "", f"{1 / bound.mean_cost:.2f}"])
    rows[-1] += [""] * (len(_COLUMNS) - len(rows[-1]))
    columns = [*_COLUMNS]
    heads = [
        *(each.head_cost for each in [*ordered, *references]),
        best.policy.layout_.head_fractions[bound.exits].mean(),
    ]
    if any(heads):
        columns.insert(2, _OF_HEADS)
        rows = [[*row[:2], _percent(of_heads), *row[2:]] for row, of_heads in zip(rows, heads, strict=True)]
    return [
        heading("Policies"),
        table(columns, rows, [*kinds, "other"]),
        paragraph(
            "Costs and budgets are fractions of the whole network's cost without added heads; costs include the heads. "
            "A speedup is one over the cost: below 1, the network alone is cheaper. The oracle stops each sample at "
            "the first exit that is right; it sees the labels, and no policy can beat it. Differences to it are in "
            f"percentage points. Single exits and the oracle are those of {best.source}. Details below are of the "
            "marked row.",
            "note",
        ),
    ]


def _row(measured: Measured) -> list[str]:
    return [
        measured.name,
        _percent(measured.cost),
        _percent(measured.accuracy),
        _interval(measured.accuracy_interval),
        f"{1 / measured.cost:.2f}",
        "" if measured.budget is None else _percent(measured.budget),
        f"{100 * measured.regret.accuracy:.1f}",
        f"{100 * measured.regret.cost:.1f}",
    ]


def _curve(
    request: Request, y: NDArray[Any], candidates: Sequence[Candidate], best: Candidate, static: Sequence[Measured]
) -> list[str]:
    lines = {
        plot_text(name): [candidate.measured for candidate in candidates if candidate.source == name]
        for name in request.policies
    }
    lines["single exits"] = list(static)
    display = AccuracyCostDisplay(
        {label: ([each.cost for each in line], [each.accuracy for each in line]) for label, line in lines.items()},
        intervals={
            label: ([each.accuracy_interval[0] for each in line], [each.accuracy_interval[1] for each in line])
            for label, line in lines.items()
        },
        oracle=best.oracle(y),
        head_cost=max(float(each.policy.layout_.head_fractions[-1]) for each in candidates),
    ).plot()
    return [
        heading("Accuracy and cost"),
        picture(display, "Accuracy against mean cost of the policies, of single exits and of the oracle."),
        paragraph("Further left is cheaper, further up is better. Bands are 95 % intervals.", "note"),
    ]


def _exits(y: NDArray[Any], candidates: Sequence[Candidate], best: Candidate) -> list[str]:
    report = exit_report(y, best.answers, best.measured.exits, best.policy.costs_, output="dict")
    shown = ("share", "cost", "accuracy_leaving", "accuracy_all")
    rows = [[name, *(_percent(row[column]) for column in shown)] for name, row in report.items()]
    columns = ["Exit", "Samples that leave", "Cost", "Accuracy on those", "Accuracy on all"]
    drawn = candidates[:_MOST_BARS]
    distribution = ExitDistributionDisplay.from_predictions(
        {plot_text(each.measured.name): each.measured.exits for each in drawn}, n_exits=best.answers.shape[1]
    )
    note = f"The first {len(drawn)} of {len(candidates)} policies are shown."
    return [
        heading(f"Exits of {best.measured.name}"),
        table(columns, rows, [""] * (len(rows) - 1) + ["best"]),
        paragraph("Accuracy on all is what the exit would give if every sample stopped there.", "note"),
        heading("Where samples leave"),
        picture(distribution, "Share of the samples that leave at each exit, for each policy."),
        *([paragraph(note, "note")] if len(drawn) < len(candidates) else []),
    ]


def _classes(y: NDArray[Any], best: Candidate) -> list[str]:
    classes, measured = best.policy.classes_, best.measured
    shares = exit_distribution_by_class(y, measured.exits, n_exits=best.answers.shape[1], labels=classes)
    rows, accuracies = [], []
    for label, of_class in zip(classes, shares, strict=True):
        own = y == label
        if not own.any():
            continue
        accuracies.append(measured.correct[own].mean())
        cost = best.policy.costs_[measured.exits[own]].mean()
        cells = [_percent(value) for value in (accuracies[-1], cost, *of_class)]
        rows.append([str(label), f"{own.sum():,}", *cells])
    columns = ["Class", "Rows", "Accuracy", "Mean cost", *(f"Exit {k}" for k in range(shares.shape[1]))]
    parts = [heading(f"Classes, with {measured.name}")]
    if len(rows) <= _MOST_CLASSES:
        return [*parts, table(columns, rows)]
    worst = np.argsort(accuracies, kind="stable")[:10]
    return [
        *parts,
        paragraph("The ten classes of the lowest accuracy:"),
        table(columns, [rows[row] for row in worst]),
        folded(f"All {len(rows)} classes", table(columns, rows)),
    ]


def _calibration(calibration: Calibration | None) -> list[str]:
    parts = [heading("Can the probabilities be trusted?")]
    if calibration is None:
        return [*parts, paragraph("There are too few rows to calibrate on one half and to measure on the other.")]
    if calibration.n_calibration_rows is None:
        text = (
            "The policy was calibrated before it was saved; it is measured on all rows. If it was calibrated on these "
            "rows, the numbers are too good."
        )
    else:
        text = (
            f"The policy is not calibrated. For this section it was calibrated on {calibration.n_calibration_rows:,} "
            f"of the rows, drawn at random, and measured on the other {len(calibration.y):,}. The saved policy stays "
            "as it was."
        )
    policy, X, y = calibration.policy, calibration.X, calibration.y
    n_exits = len(policy.costs_)
    reliability = ReliabilityDisplay.from_estimator(policy, X, y, n_columns=2 if n_exits <= 4 else 3)
    coverage = CoverageDisplay.from_estimator(policy, X, y)
    errors = [[what, f"{100 * error:.1f}"] for what, error in calibration.errors.items()]
    sets = [[_percent(asked), _percent(covered), f"{size:.2f}"] for asked, covered, size in calibration.sets]
    return [
        *parts,
        paragraph(text),
        table(["Calibration error", "Percentage points"], errors),
        paragraph(
            "The calibration error (ECE) is how far the probability of the answer is from how often it is right, on "
            "average: 0 is best.",
            "note",
        ),
        picture(reliability, "Accuracy against confidence of the samples that leave at each exit."),
        paragraph(
            "Instead of one answer, the policy can give a set of classes that holds the true one as often as asked:"
        ),
        table(["Asked for", "Holds the true class", "Mean classes in a set"], sets),
        picture(coverage, "Coverage and mean size of prediction sets against the coverage asked for."),
    ]


def _costs(best: Candidate) -> list[str]:
    layout = best.policy.layout_
    columns = ["Exit", f"Cost ({layout.cost_unit or 'no unit given'})", "Of the whole network"]
    costs = zip(layout.costs, layout.cost_fractions, strict=True)
    rows = [[f"exit {k}", _amount(cost), _percent(part)] for k, (cost, part) in enumerate(costs)]
    if layout.head_costs.any():
        columns.append(_OF_HEADS)
        rows = [[*row, _percent(of_heads)] for row, of_heads in zip(rows, layout.head_fractions, strict=True)]
        rows.append(["the network", _amount(layout.network_cost), _percent(1), ""])
    return [
        heading("What an answer costs"),
        table(columns, rows),
        paragraph("Costs are cumulative: an answer at an exit includes all that comes before it, heads too.", "note"),
    ]


def _making(request: Request) -> list[str]:
    return [
        heading("How this was made"),
        definitions(
            {
                "Made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, by skexit.report.write_report",
                "Versions": f"skexit {__version__}, scikit-learn {sklearn.__version__}, NumPy {np.__version__}, "
                f"Python {platform.python_version()}",
                "Intervals": "binomial for accuracies, a bootstrap over rows for the rest, with "
                f"{request.n_resamples:,} resamples, random_state={request.random_state}; they say what other rows "
                "would change, not what fitting again would",
                "Choice": "the best policy was chosen on the rows that it is measured on, which favours it where many "
                "are compared",
            }
        ),
        paragraph("The policies as they were given:"),
        definitions(request.policies, "code"),
    ]


def _of_heads(measured: Measured) -> str:
    return f", {_percent(measured.head_cost)} of it for heads" if measured.head_cost else ""


def _amount(cost: float) -> str:
    return f"{cost:,.6g}" if cost < 1e6 else f"{cost:,.0f}"


def _percent(fraction: float) -> str:
    return "" if np.isnan(fraction) else f"{100 * fraction:.1f} %"


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
