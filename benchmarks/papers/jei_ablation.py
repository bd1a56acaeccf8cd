"""JEI-DNN and what it owes to each of its parts, on CIFAR-10 with nine exits of a frozen ResNet-56.

    python -m benchmarks.papers.jei_ablation --data-root DIR --weights resnet56.th [--splits 5] [--figure PATH]

`--data-root` and `--weights` are those of ``em_routing.py``. Methods are compared on the same splits
with maximum probability, whose thresholds are set on modules that are trained on all rows alike. The
policies train their own modules, except with ``joint=False``, where gates and thresholds have the same.

Methods of `FITTED` are fitted at each budget. Those of `ABLATIONS` are fitted at a budget of 0.7, and
``with_budget`` gives the others: the gates are those of other prices, the modules stay.

It also prints what the gates do without a budget; what joint training does to the expected loss and to
the modules; and how far probabilities and sets can be trusted. `--time-rows` times a fit for one price
on so many training images. `--figure` draws accuracy against cost.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.shared.intervals import gain_at_same_cost, half_width
from benchmarks.shared.routing import BASELINE, BUDGETS, argument_parser, extract, half_rows, measure_policy, summarize
from skexit import ExitArray, ExitHeads, JEIGatedEnsemble, ThresholdPolicy
from skexit.data._walk import correct_exits
from skexit.policies import ExitPolicy
from skexit.policies.jei._training import JointTrainer
from skexit.uncertainty import coverage_score, expected_calibration_error, inefficiency_score

DEFAULT, GATES, TO_THE_END, PAPER = "JEIGatedEnsemble", "joint=False", "early_stopping=False", "the paper's"
PAPERS_SETTINGS = {
    "targets": "exit_subsequent",
    "gate_reading": "exit",
    "temperature_scaling": False,
    "l2": 5e-4,
    "batch_size": 64,
}
FITTED = {DEFAULT: {}, GATES: {"joint": False}}
ABLATIONS = {
    TO_THE_END: {"early_stopping": False},
    PAPER: {**PAPERS_SETTINGS, "early_stopping": False},
    "the paper's, early stopping": PAPERS_SETTINGS,
    'targets="exit_subsequent"': {"targets": "exit_subsequent"},
    'gate_reading="exit"': {"gate_reading": "exit"},
    "temperature_scaling=False": {"temperature_scaling": False},
    'gate_class_weight="balanced"': {"gate_class_weight": "balanced"},
    'gradient="full", to the end': {"gradient": "full", "early_stopping": False},
}
ABLATION_BUDGET = 0.7


class OwnRowsHeads(ExitHeads):
    """Says of the rows that it was fitted on what it has learned from these, too."""

    def fit_transform(self, X: ExitArray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> ExitArray:
        return self.fit(X, y, sample_weight).transform(X)


#: Gates on the same fixed modules, for prices and without a budget.
GATES_ALONE = {
    "default": {},
    'targets="exit_subsequent"': {"targets": "exit_subsequent"},
    'gate_reading="exit"': {"gate_reading": "exit"},
    'gate_reading="exit", targets="exit_subsequent"': {"gate_reading": "exit", "targets": "exit_subsequent"},
    "temperature_scaling=False": {"temperature_scaling": False},
    'gate_class_weight="balanced"': {"gate_class_weight": "balanced"},
    "not cross-fitted": {"heads": OwnRowsHeads(random_state=0)},
}
PRICES = (0.3, 1.0, 3.0)
PATH_PRICES = (0.1, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1, 2.4, 2.7, 3.0)
CALIBRATED = (DEFAULT, GATES, BASELINE)

Rows = list[dict[str, object]]


class RecordingEnsemble(JEIGatedEnsemble):
    """Keeps in ``held_out_losses_`` the expected loss (eq. 6) before joint training and after each epoch."""

    def _make_trainer(self, *arguments: object) -> JointTrainer:
        trainer = super()._make_trainer(*arguments)
        held_out_loss, self.held_out_losses_ = trainer.held_out_loss, []

        def record(prices: np.ndarray) -> float:
            self.held_out_losses_.append(held_out_loss(prices))
            return self.held_out_losses_[-1]

        trainer.held_out_loss = record
        return trainer


def fit_policies(X: ExitArray, y: np.ndarray, seed: int, log: Rows) -> dict[tuple[str, float], ExitPolicy]:
    """Fitted policies by method and budget; notes of each fit go to `log`."""

    def fit(method: str, budget: float, parameters: dict[str, object]) -> ExitPolicy:
        start = time.perf_counter()
        policy = RecordingEnsemble(budget=budget, random_state=seed, **parameters).fit(X, y)
        note = {"method": method, "budget": budget, "split": seed, "seconds": time.perf_counter() - start}
        losses = getattr(policy, "held_out_losses_", [])
        temperature = policy.gate_temperatures_[-1]
        log.append({**note, "lam": policy.lam_, "epochs": policy.n_epochs_, "T": temperature, "losses": losses})
        return policy

    policies: dict[tuple[str, float], ExitPolicy] = {}
    baseline = ThresholdPolicy(budget=ABLATION_BUDGET, heads=ExitHeads(random_state=seed)).fit(X, y)
    for budget in BUDGETS:
        policies[BASELINE, budget] = baseline.with_budget(budget)
        for method, parameters in FITTED.items():
            policies[method, budget] = fit(method, budget, parameters)
    for method, parameters in ABLATIONS.items():
        policy = fit(method, ABLATION_BUDGET, parameters)
        for budget in BUDGETS:
            policies[method, budget] = policy.with_budget(budget)
    return policies


def measure_at_price(policy: JEIGatedEnsemble, baseline: ThresholdPolicy, X: ExitArray, y: np.ndarray) -> dict:
    """Accuracy and cost, and the gain over maximum probability for the same cost on the fitted rows."""
    result = measure_policy(policy, X, y)
    return {**result, "gain": result["accuracy"] - baseline.with_budget(result["fitted cost"]).score(X, y)}


def measure_modules(policy: JEIGatedEnsemble, X: ExitArray, y: np.ndarray) -> Rows:
    """Accuracy of each module, on all rows and on those that leave there."""
    right, exits = correct_exits(policy.heads_.transform(X), y), policy.predict_exit(X)
    here = [exits == k for k in range(right.shape[1])]
    return [
        {"exit": k, "share": here[k].mean(), "all": right[:, k].mean(), "own": right[here[k], k].mean()}
        for k in range(right.shape[1])
        if here[k].any()
    ]


def measure_trust(policy: ExitPolicy, X: ExitArray, y: np.ndarray, seed: int) -> Rows:
    """Calibration error and sets, calibrated on one half of the rows and measured on the other, both ways."""
    first, second = half_rows(len(y), seed)
    results = []
    for part, (calibration, rest) in enumerate([(first, second), (second, first)]):
        policy.calibrate(X[calibration], y[calibration])
        probabilities = policy.predict_proba(X[rest])
        result = {"part": 2 * seed + part, "ECE": expected_calibration_error(y[rest], probabilities)}
        result["ECE by chance"] = chance_error(probabilities, seed)
        for method in ("gated", "general"):
            sets = policy.predict_set(X[rest], alpha=0.05, method=method)
            result[f"{method} size"] = inefficiency_score(sets)
            result[f"{method} coverage"] = coverage_score(y[rest], sets)
        results.append(result)
    return results


def chance_error(probabilities: np.ndarray, seed: int, n_draws: int = 20) -> float:
    """Mean calibration error if the labels were drawn from the probabilities."""
    rng, cumulative = np.random.default_rng(seed), np.cumsum(probabilities, axis=1)
    labels = [(rng.random((len(cumulative), 1)) > cumulative[:, :-1]).sum(axis=1) for _ in range(n_draws)]
    classes = np.arange(probabilities.shape[1])
    return float(np.mean([expected_calibration_error(y, probabilities, labels=classes) for y in labels]))


def measure(X: ExitArray, y: np.ndarray, n_splits: int) -> dict[str, pd.DataFrame]:
    results: dict[str, Rows] = {name: [] for name in ("accuracy", "fits", "gates", "modules", "trust", "path")}
    for seed in range(n_splits):
        fit, test = half_rows(len(y), seed)
        X_fit, y_fit, X_test, y_test = X[fit], y[fit], X[test], y[test]
        policies = fit_policies(X_fit, y_fit, seed, results["fits"])
        baseline = policies[BASELINE, ABLATION_BUDGET]
        for method, parameters in GATES_ALONE.items():
            for lam in PRICES:
                policy = JEIGatedEnsemble(lam, joint=False, random_state=seed, **parameters).fit(X_fit, y_fit)
                place = {"method": method, "lam": lam, "split": seed}
                results["gates"].append(place | measure_at_price(policy, baseline, X_test, y_test))
        for policy in JEIGatedEnsemble(random_state=seed).lambda_path(X_fit, y_fit, PATH_PRICES).policies:
            place = {"lam": policy.lam_, "split": seed}
            results["path"].append(place | measure_at_price(policy, baseline, X_test, y_test))
        for (method, budget), policy in policies.items():
            place = {"method": method, "budget": budget, "split": seed}
            results["accuracy"].append(place | measure_policy(policy, X_test, y_test))
            if method in (DEFAULT, TO_THE_END, PAPER) and budget == ABLATION_BUDGET:
                results["modules"] += [place | row for row in measure_modules(policy, X_test, y_test)]
            if method in CALIBRATED:
                results["trust"] += [place | row for row in measure_trust(policy, X_test, y_test, seed)]
    return {name: pd.DataFrame(rows) for name, rows in results.items()}


def gains_by_budget(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Gain over maximum probability at the same cost on new rows, by method and split, and budget."""
    gains = accuracy.assign(gain=gain_at_same_cost(accuracy, BASELINE))
    return gains.pivot(index=["method", "split"], columns="budget", values="gain")


