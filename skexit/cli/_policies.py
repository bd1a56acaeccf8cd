"""The commands that write policies: ``fit`` and ``calibrate``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from skexit.cli._commands import aligned, command, percent
from skexit.cli._files import (
    BATCH_SIZE,
    CACHE,
    POLICY,
    SEED,
    check_out_file,
    load_fitting,
    load_latency,
    open_labelled,
    out_option,
    save_policy,
)
from skexit.data._labels import NAME_THE_LOGITS
from skexit.data._validation import check_budget

#: Class and parameters of each policy, by its name on the command line.
_POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "max_prob": ("ThresholdPolicy", {"criterion": "max_prob"}),
    "entropy": ("ThresholdPolicy", {"criterion": "entropy"}),
    "margin": ("ThresholdPolicy", {"criterion": "margin"}),
    "stopping": ("OptimalStoppingPolicy", {}),
    "em": ("EMExitAssigner", {}),
    "eenet": ("EENetPolicy", {}),
    "jei": ("JEIGatedEnsemble", {}),
}


def add_policy_commands(group: click.Group) -> None:
    """Add ``fit`` and ``calibrate`` to a group."""
    command(group, "fit", "skexit fit cache --budget 0.5 --out policy.joblib")(_fit)
    command(group, "calibrate", "skexit calibrate cache-validation policy.joblib --out calibrated.joblib")(_calibrate)


@CACHE
@click.option(
    "--budget", type=float, default=0.5, show_default=True, help="Mean cost of a sample, a fraction in (0, 1]."
)
@click.option(
    "--policy",
    type=click.Choice(["recommended", *_POLICIES]),
    default="recommended",
    show_default=True,
    help="Recommended: heads, ensemble and optimal stopping. Other policies fit heads at exits without logits.",
)
@click.option(
    "--latency",
    metavar="FILE",
    help="File of skexit latency. The budget is then a fraction of the plain network's time, and exits whose decisions "
    "take longer than they save are switched off.",
)
@click.option(
    "--batch-size",
    type=BATCH_SIZE,
    default=1,
    show_default=True,
    help="With --latency: number of samples that arrive together.",
)
@out_option("policy.joblib", "File to write.")
@SEED
def _fit(cache: str, budget: float, policy: str, latency: str | None, batch_size: int, out: str, seed: int) -> Any:
    """Fit heads and a policy on a labelled cache.

    The network should not have been trained on the rows of CACHE. Budgets and costs are fractions of the cost of the
    plain network.
    """
    check_out_file(out)
    opened = open_labelled(cache, "a fit")
    measured = None if latency is None else load_latency(latency)
    layout = opened.layout if measured is None else measured.layout(opened.layout, batch_size)
    check_budget(budget, layout)  # before the heads are fitted
    with _naming_classes():
        fitted = _make(policy, budget, seed).fit(opened.X.with_layout(layout), opened.y)
    if measured is not None:
        from skexit.runtime import pruned

        fitted = pruned(fitted, measured, batch_size)
    save_policy(fitted, out)
    shares = fitted.exit_distribution_
    cost = float(shares @ fitted.costs_)  # from cross-fitted heads, so it is also the expected cost of new rows
    facts = {"file": out, "policy": policy, "budget": budget, "rows": opened.n_rows, "mean_cost": cost}
    lines = {
        "file": out,
        "fitted on": f"{opened.n_rows:,} rows",
        "mean cost": percent(cost),
        "leave at the exits": ", ".join(map(percent, shares)),
    }
    return facts | {"exit_distribution": shares}, "\n".join(aligned(lines))


@CACHE
@POLICY
@out_option("calibrated.joblib", "File to write.")
def _calibrate(cache: str, policy: str, out: str) -> Any:
    """Calibrate the probabilities of a policy on rows that it was not fitted on.

    The command writes a calibrated copy, which can also predict sets of classes, and leaves the file POLICY as it is.
    Decisions are the same. POLICY is a file from skexit fit. Loading it can run code in the file, so give only files
    that you trust.
    """
    check_out_file(out)
    opened = open_labelled(cache, "calibration")
    calibrated = load_fitting(policy, opened, cache).calibrate(opened.X, opened.y)
    save_policy(calibrated, out)
    temperatures = calibrated.temperatures_
    facts = {"file": out, "rows": opened.n_rows, "temperatures": temperatures}
    shown = ", ".join(f"{temperature:.3g}" for temperature in temperatures)
    return facts, "\n".join(aligned({"file": out, "temperatures": shown}))


@contextmanager
def _naming_classes() -> Iterator[None]:
    """Add to an error that it is unclear which logit is which class what to do on the command line."""
    try:
        yield
    except ValueError as error:
        if NAME_THE_LOGITS in str(error):
            error.add_note(
                "On the command line, let MODULE:FUNCTION return (network, loader, classes), with the classes in the "
                "order of the logits, and run skexit extract again with another --out."
            )
        raise


def _make(name: str, budget: float, seed: int) -> Any:
    import skexit.policies
    from skexit.pipeline import recommended_pipeline

    if name == "recommended":
        return recommended_pipeline(budget, random_state=seed)
    kind, parameters = _POLICIES[name]
    policy = getattr(skexit.policies, kind)(budget=budget, **parameters)
    return policy.set_params(random_state=seed) if "random_state" in policy.get_params() else policy
