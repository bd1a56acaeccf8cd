"""Recommended heads with and without the trial that finds out whether they overfit, beside linear heads.

    python -m benchmarks.heads.overfitting sst2 --data-root DIR --cache DIR --out FOLDER [--rows 6000] [--draws 0 1 2]
    python -m benchmarks.heads.overfitting ag_news --data-root DIR --cache DIR --out FOLDER [--rows 8000]

Data, rows, draws and `--cache` are those of ``benchmarks.heads.deepest_head``. Without the trial, heads have the usual
penalty and dropout for their number of rows. `--out` gets ``overfitting-draws.csv``, with the accuracy of each draw on
average over the exits and within each budget, and ``overfitting.csv``, a table of means with standard errors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.heads.deepest_head import DATA, NAMES, Features, argument_parser, keep, measure, percent, rows_of_draw
from skexit import ExitHeads, recommended_heads

#: Budgets of the table.
BUDGETS = (0.3, 0.5, 0.7)
EXITS = "mean of exits"


def without_trial(draw: int, n_rows: int) -> ExitHeads:
    heads = recommended_heads(random_state=draw)
    settings = heads._head_training()
    return heads.set_params(l2=settings.penalty(n_rows), dropout=settings.dropout_share(n_rows))


HEADS: dict[str, Callable[[int, int], ExitHeads]] = {
    "linear": lambda draw, n_rows: ExitHeads(random_state=draw),
    "recommended, no trial": without_trial,
    "recommended": lambda draw, n_rows: recommended_heads(random_state=draw),
}


def accuracy_of_draw(features: Features, heads: ExitHeads, n_rows: int, draw: int) -> pd.DataFrame:
    """Accuracy on average over the exits and within budgets, processor time of the fit, and what the trial found."""
    X, y = rows_of_draw(features, n_rows, draw)
    start = time.process_time()
    heads.fit(X, y)
    seconds = time.process_time() - start
    logits = heads.transform(features.X_test)
    exits = [heads.classes_[logits.logits(k).argmax(axis=1)] == features.y_test for k in range(logits.layout.n_exits)]
    within = measure(features, heads, draw).set_index("budget").loc[list(BUDGETS), "accuracy"]
    accuracies = {EXITS: np.mean(exits)} | {percent(budget): accuracy for budget, accuracy in within.items()}
    return pd.DataFrame([accuracies | {"overfits": heads.overfits_, "seconds": seconds}])


def table_of(results: pd.DataFrame) -> pd.DataFrame:
    """Means over draws of accuracies in %, with standard errors if there are several draws."""
    columns = [EXITS, *map(percent, BUDGETS)]
    groups = results.groupby(["data", "rows", "heads"], sort=False)
    means, errors = 100 * groups[columns].mean(), 100 * groups[columns].sem()
    cells = pd.DataFrame(index=means.index)
    for name in columns:
        cells[name] = [with_error(*pair) for pair in zip(means[name], errors[name], strict=True)]
    cells["strong in draws"] = [f"{found} of {n}" for found, n in groups["overfits"].agg(["sum", "size"]).to_numpy()]
    cells["seconds"] = groups["seconds"].mean().round(1)
    return cells.reset_index()


def with_error(mean: float, error: float) -> str:
    return f"{mean:.1f}" + ("" if np.isnan(error) else f" ± {error:.1f}")


def run(options: argparse.Namespace) -> None:
    """Measure all draws that are not measured yet."""
    features = DATA[options.data](options)
    n_rows = min(options.rows, len(features.y))
    for draw in options.draws:
        for name, make in HEADS.items():
            heads = make(draw, n_rows)
            keys = {"data": NAMES[options.data], "rows": n_rows, "draw": draw, "heads": name}

            def measure_draw(heads: ExitHeads = heads, draw: int = draw) -> pd.DataFrame:
                return accuracy_of_draw(features, heads, n_rows, draw)

            keep(options.out / "overfitting-draws.csv", keys, measure_draw)


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    run(options)
    table = table_of(pd.read_csv(options.out / "overfitting-draws.csv"))
    print(f"\n{table.to_string(index=False)}")
    table.to_csv(options.out / "overfitting.csv", index=False)


if __name__ == "__main__":
    main()
