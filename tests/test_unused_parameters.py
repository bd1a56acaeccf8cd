"""Estimators warn of parameters that were set and have no effect because of another parameter."""

import inspect
import re
import warnings

import numpy as np
import pytest
from rows import make_rows
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV

import skexit
from skexit import (
    ConvExitHeads,
    EENetPolicy,
    EMExitAssigner,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    ThresholdPolicy,
    stack_exits,
)
from skexit.exceptions import UnusedParameterWarning

X, y = make_rows(60)
RNG = np.random.default_rng(0)
FEATURES = stack_exits(features=[RNG.normal(size=(60, 4)) + y[:, None] for _ in range(2)])
TREES = HistGradientBoostingRegressor(max_iter=1)
FROZEN = FrozenEstimator(ThresholdPolicy(budget=1.0).fit(X, y))
QUICK = {"max_epochs": 1}

#: The estimator, and another value for each parameter that has no effect then.
UNUSED = [
    (EMExitAssigner(budget=0.8, **QUICK), {"lam": 2.0, "threshold": 0.7}),
    (
        EMExitAssigner(confidence_weight=np.inf),
        {"router_hidden_layer_sizes": (3,), "router_input": "features", "learning_rate": 0.1, "l2": 1.0}
        | {"max_epochs": 2, "batch_size": 7},
    ),
    (EMExitAssigner(budget=0.8, confidence_weight=1.0, **QUICK), {"cv": 2}),
    (EMExitAssigner(**QUICK), {"cv": 2}),
    (JEIGatedEnsemble(budget=0.8, joint=False), {"lam": 2.0}),
    (
        JEIGatedEnsemble(joint=False),
        {"gradient": "full", "learning_rate": 0.1, "warm_up_epochs": 1, "max_epochs": 1, "early_stopping": False}
        | {"patience": 2, "batch_size": 7, "bilevel_switch": 2, "cv": 2},
    ),
    (JEIGatedEnsemble(early_stopping=False, warm_up_epochs=1, **QUICK), {"patience": 2}),
    (EENetPolicy(0.8, learn_scores=False, **QUICK), {"confidence_weight": 2.0}),
    (
        EENetPolicy(0.8, learn_scores=False, learn_distribution=False),
        {"hidden_ratio": 1.0, "budget_loss_weight": 1.0, "assignment_loss_weight": 1.0, "init": "random"}
        | {"learning_rate": 0.1, "l2": 1.0, "max_epochs": 2, "batch_size": 7, "patience": 3},
    ),
    (OptimalStoppingPolicy(0.8, estimator=TREES), {"l2": 1.0}),
    (RiskControlledPolicy(FROZEN), {"calibration_size": 0.3}),
    (ExitHeads(distillation=0), {"temperature": 2.0, "dropout": 0.1}),
    (ExitHeads(solver="lbfgs"), {"learning_rate": 0.1, "max_epochs": 2, "batch_size": 7}),
    (ConvExitHeads(distillation=0, **QUICK), {"temperature": 2.0}),
]
SETTINGS = [(estimator, name, value) for estimator, others in UNUSED for name, value in others.items()]


def rows_for(estimator):
    return (FEATURES if isinstance(estimator, ExitHeads | ConvExitHeads) else X), y


def state_of(estimator):
    """Numbers that predictions depend on."""
    inputs, _ = rows_for(estimator)
    return np.asarray(estimator.transform(inputs) if hasattr(estimator, "transform") else estimator.exit_scores(inputs))


def fit_again(estimator, **changes):
    fresh = clone(estimator).set_params(**changes)
    if "random_state" in fresh.get_params():
        fresh.set_params(random_state=0)
    return fresh.fit(*rows_for(estimator))


@pytest.mark.parametrize(("estimator", "name", "value"), SETTINGS)
def test_a_warning_names_both_and_the_parameter_has_no_effect(estimator, name, value):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        changed = fit_again(estimator, **{name: value})
    found = [entry for entry in caught if entry.category is UnusedParameterWarning]
    assert len(found) == 1
    assert found[0].filename == __file__
    begin = re.escape(f"{name}={value!r} of {type(estimator).__name__} has no effect with ")
    assert re.match(rf"{begin}\w+=.*\. ", str(found[0].message))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UnusedParameterWarning)
        expected = fit_again(estimator)
    np.testing.assert_array_equal(state_of(changed), state_of(expected))
    if hasattr(expected, "thresholds_"):
        np.testing.assert_array_equal(changed.thresholds_, expected.thresholds_)


@pytest.mark.filterwarnings("ignore")
def test_the_text():
    message = (
        "lam=2.0, threshold=0.7 of EMExitAssigner have no effect with budget=0.8. fit finds the price and the thresholds "
        "that meet the budget. Keep the defaults, or set budget=None."
    )
    with pytest.warns(UnusedParameterWarning, match=f"^{re.escape(message)}$"):
        EMExitAssigner(2.0, threshold=0.7, budget=0.8, **QUICK).fit(X, y)


@pytest.mark.filterwarnings("ignore")
def test_a_search_over_prices_and_budgets():
    search = GridSearchCV(JEIGatedEnsemble(joint=False), {"lam": [0.1, 1.0], "budget": [None, 0.8]}, cv=2)
    with pytest.warns(UnusedParameterWarning, match=r"^lam=0\.1 of JEIGatedEnsemble has no effect with budget=0\.8\."):
        search.fit(X, y)


def test_what_has_an_effect_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UnusedParameterWarning)
        EMExitAssigner(2.0, threshold=0.7, **QUICK).fit(X, y)
        JEIGatedEnsemble(2.0, joint=False).fit(X, y)
        ExitHeads((8,), dropout=0.1, distillation=0.5, temperature=2.0, solver="adam", **QUICK).fit(FEATURES, y)
        ExitHeads(max_epochs=3).fit(FEATURES, y)  # which solver runs depends on the rows


def test_rules_are_of_parameters_that_exist():
    for name in skexit.__all__:
        estimator = getattr(skexit, name)
        for rule in getattr(estimator, "_unused_parameters", ()):
            assert {*rule.parameters, rule.other} <= {*inspect.signature(estimator).parameters}
            assert rule.cure.endswith(".")
