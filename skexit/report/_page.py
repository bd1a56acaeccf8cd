"""The sections of a report."""

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
from skexit.report._answers import Day, Reference, answers
from skexit.report._calibration import Calibration
from skexit.report._format import amount, interval, percent
from skexit.report._html import definitions, folded, heading, page, paragraph, picture, plot_text, table
from skexit.report._measures import Candidate, Measured

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
    """Inputs of a report: parameters of the policies by name, budgets, source of the rows, and savings per day."""

    policies: dict[str, str]
    budgets: tuple[float, ...]
    source: str | None
    day: Day
    random_state: int


def render(
    request: Request,
    y: NDArray[Any],
    candidates: Sequence[Candidate],
    shown: Sequence[Candidate],
    best: Candidate,
    static: Sequence[Measured],
    network: Measured | None,
    calibration: Calibration | None,
) -> str:
    """The HTML of the page.

    `shown` are the candidates that have a row in the table of policies. The details are those of `best`. `static` has
    the results if all samples stop at one exit of `best`, for each exit; `calibration` is the calibration of `best`.
    `network` is the network without exits, None if its predictions are not known.
    """
    reference = Reference(static[-1] if network is None else network, network is not None)
    return page(
        "Early exits: accuracy and cost",
        [
            *_question(request, y, best),
            *answers(request.budgets, candidates, static, reference, request.day),
            *_policies(y, shown, best, _references(static, network)),
            *_curve(request, y, candidates, best, static, network),
            *_exits(y, shown, best),
            *_classes(y, best),
            *_calibration(calibration),
            *_costs(best),
            *_making(request),
        ],
    )


def _question(request: Request, y: NDArray[Any], best: Candidate) -> list[str]:
    budgets = ", ".join(percent(budget) for budget in request.budgets) or "none was set"
    return [
        paragraph(
            "A network with early exits answers easy samples early, and so saves compute. A policy decides for each "
            "sample at which exit it stops. This page shows the accuracy and the cost of the predictions."
        ),
        definitions(
            {
                "Rows": f"{len(y):,}, with labels" + (f", of {request.source}" if request.source else ""),
                "Exits, classes": f"{best.answers.shape[1]} exits, {len(best.policy.classes_)} classes",
                "Policies": ", ".join(request.policies),
                "Budgets": f"{budgets} (mean cost of a sample, of the plain network's)",
            }
        ),
    ]


def _references(static: Sequence[Measured], network: Measured | None) -> list[Measured]:
    """What policies are compared with: single exits, and the network unless it is the last of them."""
    is_last = network is None or (static[-1].cost == 1 and np.array_equal(static[-1].correct, network.correct))
    return [*static] if network is None or is_last else [*static, network]


def _policies(
    y: NDArray[Any], candidates: Sequence[Candidate], best: Candidate, references: Sequence[Measured]
) -> list[str]:
    ordered = sorted((each.measured for each in candidates), key=lambda each: each.cost)
    rows = [_row(measured) for measured in [*ordered, *references]]
    kinds = ["best" if measured is best.measured else "" for measured in ordered] + ["other"] * len(references)
    bound = best.oracle(y)
    rows.append(["oracle", percent(bound.mean_cost), percent(bound.accuracy), "", f"{1 / bound.mean_cost:.2f}"])
    rows[-1] += [""] * (len(_COLUMNS) - len(rows[-1]))
    columns = [*_COLUMNS]
    heads = [
        *(each.head_cost for each in [*ordered, *references]),
        best.policy.layout_.head_fractions[bound.exits].mean(),
    ]
    if any(heads):
        columns.insert(2, _OF_HEADS)
        rows = [[*row[:2], percent(of_heads), *row[2:]] for row, of_heads in zip(rows, heads, strict=True)]
    return [
        heading("Policies"),
        table(columns, rows, [*kinds, "other"]),
        paragraph(
            "Costs and budgets are fractions of the plain network's cost without added heads; costs include the heads. "
            "A speedup is one over the cost: below 1, the network alone is cheaper. The oracle stops each sample at "
            "the first correct exit. It uses the labels, and no policy can be better. Differences to it are in "
            f"percentage points. Single exits and the oracle have the heads of {best.source}. The details below are "
            "for the marked row.",
            "note",
        ),
    ]


def _row(measured: Measured) -> list[str]:
    return [
        measured.name,
        percent(measured.cost),
        percent(measured.accuracy),
        interval(measured.accuracy_interval),
        f"{1 / measured.cost:.2f}",
        "" if measured.budget is None else percent(measured.budget),
        f"{100 * measured.regret.accuracy:.1f}",
        f"{100 * measured.regret.cost:.1f}",
    ]


