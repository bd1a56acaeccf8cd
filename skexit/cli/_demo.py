"""The demo: from a torch network to a fitted exit policy, on scikit-learn's digits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split

from skexit.cache import FeatureCache
from skexit.heads import ExitHeads
from skexit.pipeline import ExitPipeline
from skexit.plotting import AccuracyCostDisplay
from skexit.policies import (
    EENetPolicy,
    EMExitAssigner,
    ExitPolicy,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    StaticExit,
    ThresholdPolicy,
    oracle,
)
from skexit.uncertainty import coverage_score, expected_calibration_error, inefficiency_score
from skexit.utils._optional import check_torch, optional_import
from skexit.utils._threads import one_torch_thread
from skexit.utils._warnings import silenced

if TYPE_CHECKING:
    import torch

    from skexit.runtime import EarlyExitModel

_BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_EXITS = ["stage1", "stage2", "stage3", "stage4"]
_PRICES = (0.5, 1.0, 2.0, 4.0)
_JOINT = "JEI gates"
#: Test digits that are timed one by one, and runs of which the median counts.
_N_ALONE, _N_RUNS = 50, 7


def run_demo(out: str | Path, *, seed: int = 0, report: Callable[[str], None] = print) -> pd.DataFrame:
    """Train a network, cache its exits, fit policies, and write a table and a plot.

    The caches, ``results.csv``, ``accuracy_cost.png`` and ``policy.joblib`` go to the folder `out`. `report` takes each
    line that tells what happens. The table has one row for each method and budget.
    """
    check_torch("skexit demo trains a network with", extra="demo")
    with optional_import("skexit demo draws with", "demo"):
        import matplotlib  # noqa: F401
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    network_data, fit_data, test_data = _split_digits(seed)

    report("1. Training a ResNet with four stages on 600 of scikit-learn's digits, scattered on a noisy canvas ...")
    network = _train_network(*network_data, seed=seed)

    n_fit, n_test = len(fit_data[1]), len(test_data[1])
    report(f"2. Running it once on {n_fit} other digits to fit policies, and on {n_test} to test them:")
    fit_cache = _extract(network, fit_data, folder / "cache-fit")
    test_cache = _extract(network, test_data, folder / "cache-test")
    X, y, y_test = fit_cache.X, fit_cache.y, test_cache.y
    assert y is not None
    assert y_test is not None
    report(f"   {X}, cost in {X.layout.cost_unit}: {', '.join(f'{cost:,.0f}' for cost in X.layout.costs)}")

    report("3. Fitting a classifier at each exit, and exit policies on their logits ...")
    heads = ExitHeads(random_state=seed)
    X_fit, X_test = heads.fit_transform(X, y), heads.transform(test_cache.X)
    report(f"   the classifiers cost {X_fit.layout.head_fractions[-1]:.1%} of the network, on top of it")
    policies = _fit_policies(X_fit, y, seed)
    report("   ... and classifiers and gates together (JEI-DNN) ...")
    joint = _at_budgets(JEIGatedEnsemble(random_state=seed), X, y)

    report("4. Searching the price of compute with GridSearchCV over a Pipeline ...")
    search = _search_price(X, y, seed)
    lam = search.best_params_["policy__lam"]
    report(f"   most accurate: lam={lam:g}, {search.best_score_:.1%} right in cross-validation")

    results = pd.concat([_tabulate({_JOINT: joint}, test_cache.X, y_test), _tabulate(policies, X_test, y_test)])
    results.to_csv(folder / "results.csv", index=False)
    best = _best_within(0.6, policies, X_fit, y)
    joblib.dump(ExitPipeline([("heads", heads), ("policy", best)]), folder / "policy.joblib")
    reloaded = joblib.load(folder / "policy.joblib")
    if not np.array_equal(reloaded.predict(test_cache.X), best.predict(X_test)):
        raise RuntimeError("the reloaded policy does not predict what the saved one did")
    report("5. Saved the best policy within 60 % of the network's cost with joblib; reloaded, it predicts the same.")
    report(f"6. Calibrating it on one half of the test digits; on the other half, {_calibrate(best, X_test, y_test)}.")

    report("7. Running the network live, so that it stops where the policy says:")
    for line in _run_live(network, reloaded, test_data[0], test_cache, folder / "network.onnx"):
        report(f"   {line}")

    report("\n" + results.to_string(index=False, formatters=_FORMATTERS) + "\n")
    curves = {str(name): (rows["cost"], rows["accuracy"]) for name, rows in results.groupby("method", sort=False)}
    head_cost = float(X_test.layout.head_fractions[-1])
    display = AccuracyCostDisplay(curves, oracle=oracle(X_test, y_test), head_cost=head_cost).plot()
    display.ax_.set_title("Digits scattered on a canvas: a ResNet with four exits", fontsize="medium")
    display.ax_.legend(loc="lower right", fontsize="small")
    display.figure_.savefig(folder / "accuracy_cost.png", dpi=150)
    for what, file in (("Table", "results.csv"), ("Plot", "accuracy_cost.png"), ("Policy", "policy.joblib")):
        report(f"{what + ':':<8}{folder / file}")
    return results


def _split_digits(seed: int) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Images for the network, for the policies and for the test: what one has seen fools the next."""
    digits = load_digits()
    network, rest, network_y, rest_y = train_test_split(
        digits.images, digits.target, train_size=600, stratify=digits.target, random_state=seed
    )
    fit, test, fit_y, test_y = train_test_split(rest, rest_y, train_size=600, stratify=rest_y, random_state=seed)
    rng = np.random.default_rng(seed)
    # The network sees each of its few images at many places.
    network, network_y = np.tile(network, (24, 1, 1)), np.tile(network_y, 24)
    return [(_scatter(images, rng), y) for images, y in ((network, network_y), (fit, fit_y), (test, test_y))]