def summarize_gains(gains: pd.DataFrame) -> pd.DataFrame:
    """Means over the splits and half their 95 % intervals, against maximum probability and the default."""
    to_default = (gains - gains.loc[DEFAULT].reindex(gains.index, level="split")).groupby("method")
    to_baseline = gains.groupby("method")
    tables = {
        f"accuracy - {BASELINE}": to_baseline.mean(),
        "± (95 %, paired)": half_width(to_baseline),
        f"accuracy - {DEFAULT}": to_default.mean(),
        "± (95 %, paired), default": half_width(to_default),
    }
    return pd.concat(tables)


def summarize_trust(trust: pd.DataFrame) -> pd.DataFrame:
    """Means, and paired differences to maximum probability with half their 95 % intervals."""
    values = trust.drop(columns="split").set_index(["method", "budget", "part"])
    groups = values.groupby(["method", "budget"], sort=False)
    difference = values - values.loc[BASELINE].reindex(values.index.droplevel("method")).to_numpy()
    tables = {"": groups.mean(), f"- {BASELINE}": difference.groupby(["method", "budget"], sort=False).mean()}
    tables["±"] = half_width(difference.groupby(["method", "budget"], sort=False))
    return pd.concat(tables).round(4)


def summarize_fits(fits: pd.DataFrame) -> pd.DataFrame:
    """Seconds, price and epochs of the fits, and the expected loss before joint training and after."""
    fits = fits.copy()
    fits["kept epoch 0"] = fits["epochs"] == 0
    for epoch in (0, 1, 5, 15):
        fits[f"loss {epoch}"] = [losses[epoch] if len(losses) > epoch else np.nan for losses in fits["losses"]]
    fits["ever lower"] = [bool(losses) and min(losses[1:]) < losses[0] for losses in fits["losses"]]
    return fits.drop(columns=["split", "losses"]).groupby(["method", "budget"], sort=False).mean().round(4)


