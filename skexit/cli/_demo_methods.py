"""The policies that the demo compares, in a table and a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from skexit.heads import ExitHeads
from skexit.metrics import bootstrap_interval
from skexit.pipeline import make_exit_pipeline, recommended_pipeline
from skexit.plotting import AccuracyCostDisplay
from skexit.policies import (
    EENetPolicy,
    EMExitAssigner,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    StaticExit,
    ThresholdPolicy,
)
from skexit.utils._warnings import silenced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECOMMENDED, BASELINE, FIXED = "recommended", "maximum probability", "fixed exits"
_BUDGETS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7)
_GROUPS = ("ours", "papers", "baselines")
_GROUP_OF = {RECOMMENDED: "ours", "optimal stopping": "ours", BASELINE: "baselines", FIXED: "baselines"}
_GROUP_OF |= {"shared threshold": "baselines", "random": "baselines"}


def fit_methods(X: Any, y: NDArray[np.int64], *, seed: int, full: bool, progress: bool) -> dict[str, Any]:
    """Fitted pipelines by the name of their method. The fixed exits are a list with one pipeline per exit."""
    with_own_heads: dict[str, Any] = {RECOMMENDED: recommended_pipeline(random_state=seed)}
    after_heads: dict[str, Any] = {BASELINE: ThresholdPolicy("max_prob")}
    if full:
        with_own_heads["JEI-DNN"] = make_exit_pipeline(JEIGatedEnsemble(random_state=seed))
        after_heads |= {
            "optimal stopping": OptimalStoppingPolicy(random_state=seed),
            "EENet": EENetPolicy(random_state=seed),
            "EM": EMExitAssigner(random_state=seed),
            "BranchyNet (entropy)": ThresholdPolicy("entropy"),
            "shared threshold": ThresholdPolicy("max_prob", schedule="shared"),
            "random": RandomExit(random_state=seed),
        }
    n_fits = len(with_own_heads) + len(after_heads) + 1
    with silenced(), tqdm(total=n_fits, desc="     fitting", leave=False, disable=None if progress else True) as bar:
        fitted: dict[str, Any] = {}
        for name, pipeline in with_own_heads.items():
            fitted[name] = pipeline.fit(X, y)
            bar.update()
        heads = ExitHeads(random_state=seed)
        logits = heads.fit_transform(X, y)  # all other methods decide on the logits of the same heads
        bar.update()
        for name, policy in after_heads.items():
            fitted[name] = make_exit_pipeline(heads, policy.fit(logits, y))
            bar.update()
        fitted[FIXED] = [make_exit_pipeline(heads, StaticExit(k).fit(logits, y)) for k in range(X.layout.n_exits)]
    return fitted


def measure(methods: dict[str, Any], X: Any, y: NDArray[np.int64], *, random_state: int) -> pd.DataFrame:
    """A table with the cost and accuracy of each method at each budget, and a 95 % interval of the accuracy."""
    rows = []
    for name, method in methods.items():
        with silenced():
            settings = method if isinstance(method, list) else [method.with_budget(budget) for budget in _BUDGETS]
        for policy in settings:
            correct, exits = policy.predict(X) == y, policy.predict_exit(X)
            low, high = bootstrap_interval(np.mean, correct, method="share", n_resamples=500, random_state=random_state)
            rows.append(
                {
                    "group": _GROUP_OF.get(name, "papers"),
                    "method": name,
                    "budget": np.nan if isinstance(method, list) else policy[-1].budget,
                    "cost": policy.costs_[exits].mean(),
                    "accuracy": correct.mean(),
                    "low": low,
                    "high": high,
                    "exit distribution": " ".join(
                        f"{share:.2f}" for share in np.bincount(exits, minlength=X.layout.n_exits) / len(exits)
                    ),
                }
            )
    return pd.DataFrame(rows)


def short_table(results: pd.DataFrame, network_accuracy: float, budget: float) -> str:
    """Lines with the accuracy of each method at each budget, of each exit, and of the recommended pipeline."""
    lines = ["", "     Accuracy in % at a mean cost of      " + "".join(f"{100 * b:>7.0f} %" for b in _BUDGETS)]
    policies = results[results["method"] != FIXED]
    for group in _GROUPS:
        for name in policies["method"][policies["group"] == group].unique():
            values = "".join(f"{100 * accuracy:9.1f}" for accuracy in policies["accuracy"][policies["method"] == name])
            lines.append(f"     {name:<24}{group:<13}{values}")
    fixed = results[results["method"] == FIXED]
    exits = ", ".join(
        f"{100 * accuracy:.1f} at {100 * cost:.0f} %"
        for cost, accuracy in zip(fixed["cost"], fixed["accuracy"], strict=True)
    )
    best = results[(results["method"] == RECOMMENDED) & (results["budget"] == budget)].iloc[0]
    half_width = (best["high"] - best["low"]) / 2
    lines += [
        f"     all samples at one exit: {exits}",
        f"     the whole network: {100 * network_accuracy:.1f} at 100 %",
        "",
        f"     With {best['cost']:.0%} of the compute, the recommended pipeline has an accuracy of "
        f"{100 * best['accuracy']:.1f} ± {100 * half_width:.1f} %.",
        "",
    ]
    return "\n".join(lines)


def draw(results: pd.DataFrame, network_accuracy: float) -> Figure:
    """A plot of accuracy against cost for the recommended pipeline, maximum probability and fixed exits."""
    shown = {name: results[results["method"] == name] for name in (RECOMMENDED, BASELINE, FIXED)}
    display = AccuracyCostDisplay(
        {name: (rows["cost"], rows["accuracy"]) for name, rows in shown.items()},
        intervals={RECOMMENDED: (shown[RECOMMENDED]["low"], shown[RECOMMENDED]["high"])},
        network_accuracy=network_accuracy,
    ).plot(direct_labels=True)
    display.ax_.set_title("Digits on noisy images: a ResNet with four exits", fontsize="medium")
    figure: Figure = display.figure_
    return figure
