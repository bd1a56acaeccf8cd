"""The exits of a fitted estimator as an HTML table, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BAR = (
    ' style="background: linear-gradient(to right, rgba(31, 119, 180, 0.35) {0:.1f}%, transparent {0:.1f}%) no-repeat"'
)


class WithTable:
    """The parameters that ``BaseEstimator._get_params_html`` shows, with an HTML table below them."""

    def __init__(self, parameters: Any, table: str) -> None:
        self.parameters = parameters
        self.table = table

    def _repr_html_inner(self) -> str:
        return self.parameters._repr_html_inner() + self.table


def exit_table(columns: Mapping[str, Sequence[str]], shares: Sequence[float] | None = None) -> str:
    """HTML with one row per exit, in the style of scikit-learn's tables.

    `columns` gives the text of the cells by the name of their column; it is escaped here. `shares`, between 0 and 1,
    are shown as a last column with bars.

    >>> "<td>&lt;1%</td>" in exit_table({"Cost": ["<1%", "100%"]})
    True
    """
    names = ["Exit", *columns] if shares is None else ["Exit", *columns, "Share of the fitted samples"]
    header = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = []
    for k, cells in enumerate(zip(*columns.values(), strict=False)):
        row = "".join(f"<td>{html.escape(cell)}</td>" for cell in (str(k), *cells))
        if shares is not None:
            percentage = 100 * float(shares[k])
            row += f"<td{_BAR.format(percentage)}>{percentage:.1f}%</td>"
        rows.append(f'<tr class="default">{row}</tr>')
    return (
        '<div class="estimator-table"><details open><summary>Exits</summary>'
        f'<table class="parameters-table"><tbody><tr>{header}</tr>{"".join(rows)}</tbody></table></details></div>'
    )


def threshold_text(threshold: float) -> str:
    """A threshold as text for a table.

    >>> [threshold_text(threshold) for threshold in (0.91234, np.inf, -np.inf)]
    ['0.9123', 'none stops', 'all stop']
    """
    if np.isinf(threshold):
        return "none stops" if threshold > 0 else "all stop"
    return f"{threshold:.4g}"