def _scatter(images: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Put each 8 x 8 image at a random place on a noisy 16 x 16 canvas, so that depth matters."""
    canvas = rng.normal(scale=0.1, size=(len(images), 1, 16, 16))
    for row, (top, left) in enumerate(rng.integers(0, 9, size=(len(images), 2))):
        canvas[row, 0, top : top + 8, left : left + 8] += images[row] / 16
    return canvas.astype(np.float32)


def _train_network(images: NDArray[np.float32], y: NDArray[np.int64], *, seed: int) -> torch.nn.Module:
    import torch

    from skexit.cli._digits_network import train_network

    return train_network(torch.from_numpy(images), torch.from_numpy(y), seed=seed)


def _extract(network: torch.nn.Module, data: tuple[Any, Any], path: Path) -> FeatureCache:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from skexit.extraction import ExitExtractor

    if path.exists():  # the cache of an earlier demo, perhaps with another seed
        shutil.rmtree(path)
    images, y = data
    loader = DataLoader(TensorDataset(torch.from_numpy(images), torch.from_numpy(y)), batch_size=100)
    return ExitExtractor(network, exits=_EXITS).extract(loader, path)


def _fit_policies(X: Any, y: Any, seed: int) -> dict[str, list[Any]]:
    """Fitted policies of each method, one per budget."""
    methods = {
        "EM routing": EMExitAssigner(random_state=seed),
        "EENet": EENetPolicy(random_state=seed),
        "optimal stopping": OptimalStoppingPolicy(random_state=seed),
        "max probability": ThresholdPolicy("max_prob"),
        "entropy (BranchyNet)": ThresholdPolicy("entropy"),
        "margin": ThresholdPolicy("margin"),
        "shared threshold": ThresholdPolicy("max_prob", schedule="shared"),
        "random": RandomExit(random_state=seed),
    }
    policies: dict[str, list[Any]] = {name: _at_budgets(method, X, y) for name, method in methods.items()}
    policies["static exits"] = [StaticExit(k).fit(X, y) for k in range(len(_EXITS))]
    return policies


def _at_budgets(method: Any, X: Any, y: Any) -> list[Any]:
    with silenced():  # the table shows in the costs where some of the budget is left unspent
        fitted = method.set_params(budget=_BUDGETS[0]).fit(X, y)
        return [fitted.with_budget(budget) for budget in _BUDGETS]


def _search_price(X: Any, y: Any, seed: int) -> GridSearchCV:
    with TemporaryDirectory() as memory:
        pipeline = ExitPipeline(
            [("heads", ExitHeads(random_state=seed)), ("policy", EMExitAssigner(random_state=seed))],
            memory=memory,  # the heads are fitted once a fold, not once a price
        )
        return GridSearchCV(pipeline, {"policy__lam": _PRICES}, cv=3).fit(X, y)


def _best_within(budget: float, policies: dict[str, list[Any]], X: Any, y: Any) -> ExitPolicy:
    """The most accurate policy on the fitting data whose mean cost is within the budget."""
    fitting = [policy for fitted in policies.values() for policy in fitted if policy.mean_cost(X) <= budget]
    return max(fitting, key=lambda policy: policy.score(X, y))


def _run_live(
    network: torch.nn.Module, pipeline: ExitPipeline, images: NDArray[np.float32], cache: FeatureCache, path: Path
) -> Iterator[str]:
    """What the live network answers and how long it takes, in words; its ONNX export goes to a path."""
    import torch

    from skexit.runtime import EarlyExitModel

    inputs = torch.from_numpy(images)
    with one_torch_thread(), torch.inference_mode():
        live = EarlyExitModel(network, _EXITS, pipeline, example_input=inputs[:1])
        labels, _, exits = live(inputs)
        n_other = int((exits.numpy() != pipeline.predict_exit(cache.X)).sum())
        n_other_labels = int((labels.numpy() != pipeline.predict(cache.X)).sum())
        yield f"of {len(inputs)} test digits, {n_other} leave at another exit and {n_other_labels} have another label"
        yield "than on the cache"
        networks: dict[str, Callable[[torch.Tensor], Any]] = {"plain network": network, "live network": live}
        if _has_onnx():
            networks["in ONNX"] = _export(live, path)
        for what, batches in (("a single digit", inputs[:_N_ALONE].split(1)), ("all at once", [inputs])):
            times = _median_ms(networks, batches)
            yield f"{what + ':':<18}" + ", ".join(f"{name} {time:.2f} ms" for name, time in times.items())


def _has_onnx() -> bool:
    return all(find_spec(name) is not None for name in ("onnx", "onnxruntime", "onnxscript"))


def _export(live: EarlyExitModel, path: Path) -> Callable[[torch.Tensor], Any]:
    """The network as onnxruntime runs it."""
    from skexit.runtime import OnnxEarlyExit, export_onnx

    export_onnx(live, path)
    exported = OnnxEarlyExit(path)
    return lambda inputs: exported.predict(inputs.numpy())


def _median_ms(networks: dict[str, Callable[[Any], Any]], batches: Sequence[torch.Tensor]) -> dict[str, float]:
    """Milliseconds of a batch, the median over runs in which the networks take turns."""
    runs: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(_N_RUNS):
        for name, network in networks.items():
            start = perf_counter()
            for batch in batches:
                network(batch)
            runs[name].append(1000 * (perf_counter() - start) / len(batches))
    return {name: float(np.median(times)) for name, times in runs.items()}


def _calibrate(policy: ExitPolicy, X: Any, y: Any) -> str:
    """Calibration error and prediction sets on rows that were not calibrated on, in words."""
    calibration, rest = np.arange(0, len(y), 2), np.arange(1, len(y), 2)
    before = expected_calibration_error(y[rest], policy.predict_proba(X[rest]), labels=policy.classes_)
    policy.calibrate(X[calibration], y[calibration])
    after = expected_calibration_error(y[rest], policy.predict_proba(X[rest]), labels=policy.classes_)
    sets = policy.predict_set(X[rest], alpha=0.05)
    coverage = coverage_score(y[rest], sets, labels=policy.classes_)
    return (
        f"the calibration error\n   is {after:.3f} (before: {before:.3f}), and sets of {inefficiency_score(sets):.2f} "
        f"classes hold the true one for {coverage:.1%} (asked for: 95 %)"
    )


def _tabulate(policies: dict[str, list[Any]], X: Any, y: Any) -> pd.DataFrame:
    rows = []
    for name, fitted in policies.items():
        for policy in fitted:
            exits = policy.predict_exit(X)
            shares = np.bincount(exits, minlength=len(policy.costs_)) / len(exits)
            rows.append(
                {
                    "method": name,
                    "budget": getattr(policy, "budget", np.nan),
                    "cost": policy.mean_cost(X),
                    "accuracy": policy.score(X, y),
                    "exit distribution": " ".join(f"{share:.2f}" for share in shares),
                }
            )
    return pd.DataFrame(rows)


_FORMATTERS: dict[str, Callable[[Any], str]] = {
    "budget": lambda budget: "" if np.isnan(budget) else f"{budget:.0%}",
    "cost": "{:.1%}".format,
    "accuracy": "{:.1%}".format,
}
