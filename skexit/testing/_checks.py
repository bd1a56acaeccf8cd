"""The rules of the contract of all policies, with one function that checks each."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import SkipTest

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from skexit.data import ExitArray
from skexit.persistence import TRUSTED_TYPES
from skexit.runtime import policy_from_json, policy_to_json
from skexit.testing._fits import N_ROWS, Fit, PolicyFits, count_warnings, fit_quietly, make_data
from skexit.testing._inspect import declared_scores, exits_one_by_one, lengths_in, score_exits

_BUDGETS = (0.3, 0.55, 0.8, 1.0)
_WRONG_BUDGETS = (0.0, -0.1, 0.1, 1.01, np.nan, True)
#: A sum of costs is not exact.
_ROUNDING = 1e-9


def require(condition: Any, problem: str, cure: str) -> None:
    """Raise an AssertionError with a problem and its cure, given without full stops, unless a condition holds."""
    if not condition:
        raise AssertionError(f"{problem}. {cure}.")


def check_fitted_attributes(fits: PolicyFits) -> None:
    """Fitting works on every kind of layout, and sets the attributes of the contract."""
    for name in ("main", "logits", "features", "binary"):
        try:
            fit = fits.on(name)
        except ValueError as error:
            # A policy may need features, if its error names them.
            if name == "logits" and "features" in str(error):
                continue
            raise
        _require_fitted_attributes(fit)


def _require_fitted_attributes(fit: Fit) -> None:
    policy, n_exits = fit.policy, fit.data.X.layout.n_exits
    cure = "Set it in fit_policy, or leave it to fit_thresholds of BudgetedPolicy"
    thresholds: Any = getattr(policy, "thresholds_", None)
    require(np.shape(thresholds) == (n_exits,), f"thresholds_ is {thresholds!r}, not one number per exit", cure)
    require(
        thresholds[-1] == -np.inf,
        f"the last of thresholds_ is {thresholds[-1]}",
        "Make it -inf: all remaining samples stop at the last exit",
    )
    shares: Any = getattr(policy, "exit_distribution_", None)
    require(np.shape(shares) == (n_exits,), f"exit_distribution_ is {shares!r}, not one number per exit", cure)
    require(
        np.min(shares) >= 0 and np.isclose(np.sum(shares), 1),
        f"exit_distribution_ is {shares}, which is not a distribution",
        "It is the share of the fitting samples that stop at each exit: record_distribution sets it",
    )
    cure = "The fit of ExitPolicy sets it: write fit_policy, and leave fit as it is"
    classes: Any = getattr(policy, "classes_", None)
    require(np.array_equal(classes, np.unique(fit.data.y)), f"classes_ are {classes!r}, not those of y", cure)
    layout = getattr(policy, "layout_", None)
    require(
        layout is not None and all(layout.has_logits(k) for k in range(n_exits)),
        f"layout_ is {layout!r}, not a layout in which all exits have logits",
        cure,
    )
    costs: Any = getattr(policy, "costs_", None)
    require(
        np.array_equal(costs, policy.layout_.cost_fractions), f"costs_ are {costs!r}, not layout_.cost_fractions", cure
    )


def check_not_fitted(fits: PolicyFits) -> None:
    """Before ``fit``, methods raise NotFittedError."""
    policy, X = fits.unfitted(), make_data("main").X
    for name in ("predict", "predict_at_exits", "predict_proba", "predict_exit", "exit_scores", "mean_cost"):
        require(
            _raises(NotFittedError, partial(getattr(policy, name), X)),
            f"{name} raises no NotFittedError before fit",
            "Leave it as it is in ExitPolicy, or call sklearn.utils.validation.check_is_fitted first",
        )


def check_exits_follow_scores(fits: PolicyFits) -> None:
    """A sample stops at the first exit whose score reaches the threshold, and gets the prediction of that exit."""
    for name in ("main", "features"):
        policy, X = fits.on(name).policy, fits.on(name).data.X
        exits, rows = policy.predict_exit(X), np.arange(len(X))
        passes = policy.exit_scores(X) >= policy.thresholds_
        cure = "Write score_exit only, and leave predict, predict_exit and exit_scores as they are"
        require(
            np.array_equal(exits, passes.argmax(axis=1)),
            "predict_exit is not the first exit whose exit_scores reach thresholds_",
            cure,
        )
        require(
            np.array_equal(policy.predict(X), policy.predict_at_exits(X)[rows, exits]),
            "predict gives other classes than predict_at_exits at predict_exit",
            cure,
        )
        probabilities = policy.predict_proba(X)
        require(
            probabilities.shape == (len(X), len(policy.classes_)) and np.allclose(probabilities.sum(axis=1), 1),
            "predict_proba gives no probability distribution over classes_",
            cure,
        )


def check_causal(fits: PolicyFits) -> None:
    """Later exits change neither scores nor exits nor predictions of earlier ones."""
    fit = fits.on()
    policy, X = fit.policy, fit.data.X
    scores, exits, predictions = policy.exit_scores(X), policy.predict_exit(X), policy.predict(X)
    cure = "Use exits up to k only: their logits and features, and the notes of score_exit in memory"
    for k in range(X.layout.n_exits - 1):
        changed, left = _with_other_exits_after(X, k), exits <= k
        problem = f"with other logits and features after exit {k}, "
        require(
            _close(policy.exit_scores(changed)[:, : k + 1], scores[:, : k + 1]),
            f"{problem}exit_scores up to exit {k} change",
            cure,
        )
        new_exits = policy.predict_exit(changed)
        require(
            np.array_equal(new_exits[left], exits[left]) and (new_exits[~left] > k).all(),
            f"{problem}samples stop at other exits up to exit {k}",
            cure,
        )
        require(
            np.array_equal(policy.predict(changed)[left], predictions[left]),
            f"{problem}samples that have stopped have other predictions",
            cure,
        )


def check_batches(fits: PolicyFits) -> None:
    """Samples have the same scores, exits and predictions in any batch and any order."""
    fit = fits.on()
    policy, X = fit.policy, fit.data.X
    order = np.random.default_rng(0).permutation(len(X))
    scores, exits, predictions = policy.exit_scores(X), policy.predict_exit(X), policy.predict(X)
    cure = "Score each sample by itself, and compute in fit_policy what depends on many samples"
    for rows in (order, order[:40], *order[:5, None]):
        batch = X[rows]
        problem = f"in a batch of {len(rows)} of the {len(X)} rows, in another order, samples have other"
        require(_close(policy.exit_scores(batch), scores[rows]), f"{problem} exit_scores", cure)
        require(np.array_equal(policy.predict_exit(batch), exits[rows]), f"{problem} exits", cure)
        require(np.array_equal(policy.predict(batch), predictions[rows]), f"{problem} predictions", cure)


def check_budget(fits: PolicyFits) -> None:
    """The mean cost on the fitting data is within the budget, and within one sample's cost of it unless it warns."""
    for name in ("main", "binary", "weighted") if fits.takes_weights else ("main", "binary"):
        fit = fits.on(name)
        if getattr(fit.policy, "budget", None) is not None:
            _require_budget(fit.policy, fit, fit.warned)
        if hasattr(fit.policy, "with_budget"):
            for budget in _BUDGETS:
                policy, n_warnings = count_warnings(partial(fit.policy.with_budget, budget))
                require(
                    policy.budget == budget, f"with_budget({budget}) gives budget={policy.budget}", "Leave it as it is"
                )
                _require_budget(policy, fit, n_warnings > 0)