def _curve(
    request: Request,
    y: NDArray[Any],
    candidates: Sequence[Candidate],
    best: Candidate,
    static: Sequence[Measured],
    network: Measured | None,
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
        network_accuracy=None if network is None else network.accuracy,
    ).plot()
    return [
        heading("Accuracy and cost"),
        picture(display, "Accuracy against mean cost of the policies, of single exits and of the oracle."),
        paragraph("Further left is cheaper, further up is better. Bands are 95 % intervals.", "note"),
    ]


def _exits(y: NDArray[Any], candidates: Sequence[Candidate], best: Candidate) -> list[str]:
    report = exit_report(y, best.answers, best.measured.exits, best.policy.costs_, output="dict")
    shown = ("share", "cost", "accuracy_leaving", "accuracy_all")
    rows = [[name, *(percent(row[column]) for column in shown)] for name, row in report.items()]
    columns = ["Exit", "Samples that leave", "Cost", "Accuracy on these", "Accuracy on all"]
    drawn = candidates[:_MOST_BARS]
    distribution = ExitDistributionDisplay.from_predictions(
        {plot_text(each.measured.name): each.measured.exits for each in drawn}, n_exits=best.answers.shape[1]
    )
    note = f"The first {len(drawn)} of {len(candidates)} policies are shown."
    return [
        heading(f"Exits of {best.measured.name}"),
        table(columns, rows, [""] * (len(rows) - 1) + ["best"]),
        paragraph("Accuracy on all is the accuracy of the exit if every sample stopped there.", "note"),
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
        cells = [percent(value) for value in (accuracies[-1], cost, *of_class)]
        rows.append([str(label), f"{own.sum():,}", *cells])
    columns = ["Class", "Rows", "Accuracy", "Mean cost", *(f"Exit {k}" for k in range(shares.shape[1]))]
    parts = [heading(f"Classes, with {measured.name}")]
    if len(rows) <= _MOST_CLASSES:
        return [*parts, table(columns, rows)]
    worst = np.argsort(accuracies, kind="stable")[:10]
    return [
        *parts,
        paragraph("The ten classes with the lowest accuracy:"),
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
            f"of the rows, drawn at random, and measured on the other {len(calibration.y):,}. The saved policy does "
            "not change."
        )
    policy, X, y = calibration.policy, calibration.X, calibration.y
    n_exits = len(policy.costs_)
    reliability = ReliabilityDisplay.from_estimator(policy, X, y, n_columns=2 if n_exits <= 4 else 3)
    coverage = CoverageDisplay.from_estimator(policy, X, y)
    errors = [[what, f"{100 * error:.1f}"] for what, error in calibration.errors.items()]
    sets = [[percent(asked), percent(covered), f"{size:.2f}"] for asked, covered, size in calibration.sets]
    return [
        *parts,
        paragraph(text),
        table(["Calibration error", "Percentage points"], errors),
        paragraph(
            "The calibration error (ECE) is the mean distance between the probability of the prediction and its "
            "accuracy: 0 is best.",
            "note",
        ),
        picture(reliability, "Accuracy against confidence of the samples that leave at each exit."),
        paragraph(
            "Instead of one class, the policy can predict a set of classes. The coverage is the share of samples whose "
            "set contains the true class:"
        ),
        table(["Requested coverage", "Coverage", "Mean classes in a set"], sets),
        picture(coverage, "Coverage and mean size of prediction sets against the requested coverage."),
    ]


def _costs(best: Candidate) -> list[str]:
    layout = best.policy.layout_
    columns = ["Exit", f"Cost ({layout.cost_unit or 'no unit given'})", "Of the plain network"]
    costs = zip(layout.costs, layout.cost_fractions, strict=True)
    rows = [[f"exit {k}", amount(cost), percent(part)] for k, (cost, part) in enumerate(costs)]
    if layout.head_costs.any():
        columns.append(_OF_HEADS)
        rows = [[*row, percent(of_heads)] for row, of_heads in zip(rows, layout.head_fractions, strict=True)]
        rows.append(["the plain network", amount(layout.network_cost), percent(1), ""])
    return [
        heading("Cost of each exit"),
        table(columns, rows),
        paragraph("Costs are cumulative: the cost of an exit includes all earlier layers and heads.", "note"),
    ]


def _making(request: Request) -> list[str]:
    return [
        heading("How this page was made"),
        definitions(
            {
                "Made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, by skexit.report.write_report",
                "Versions": f"skexit {__version__}, scikit-learn {sklearn.__version__}, NumPy {np.__version__}, "
                f"Python {platform.python_version()}",
                "Intervals": "binomial for accuracies, Bonett and Price's for differences, Student's for costs; they "
                "show how results vary with other rows, not with another fit",
                "Calibration": f"rows drawn with random_state={request.random_state}",
                "Choice": "the best policy was chosen on the rows that it is measured on, which favours it if many are "
                "compared",
            }
        ),
        paragraph("The policies as they were given:"),
        definitions(request.policies, "code"),
    ]
