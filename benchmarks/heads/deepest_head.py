"""Heads that learn from the deepest head, beside heads that learn from labels alone, where the network has no logits.

    python -m benchmarks.heads.deepest_head cifar100 --data-root DIR --cache DIR --out FOLDER [--draws 0 1 2]
    python -m benchmarks.heads.deepest_head sst2 --data-root DIR --cache DIR --out FOLDER [--minilm DIR]
    python -m benchmarks.heads.deepest_head ag_news --data-root DIR --cache DIR --out FOLDER [--minilm DIR]

CIFAR-100 goes through eight exits of an EfficientNet-Lite0 that was trained on ImageNet, with averages and maxima at
96 x 96 pixels; SST-2 and AG News through the six layers of MiniLM, with averages over the tokens. `--data-root` is that
of ``benchmarks/README.md``. Features are kept in `--cache`, up to 0.2 GB, and an extraction that was stopped continues.

In a draw, the recommended heads are fitted on `--rows` training rows at random: on labels alone, and with the deepest
head as the teacher, ``distillation=0.65``. The recommended pipeline is fitted on half of the test rows, and measured on
the other half. ``auto`` is whichever of the two the trial of ``distillation="auto"`` chooses. Of SST-2 and AG News, up
to 12,000 texts of all parts are used in random order, as MiniLM was not trained on their labels; the last quarter are
the test rows.

`--out` gets ``draws.csv``, with a row for each draw, share and budget, ``trials.csv``, with what ``auto`` chooses in
each draw, and tables of both. Heads are kept in `--cache`, and what an earlier run measured is not measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from benchmarks.shared.data import load_ag_news, load_cifar100, load_sst2
from benchmarks.shared.networks import (
    EFFICIENTNET_BLOCKS,
    TokenBatches,
    efficientnet_loader,
    load_efficientnet,
    load_minilm,
    minilm_layers,
)
from benchmarks.shared.routing import half_rows
from skexit import ExitArray, ExitHeads, FeatureCache, recommended_heads, recommended_pipeline
from skexit.extraction import ExitExtractor
from skexit.heads._deepest_head import resolve_share_of_deepest

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SHARES = (0.0, 0.65)
LABELS, AUTO = "labels alone", "auto"
CIFAR100_EXITS = EFFICIENTNET_BLOCKS[1::2]
N_IMAGES = {"train": 20000, "test": 10000}
N_TEXTS = 12000
#: Texts are cut after so many tokens.
MAX_LENGTH = 64
NAMES = {"cifar100": "CIFAR-100", "sst2": "SST-2", "ag_news": "AG News"}


@dataclass
class Features:
    """Rows that heads are trained on, and others."""

    X: ExitArray
    y: np.ndarray
    X_test: ExitArray
    y_test: np.ndarray


def cifar100(options: argparse.Namespace) -> Features:
    extractor = ExitExtractor(
        load_efficientnet(), exits=CIFAR100_EXITS, head=None, pool=("avg", "max"), dtype="float16"
    )

    def extract(part: str) -> FeatureCache:
        images, y = (values[: N_IMAGES[part]] for values in load_cifar100(options.data_root, part))
        return extractor.extract(efficientnet_loader(images, y), options.cache / f"cifar100-{part}", check_data=False)

    return in_memory(extract("train"), extract("test"))


def texts(
    name: str, load: Callable[[Path, str], tuple[list[str], np.ndarray]], parts: list[str], options: argparse.Namespace
) -> Features:
    """Features of texts of all parts in random order, of which the last quarter are test rows."""
    loaded = [load(options.data_root, part) for part in parts]
    lines, y = [text for part, _ in loaded for text in part], np.concatenate([labels for _, labels in loaded])
    rows = np.random.default_rng(0).permutation(len(y))[:N_TEXTS]
    network, tokenizer = load_minilm(options.minilm)
    example = TokenBatches(tokenizer, lines, y, MAX_LENGTH).batch([median_row(lines)])
    del example["labels"]
    extractor = ExitExtractor(
        network, minilm_layers(network), example_input=example, head=None, pool="mean", dtype="float16"
    )

    def extract(part: str, rows: np.ndarray) -> FeatureCache:
        rows = rows[np.argsort([len(lines[row]) for row in rows], kind="stable")]  # little of a batch is padding
        batches = TokenBatches(tokenizer, [lines[row] for row in rows], y[rows], MAX_LENGTH)
        return extractor.extract(batches, options.cache / f"{name}-{part}", check_data=False, shard_rows=1024)

    n_train = 3 * len(rows) // 4
    return in_memory(extract("train", rows[:n_train]), extract("test", rows[n_train:]))


DATA: dict[str, Callable[[argparse.Namespace], Features]] = {
    "cifar100": cifar100,
    "sst2": partial(texts, "sst2", load_sst2, ["train", "dev", "test"]),
    "ag_news": partial(texts, "ag_news", load_ag_news, ["train", "test"]),
}


def median_row(lines: list[str]) -> int:
    """Row of a text of median length."""
    return int(np.argsort([len(text) for text in lines], kind="stable")[len(lines) // 2])


def in_memory(train: FeatureCache, test: FeatureCache) -> Features:
    X, X_test = (ExitArray.from_array(np.asarray(cache.X), cache.layout) for cache in (train, test))
    return Features(X, train.y, X_test, test.y)


def rows_of_draw(features: Features, n_rows: int, draw: int) -> tuple[ExitArray, np.ndarray]:
    rows = np.sort(np.random.default_rng(draw).permutation(len(features.y))[:n_rows])
    return features.X[rows], features.y[rows]


def fitted_heads(features: Features, n_rows: int, draw: int, share: float, file: Path) -> tuple[ExitHeads, float]:
    """Heads of a draw, kept in a file, and the processor time that they took."""
    if not file.exists():
        X, y = rows_of_draw(features, n_rows, draw)
        heads = recommended_heads(random_state=draw).set_params(distillation=share)
        start = time.process_time()
        heads.fit(X, y)
        joblib.dump((heads, time.process_time() - start), file)
    heads, seconds = joblib.load(file)
    return heads, seconds


def measure(features: Features, heads: ExitHeads, draw: int) -> pd.DataFrame:
    """Accuracy and cost of the recommended pipeline with these heads at each budget."""
    fit, test = half_rows(len(features.y_test), draw)
    pipeline = recommended_pipeline(heads=heads, random_state=draw).fit(features.X_test[fit], features.y_test[fit])
    policy, X_test, y_test = pipeline[-1], pipeline[:-1].transform(features.X_test[test]), features.y_test[test]
    results = []
    for budget in BUDGETS:
        at_budget = policy.with_budget(budget)
        scores = {"accuracy": at_budget.score(X_test, y_test), "cost": at_budget.mean_cost(X_test)}
        results.append({"budget": budget} | scores)
    cost_of_heads = X_test.layout.costs[-1] / features.X.layout.costs[-1] - 1
    return pd.DataFrame(results).assign(cost_of_heads=cost_of_heads)


def try_teacher(features: Features, n_rows: int, draw: int) -> pd.DataFrame:
    """The share that ``distillation="auto"`` chooses, and the processor time that its trial takes."""
    X, y = rows_of_draw(features, n_rows, draw)
    start = time.process_time()
    share = resolve_share_of_deepest("auto", X, np.unique(y, return_inverse=True)[1], np.ones(len(y)), None)
    return pd.DataFrame({"share": [share], "seconds": [time.process_time() - start]})


def keep(file: Path, keys: dict[str, Any], measure_rows: Callable[[], pd.DataFrame]) -> None:
    """Add rows of results with these keys to a file, unless it has them."""
    results = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=list(keys))
    if (results[list(keys)] == pd.Series(keys)).all(axis=1).any():
        return
    new = measure_rows()
    for position, (name, value) in enumerate(keys.items()):
        new.insert(position, name, value)
    (pd.concat([results, new]) if len(results) else new).round(5).to_csv(file, index=False)
    print(new.to_string(index=False), flush=True)


def run(options: argparse.Namespace) -> None:
    """Measure all draws that are not measured yet."""
    features = DATA[options.data](options)
    n_rows = min(options.rows, len(features.y))
    for draw in options.draws:
        keys = {"data": NAMES[options.data], "rows": n_rows, "draw": draw}
        keep(options.out / "trials.csv", keys, lambda draw=draw: try_teacher(features, n_rows, draw))
        for share in SHARES:
            file = options.cache / f"heads-{options.data}-{n_rows}-{draw}-{share:g}.joblib"

            def measure_rows(draw: int = draw, share: float = share, file: Path = file) -> pd.DataFrame:
                heads, seconds = fitted_heads(features, n_rows, draw, share, file)
                return measure(features, heads, draw).assign(seconds=seconds)

            keep(options.out / "draws.csv", keys | {"teacher": share}, measure_rows)


def with_auto(results: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """The results with those of `"auto"`: of the share that it chooses, with the time of the trial."""
    chosen = results.merge(trials.rename(columns={"share": "teacher", "seconds": "trial"}))
    chosen["seconds"] += chosen["trial"]
    labels = dict(zip(SHARES, (LABELS, f"{SHARES[1]:g}"), strict=True))
    named = results.assign(teacher=results["teacher"].map(labels))
    return pd.concat([named, chosen.assign(teacher=AUTO).drop(columns="trial")])


def accuracies(results: pd.DataFrame) -> pd.DataFrame:
    """Means over draws, in %: accuracy within each budget, and what heads cost of the network; seconds to fit."""
    keys = ["data", "rows", "teacher"]
    table = 100 * results.pivot_table(index=keys, columns="budget", values="accuracy", sort=False)
    table = table.round(1).rename(columns=percent)
    groups = results.groupby(keys, sort=False)
    table.insert(0, "draws", groups["draw"].nunique())
    table["cost of heads"] = (100 * groups["cost_of_heads"].mean()).round(1)
    table["seconds"] = groups["seconds"].mean().round(1)
    return table.reset_index()


def gains(results: pd.DataFrame) -> pd.DataFrame:
    """Points of accuracy more than labels alone, on the same draws: mean and standard error over draws."""
    accuracy = 100 * results.pivot(index=["data", "rows", "draw", "budget"], columns="teacher", values="accuracy")
    differences = accuracy.drop(columns=LABELS).sub(accuracy[LABELS], axis=0).melt(ignore_index=False).dropna()
    groups = differences.groupby(["data", "rows", "teacher", "budget"], sort=False)["value"]
    mean, error = groups.mean(), groups.sem()
    cells = [f"{m:+.1f}" + ("" if np.isnan(e) else f" ± {e:.1f}") for m, e in zip(mean, error, strict=True)]
    return pd.Series(cells, index=mean.index).unstack("budget").rename(columns=percent).reset_index()


def percent(budget: float) -> str:
    return f"{100 * budget:.0f} %"


def write_tables(folder: Path) -> None:
    results = with_auto(pd.read_csv(folder / "draws.csv"), pd.read_csv(folder / "trials.csv"))
    for name, table in {"accuracy": accuracies(results), "gains": gains(results)}.items():
        print(f"\n{name}\n{table.to_string(index=False)}", flush=True)
        table.to_csv(folder / f"{name}.csv", index=False)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(DATA))
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for features")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minilm", type=Path, help="folder of the encoder of texts")
    parser.add_argument("--rows", type=int, default=8000, help="training rows of a draw")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    return parser


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    run(options)
    write_tables(options.out)


if __name__ == "__main__":
    main()