def draw(results: dict[str, pd.DataFrame], path: Path) -> None:
    """Accuracy against cost, and the gain over maximum probability at the same cost."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    accuracy = results["accuracy"]
    means = accuracy.groupby(["method", "budget"])[["cost", "accuracy"]].mean()
    gains = gains_by_budget(accuracy).groupby("method")
    gain, error = gains.mean(), half_width(gains)
    on_path = results["path"].groupby("lam")[["cost", "accuracy"]].mean().sort_values("cost")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.3, 4.0), layout="constrained")
    left.plot(on_path["cost"], on_path["accuracy"], color="#2f5f8f", linewidth=1.2, label="lambda_path, default")
    styles = {
        BASELINE: ("maximum probability", "black", "s"),
        DEFAULT: ("default", "#2f5f8f", "o"),
        TO_THE_END: ("joint, to the end", "#e1a03c", "^"),
        PAPER: ("the paper's", "#b04a4a", "v"),
    }
    for offset, (method, (label, color, marker)) in zip((0, -0.012, 0, 0.012), styles.items(), strict=True):
        line = {"color": color, "marker": marker, "markersize": 5, "linestyle": "none", "label": label}
        left.plot(means.loc[method, "cost"], means.loc[method, "accuracy"], **line)
        if method != BASELINE:
            right.errorbar(np.array(BUDGETS) + offset, gain.loc[method], yerr=error.loc[method], capsize=3, **line)
    right.axhline(0, color="black", linewidth=1)
    left.set(xlabel="mean cost on new rows", ylabel="accuracy", xlim=(0.4, 1), ylim=(0.6, 0.95))
    right.set(xlabel="budget", ylabel="gain over maximum probability")
    left.legend(frameon=False, loc="lower right")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def time_fit(data_root: Path, weights: Path, pool: list[str], n_rows: int) -> None:
    X, y = extract(data_root, weights, pool, part="train", n_images=n_rows)
    for name, policy in {"default": JEIGatedEnsemble(), "joint=False": JEIGatedEnsemble(joint=False)}.items():
        start = time.perf_counter()
        policy.set_params(random_state=0).fit(X, y)
        print(f"one fit for lam=1, {name}, {len(y):,} rows: {time.perf_counter() - start:.1f} s", flush=True)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--figure", type=Path, help="image file to draw accuracy against cost in")
    parser.add_argument("--time-rows", type=int, help="time a fit for one price on so many training images")
    options = parser.parse_args()
    if options.time_rows:
        time_fit(options.data_root, options.weights, options.pool, options.time_rows)
    X, y = extract(options.data_root, options.weights, options.pool)
    results = measure(X, y, options.splits)
    if options.out:
        pd.concat(results).to_csv(options.out)
    if options.figure:
        draw(results, options.figure)
    by_price = results["gates"].groupby(["method", "lam"], sort=False)[["cost", "accuracy", "gain"]]
    modules = results["modules"].groupby(["method", "exit"], sort=False)[["share", "all", "own"]]
    tables = {
        "accuracy within budgets": summarize(results["accuracy"]),
        "at the same cost on new rows": summarize_gains(gains_by_budget(results["accuracy"])),
        "fits": summarize_fits(results["fits"]),
        "gates on fixed modules, without a budget": by_price.mean().join(half_width(by_price)["gain"].rename("±")),
        "lambda_path": results["path"].drop(columns="split").groupby("lam").mean(),
        f"modules at a budget of {ABLATION_BUDGET}": modules.mean(),
        "calibration": summarize_trust(results["trust"]),
    }
    for name, table in tables.items():
        print(f"\n{name}\n{table.round(4).to_string()}")


if __name__ == "__main__":
    main()