def _require_budget(policy: Any, fit: Fit, warned: bool) -> None:
    data, budget = fit.data, policy.budget
    weight = np.ones(len(data.y)) if data.sample_weight is None else data.sample_weight
    spent = policy.mean_cost(data.X, sample_weight=weight)
    problem = f"at budget={budget}, the mean cost on the fitting data is {spent:.4f}"
    cure = "Choose thresholds by quota_thresholds or shared_threshold, from the scores of the fitting rows"
    require(spent <= budget + _ROUNDING, problem, cure)
    require(
        warned or spent >= budget - policy.costs_[-1] * weight.max() / weight.sum() - _ROUNDING,
        f"{problem}, more than one sample's cost below the budget, and there is no warning",
        f"{cure}; warn if some of the budget is left on purpose",
    )
    require(
        np.isclose(policy.exit_distribution_ @ policy.costs_, spent),
        f"{problem}, but by exit_distribution_ it is {policy.exit_distribution_ @ policy.costs_:.4f}",
        "Set exit_distribution_ for the new thresholds: apply_budget calls set_thresholds",
    )


def check_meet_budget(fits: PolicyFits) -> None:
    """``meet_budget`` meets the budget on other rows, without labels, and leaves the policy as it was."""
    fit = fits.on()
    if not hasattr(fit.policy, "meet_budget") or fit.policy.budget is None:
        return
    before, rows = (
        joblib.hash(vars(fit.policy)),
        np.sort(np.argsort(fit.policy.predict_exit(fit.data.X))[N_ROWS // 3 :]),
    )
    hard = fit.data.X[rows]  # without the samples that stop first
    for policy in (fit.policy, fit.policy.without_fit_state()):
        adapted, n_warnings = count_warnings(partial(policy.meet_budget, hard))
        _require_budget(adapted, Fit(adapted, replace(fit.data, X=hard, y=fit.data.y[rows]), False), n_warnings > 0)
    require(
        joblib.hash(vars(fit.policy)) == before,
        "meet_budget changes the policy that it is called on",
        "In choose_thresholds, assign new arrays to attributes rather than change arrays in place",
    )


def check_wrong_budgets(fits: PolicyFits) -> None:
    """``fit`` and ``with_budget`` raise a ValueError if the budget cannot be met."""
    if "budget" not in fits.policy.get_params():
        return
    data = make_data("main")
    for budget in _WRONG_BUDGETS:
        calls = {"fit": partial(fits.unfitted().set_params(budget=budget).fit, data.X, data.y)}
        if hasattr(fits.policy, "with_budget"):
            calls["with_budget"] = partial(fits.on().policy.with_budget, budget)
        for name, call in calls.items():
            require(
                _raises(ValueError, call, "budget"),
                f"{name} accepts budget={budget}; the first exit costs {data.X.layout.cost_fractions[0]}",
                "Raise a ValueError that names budget, as fit and with_budget of the base class do",
            )


def _raises(kind: type[Exception], call: Callable[[], Any], word: str = "") -> bool:
    """Whether a call raises an error whose message contains a word."""
    try:
        call()
    except kind as error:
        return word in str(error)
    return False


def check_with_budget_copies(fits: PolicyFits) -> None:
    """``with_budget`` leaves the policy as it was."""
    policy = fits.on().policy
    if not hasattr(policy, "with_budget"):
        return
    before = joblib.hash(vars(policy))
    count_warnings(partial(policy.with_budget, 0.9))
    require(
        joblib.hash(vars(policy)) == before,
        "with_budget changes the policy that it is called on",
        "In apply_budget and choose_thresholds, assign new arrays to attributes rather than change arrays in place",
    )


def check_without_fit_state(fits: PolicyFits) -> None:
    """``without_fit_state`` holds no data of single rows, and gives the same predictions."""
    fit, large = fits.on(), fits.on("large")
    light = fit.policy.without_fit_state()
    cure = "Keep the data of rows that with_budget needs in fit_state_ only, which without_fit_state drops"
    require(N_ROWS not in lengths_in(light), f"without_fit_state() holds an array or list of {N_ROWS} rows", cure)
    n_more = len(large.data.y) - len(fit.data.y)
    grown = len(pickle.dumps(large.policy.without_fit_state())) - len(pickle.dumps(light))
    require(grown < n_more, f"fitted on {n_more} more rows, without_fit_state() pickles to {grown} more bytes", cure)
    _require_same_predictions(light, fit, "without_fit_state()", "Do not use fit_state_ in score_exit")


def check_parameters(fits: PolicyFits) -> None:
    """Fitting does not change the parameters, and ``clone`` copies them."""
    unfitted, fitted = fits.unfitted(), fits.on().policy
    require(
        joblib.hash(fitted.get_params()) == joblib.hash(unfitted.get_params()),
        "fit changes parameters",
        "Keep results of fit in attributes that end with an underscore; clone estimators that are parameters",
    )


def check_fitting_again(fits: PolicyFits) -> None:
    """An earlier fit, here on other data, does not change the result."""
    fit = fits.on()
    again = copy.deepcopy(fits.on("binary").policy)
    fit_quietly(again, fit.data)
    cure = "In fit_policy, set each attribute again, and draw from check_random_state(self.random_state)"
    _require_same_fit(again, fit, "fitted before, on other data", cure)


def check_scaled_weights(fits: PolicyFits) -> None:
    """Multiplying all weights by a constant changes nothing, and equal weights have the effect of none."""
    cure = "Leave fit as it is: it makes the mean of the weights 1 before fit_policy sees them"
    if fits.takes_weights:
        _require_same_fit(fits.on("heavy").policy, fits.on("weighted"), "with all weights times 7e6", cure)
        _require_same_fit(fits.on("normalised").policy, fits.on("weighted"), "with weights that sum to 1", cure)
        _require_same_fit(fits.on("equal").policy, fits.on("main"), "with a weight of 0.1 for each row", cure)


def check_zero_weights(fits: PolicyFits) -> None:
    """Rows of zero weight have no effect."""
    cure = "The fit of ExitPolicy drops these rows: write fit_policy, and leave fit as it is"
    if fits.takes_weights:
        _require_same_fit(fits.on("dropped").policy, fits.on("weighted"), "without the rows of zero weight", cure)


def check_memory(fits: PolicyFits) -> None:
    """Each note in memory has one row per sample."""
    fit = fits.on()
    for k, _, memory in score_exits(fit.policy, fit.data.X):
        for name, noted in memory.items():
            require(
                np.ndim(noted) > 0 and len(noted) == len(fit.data.y),
                f"after exit {k}, memory[{name!r}] has the shape {np.shape(noted)} for {len(fit.data.y)} samples",
                "Note arrays with one row per sample: rows are dropped when samples stop",
            )


def check_what_scores_need(fits: PolicyFits) -> None:
    """Scores depend only on the exits and features that ``earlier_exits`` and ``uses_features`` declare."""
    fit = fits.on()
    expected = [scores for _, scores, _ in score_exits(fit.policy, fit.data.X)]
    for k, scores in enumerate(expected):
        needed, uses_features = fit.policy.earlier_exits(k), fit.policy.uses_features(k)
        problem = f"with earlier_exits({k}) = {needed} and uses_features({k}) = {uses_features}, exit {k} "
        cure = "Let them name every earlier exit whose notes score_exit reads, and every exit whose features it reads"
        try:
            found = declared_scores(fit.policy, fit.data.X, k)
        except Exception as error:
            raise AssertionError(f"{problem}cannot be scored without the others: {error!r}. {cure}.") from error
        require(_close(found, scores), f"{problem}has other scores without the others", cure)


def check_one_exit_at_a_time(fits: PolicyFits) -> None:
    """``decide``, and so the live network, agrees exit by exit with ``predict_exit``."""
    for name in ("main", "features"):
        policy, X = fits.on(name).policy, fits.on(name).data.X
        for batch in (X, X[:1]):
            require(
                np.array_equal(exits_one_by_one(policy, batch, np.asarray), policy.predict_exit(batch)),
                f"by decide, as in a live network, {len(batch)} samples stop at other exits than by predict_exit",
                "Write score_exit only, and leave decide and predict_exit as they are",
            )


def check_torch_tensors(fits: PolicyFits) -> None:
    """Torch tensors get the scores and exits of NumPy arrays."""
    if importlib.util.find_spec("torch") is None:
        raise SkipTest("torch is not installed, so that its tensors are not scored: pip install 'skexit[torch]'")
    import torch

    fit = fits.on()
    policy, X = fit.policy, fit.data.X
    cure = (
        "Write score_exit with functions of array_api_compat.array_namespace(logits), and convert fitted arrays to "
        "the device and dtype of logits"
    )
    numpy_scores = [scores for _, scores, _ in score_exits(policy, X)]
    try:
        torch_scores = [scores for _, scores, _ in score_exits(policy, X, torch.from_numpy)]
        exits = exits_one_by_one(policy, X, torch.from_numpy)
    except Exception as error:
        raise AssertionError(f"score_exit fails on torch tensors: {error!r}. {cure}.") from error
    for k, (scores, expected) in enumerate(zip(torch_scores, numpy_scores, strict=True)):
        require(isinstance(scores, torch.Tensor), f"exit {k} gives a {type(scores).__name__} for tensors", cure)
        require(_close(scores.numpy(), expected), f"exit {k} has other scores on torch tensors", cure)
    require(np.array_equal(exits, policy.predict_exit(X)), "samples stop at other exits on torch tensors", cure)


def check_saving(fits: PolicyFits) -> None:
    """A policy that was saved and loaded gives the same predictions."""
    fit = fits.on()
    cure = "Keep what score_exit needs in attributes, as arrays, numbers and estimators"
    for name, policy in (("the policy", fit.policy), ("without_fit_state()", fit.policy.without_fit_state())):
        _require_same_predictions(pickle.loads(pickle.dumps(policy)), fit, f"{name} after pickle", cure)
    if f"{type(fit.policy).__module__}.{type(fit.policy).__qualname__}" not in TRUSTED_TYPES:
        return
    if importlib.util.find_spec("skops") is not None:
        skops_io = importlib.import_module("skops.io")
        loaded = skops_io.loads(skops_io.dumps(fit.policy), trusted=TRUSTED_TYPES)
        _require_same_predictions(loaded, fit, "the policy after skops", cure)
    try:
        text = policy_to_json(fit.policy)
    except ValueError:
        return  # the policy holds an estimator of another package
    _require_same_predictions(policy_from_json(text), fit, "the policy after JSON", cure)


#: All checks, in the order in which they run.
CHECKS: tuple[Callable[[PolicyFits], None], ...] = (
    check_fitted_attributes,
    check_not_fitted,
    check_memory,
    check_batches,
    check_causal,
    check_exits_follow_scores,
    check_what_scores_need,
    check_one_exit_at_a_time,
    check_torch_tensors,
    check_budget,
    check_wrong_budgets,
    check_with_budget_copies,
    check_meet_budget,
    check_without_fit_state,
    check_parameters,
    check_fitting_again,
    check_scaled_weights,
    check_zero_weights,
    check_saving,
)


def _with_other_exits_after(X: ExitArray, k: int) -> ExitArray:
    """X with other logits and features of the exits after `k`."""
    values = np.array(X)
    later = slice(X.layout.logit_columns(k + 1).start, None)
    values[:, later] = 10 * np.random.default_rng(0).normal(size=values[:, later].shape)
    return ExitArray.from_array(values, X.layout)


def _close(values: Any, expected: NDArray[np.float64]) -> bool:
    """Whether scores differ by no more than rounding."""
    return np.shape(values) == expected.shape and np.allclose(values, expected, rtol=1e-6, atol=1e-9)


def _require_same_fit(policy: Any, fit: Fit, how: str, cure: str) -> None:
    require(_close(policy.thresholds_, fit.policy.thresholds_), f"{how}, the policy has other thresholds_", cure)
    _require_same_predictions(policy, fit, f"{how}, the policy", cure)


def _require_same_predictions(policy: Any, fit: Fit, what: str, cure: str) -> None:
    X = fit.data.X
    require(_close(policy.exit_scores(X), fit.policy.exit_scores(X)), f"{what} has other exit_scores", cure)
    require(np.array_equal(policy.predict_exit(X), fit.policy.predict_exit(X)), f"{what} stops at other exits", cure)
    require(_close(policy.predict_proba(X), fit.policy.predict_proba(X)), f"{what} has other probabilities", cure)
