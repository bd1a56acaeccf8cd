"""The cure that an error or a warning names works in the very case that raised it.

Each entry of a table says how to raise the message, what the message must say, and the cure as code.
"""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from instances import make_exits
from scipy.special import softmax
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit, TimeSeriesSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skexit import (
    EMExitAssigner,
    ExitArray,
    ExitHeads,
    ExitLayout,
    ExitTransformer,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    make_exit_pipeline,
    oracle,
    stack_exits,
)
from skexit.exceptions import ExpensiveHeadsWarning, LayoutLostWarning
from skexit.metrics import AccuracyCostCurve, accuracy_cost_curve, bootstrap_interval, exit_auroc
from skexit.model_selection import accuracy_and_cost, best_within, budget_curve, neg_mean_cost_scorer
from skexit.runtime import policy_from_json, policy_to_json
from skexit.uncertainty import fit_temperature

N, K, C = 120, 3, 4
X, y = make_exits(n_samples=N, n_exits=K, n_classes=C, random_state=0)
L = np.stack([X.logits(k) for k in range(K)], axis=1)
F = [X.features(k) for k in range(K)]
FEATURES = stack_exits(features=F)
LOGITS = stack_exits(L)
NAMES = np.array(["ant", "bee", "cat", "eel"])
FITTED = ThresholdPolicy().fit(LOGITS, y)
GROUPS = np.arange(N) % 3
FRAME = LOGITS.to_frame()


def with_nan(values, where=(5, 0, 2)):
    values = values.copy()
    values[where] = np.nan
    return values


def finite(values):
    """Rows that the message tells to keep."""
    return np.isfinite(values).reshape(len(values), -1).all(axis=1)


def masked(values, rows=slice(None)):
    values = values.copy()
    values[rows, :, 0] = -np.inf
    return values


def costs(of_exits, **others):
    return LOGITS.with_layout(ExitLayout([C] * K, costs=of_exits, **others))


def without_attrs(frame):
    frame = frame.copy()
    frame.attrs.clear()
    return frame


def dropped(frame):
    """A frame from which a feature is gone, while its attrs still know of it."""
    return FEATURES.to_frame().iloc[:, :-1]


def cured_attrs(frame):
    del frame.attrs["skexit_layout"]
    return ThresholdPolicy(layout=ExitLayout([0] * K, [4, 4, 3])).fit(frame, y)


def fit(X, y=y, **parameters):
    return ThresholdPolicy(**parameters).fit(X, y)


def heads(**parameters):
    return ExitHeads(random_state=0, **parameters)


def search(scoring=None, refit=True, cv=2, budgets=(0.5, 0.7)):
    return GridSearchCV(ThresholdPolicy(), {"budget": list(budgets)}, scoring=scoring, refit=refit, cv=cv).fit(
        LOGITS, y
    )


CURVE = AccuracyCostCurve([1 / 3, 2 / 3], [0.5, 2 / 3])
ONE_SPLIT = ShuffleSplit(1, test_size=0.5, random_state=0)
BOUGHT = costs([3.0, 4, 5], head_costs=[2.9, 2.9, 2.9], network_cost=1.0)
MEAN_COST = accuracy_and_cost()
SHORT = np.where(y == 3, 0, y)

#: What to do, what the message says, and the cure.
ERRORS = {
    # budgets
    "budget": (
        lambda: fit(L, budget=0.3333),
        r"budget=0.3333 is below .* 0.3334 .*Raise it to 0.3334 or more",
        lambda: fit(L, budget=0.3334),
    ),
    "budget of a pipeline": (
        lambda: make_pipeline(heads(), ThresholdPolicy(budget=0.2)).fit(FEATURES, y),
        "Raise it to 0.3334",
        lambda: make_pipeline(heads(), ThresholdPolicy(budget=0.3334)).fit(FEATURES, y),
    ),
    "with_budget": (lambda: FITTED.with_budget(0.1), "to 0.3334", lambda: FITTED.with_budget(0.3334)),
    "with_budget above 1": (lambda: FITTED.with_budget(50), r"in \(0, 1\]", lambda: FITTED.with_budget(0.5)),
    "budget with dear heads": (
        lambda: fit(BOUGHT),
        "2.9 of it for heads. Use heads with fewer features or hidden units, or add an earlier exit",
        lambda: fit(costs([0.4, 0.7, 1.1], head_costs=[0.1] * 3, network_cost=1.0)),
    ),
    "budget with a dear exit": (
        lambda: fit(costs([3.0, 4, 5], network_cost=1.0)),
        r"network's\. Add an earlier exit\.",
        lambda: fit(costs([0.5, 4, 5], network_cost=1.0)),
    ),
    "budgets of risk control": (
        lambda: RiskControlledPolicy(budgets=[0.2, 0.5], alpha=0.5, random_state=0).fit(LOGITS, y),
        "budgets=0.2 .* to 0.3334",
        lambda: RiskControlledPolicy(budgets=[0.3334, 0.5], alpha=0.5, random_state=0).fit(LOGITS, y),
    ),
    "no budgets of risk control": (
        lambda: RiskControlledPolicy(budgets=[], alpha=0.5, random_state=0).fit(LOGITS, y),
        "or None",
        lambda: RiskControlledPolicy(budgets=None, alpha=0.5, random_state=0).fit(LOGITS, y),
    ),
    "shipped without fit state": (
        lambda: FITTED.without_fit_state().with_budget(0.6),
        "Call with_budget on the policy that was fitted, and ship the copy",
        lambda: FITTED.with_budget(0.6).without_fit_state().predict(LOGITS),
    ),
    # layouts
    "layout of too many columns": (
        lambda: fit(L, layout=X.layout),
        "24 columns but X has 12. Leave layout=None",
        lambda: fit(L),
    ),
    "layout of a frame": (lambda: fit(FRAME, layout=X.layout), "Leave layout=None", lambda: fit(FRAME)),
    "layout of a plain array": (
        lambda: fit(np.asarray(LOGITS), layout=X.layout),
        "Pass the layout of the ExitArray",
        lambda: fit(np.asarray(LOGITS), layout=LOGITS.layout),
    ),
    "other division": (
        lambda: fit(LOGITS, layout=FEATURES.layout),
        "X, which knows its exits.*Leave layout=None",
        lambda: fit(LOGITS),
    ),
    "number of exits in a pipeline": (
        lambda: make_pipeline(heads(layout=K), ThresholdPolicy(layout=K)).fit(np.asarray(FEATURES), y),
        "Leave layout=None",
        lambda: make_pipeline(heads(layout=K), ThresholdPolicy()).fit(np.asarray(FEATURES), y),
    ),
    "uneven split": (
        lambda: fit(np.asarray(X), layout=7),
        r"24 columns cannot be split evenly into 7 exits.*layout=ExitLayout\(n_logits, n_features\)",
        lambda: fit(np.asarray(X), layout=ExitLayout([C] * K, [4] * K)),
    ),
    "no exits": (lambda: ExitLayout.even(10, 0), "n_exits=0 must be at least 1", lambda: ExitLayout.even(10, 1)),
    "classes of layout and X": (
        lambda: fit(stack_exits(L, classes=NAMES), NAMES[y], layout=ExitLayout([C] * K, classes=NAMES[::-1])),
        "Leave layout=None or its classes=None",
        lambda: fit(stack_exits(L, classes=NAMES), NAMES[y], layout=ExitLayout([C] * K)),
    ),
    "classes of layout and a frame": (
        lambda: fit(
            stack_exits(L, classes=NAMES).to_frame(), NAMES[y], layout=ExitLayout([C] * K, classes=NAMES[::-1])
        ),
        r"ExitArray.from_frame\(X, layout\)",
        lambda: fit(
            ExitArray.from_frame(
                stack_exits(L, classes=NAMES).to_frame(), layout := ExitLayout([C] * K, classes=NAMES[::-1])
            ),
            NAMES[y],
            layout=layout,
        ),
    ),
    "column of another name": (
        lambda: fit(FRAME.assign(label=y)),
        "column 'label' .* Drop it",
        lambda: fit(FRAME.assign(label=y).drop(columns="label")),
    ),
    "columns are gone": (
        lambda: fit(FEATURES.to_frame().drop(columns="exit0__feature0")),
        r"'exit0__feature0' is missing. Add it. To fit on fewer columns, pass layout=ExitLayout\(n_logits, n_features\)",
        lambda: fit(FEATURES.to_frame().drop(columns="exit0__feature0"), layout=ExitLayout([0] * K, [3, 4, 4])).predict(
            FEATURES.to_frame().drop(columns="exit0__feature0")
        ),
    ),
    "columns out of order": (
        lambda: fit(FRAME[FRAME.columns[::-1]]),
        "out of order. Order them by exit",
        lambda: fit(FRAME[FRAME.columns[::-1]][LOGITS.layout.column_names()]),
    ),
    "attrs of other columns": (
        lambda: fit(dropped(FRAME)),
        r"del X.attrs\['skexit_layout'\]",
        lambda: cured_attrs(dropped(FRAME)),
    ),
    "predict on other exits": (
        lambda: FITTED.predict(FEATURES),
        "Pass logits and features of the same exits as in fit",
        lambda: FITTED.predict(LOGITS),
    ),
    "no row for each sample": (
        lambda: ExitArray.from_array(np.zeros(6)),
        r"X.reshape\(1, -1\)",
        lambda: ExitArray.from_array(np.zeros(6).reshape(1, -1), layout=2),
    ),
    "rows by a matrix": (lambda: X[np.eye(2, dtype=int)], "numpy.ravel", lambda: X[np.ravel(np.eye(2, dtype=int))]),
    "three indices": (lambda: X[0, 0, 0], "give rows, or rows and columns", lambda: X[0, 0]),
    # stacking
    "logits in two dimensions": (
        lambda: stack_exits(L[:, 0]),
        r"a list of arrays of shape \(n_samples, n_classes\)",
        lambda: stack_exits([L[:, 0]]),
    ),
    "tokens": (
        lambda: stack_exits(features=[np.ones((5, 2, 3))]),
        r"reshape\(len\(array\), -1\)",
        lambda: stack_exits(features=[(array := np.ones((5, 2, 3))).reshape(len(array), -1)]),
    ),
    "one feature": (
        lambda: stack_exits(features=[np.ones(5)]),
        r"reshape\(-1, 1\)",
        lambda: stack_exits(features=[np.ones(5).reshape(-1, 1)]),
    ),
    "strings": (
        lambda: stack_exits([np.array([["1", "2"]])]),
        r"astype\(float\)",
        lambda: stack_exits([np.array([["1", "2"]]).astype(float)]),
    ),
    "nothing": (
        lambda: stack_exits(),
        "logits, probabilities or features",
        lambda: stack_exits(probabilities=softmax(L, 2)),
    ),
    "numbers of rows": (
        lambda: stack_exits([L[:, 0], L[:9, 1]]),
        "same rows",
        lambda: stack_exits([L[:9, 0], L[:9, 1]]),
    ),
    "numbers of exits": (
        lambda: stack_exits(L, F[:2]),
        "lists, with None where an exit has none",
        lambda: stack_exits(L, [*F[:2], None]),
    ),
    "logits and probabilities": (
        lambda: stack_exits(list(np.moveaxis(L, 1, 0)), probabilities=[softmax(L[:, 0], 1), None, None]),
        "pass one of them, and None for it in the other list",
        lambda: stack_exits([None, L[:, 1], L[:, 2]], probabilities=[softmax(L[:, 0], 1), None, None]),
    ),
    "percentages": (
        lambda: stack_exits(probabilities=100 * softmax(L, 2)),
        "Divide percentages by 100",
        lambda: stack_exits(probabilities=100 * softmax(L, 2) / 100),
    ),
    "percentage of one class": (
        lambda: stack_exits(probabilities=np.full((5, 2, 1), 60.0)),
        r"above 1: \[60\.\].*by 100",
        lambda: stack_exits(probabilities=np.full((5, 2, 1), 60.0) / 100),
    ),
    "counts": (
        lambda: stack_exits(probabilities=np.full((5, 2, 3), 7)),
        "counts by their sum",
        lambda: stack_exits(probabilities=np.full((5, 2, 3), 7) / 21),
    ),
    "logits as probabilities": (
        lambda: stack_exits(probabilities=L),
        r"stack_exits\(logits=...\)",
        lambda: stack_exits(logits=L),
    ),
    "probabilities with NaN": (
        lambda: stack_exits(probabilities=with_nan(softmax(L, 2))),
        "row 5 has NaN.*Remove such rows",
        lambda: stack_exits(probabilities=softmax(L, 2)[finite(with_nan(L))]),
    ),
    "other numbers of logits": (
        lambda: stack_exits([L[:, 0, :3], L[:, 1]]),
        "a column of -inf",
        lambda: fit(stack_exits([np.column_stack([L[:, 0, :3], np.full(N, -np.inf)]), L[:, 1]])),
    ),
    "one logit": (
        lambda: ExitLayout([1, 1]),
        r"stack_exits\(z\[:, :, None\]\)",
        lambda: fit(stack_exits(L[:, :, 0][:, :, None]), y % 2),
    ),
    "costs of stages": (
        lambda: stack_exits(L, costs=[3, 2, 4]),
        r"numpy.cumsum\(costs\)",
        lambda: stack_exits(L, costs=np.cumsum([3, 2, 4])),
    ),
    "a cost of 0": (
        lambda: stack_exits(L, costs=[0, 1, 2]),
        "Give each exit a cost above 0",
        lambda: stack_exits(L, costs=[0.1, 1, 2]),
    ),
    "costs of network and heads": (
        lambda: ExitLayout([C] * 2, costs=[1, 2], head_costs=[1, 1]),
        "costs of network and heads together",
        lambda: ExitLayout([C] * 2, costs=[2, 3], head_costs=[1, 1]),
    ),
    "a class twice": (
        lambda: stack_exits(L, classes=["a", "a", "b", "c"]),
        "'a' more than once",
        lambda: stack_exits(L, classes=["a", "d", "b", "c"]),
    ),
    "classes and logits": (
        lambda: stack_exits(L, classes=NAMES[:2]),
        "one label for each logit",
        lambda: stack_exits(L, classes=NAMES),
    ),
    # values
    "NaN in logits": (
        lambda: fit(with_nan(L)),
        r"first in row 5 .*Leave out such rows, where numpy.isfinite\(X\) is False",
        lambda: fit(with_nan(L)[rows := finite(with_nan(L))], y[rows]),
    ),
    "NaN in an ExitArray with masked classes": (
        lambda: fit(stack_exits(with_nan(masked(L)))),
        "Leave out such rows",
        lambda: fit((exits := stack_exits(with_nan(masked(L))))[rows := finite(np.asarray(exits))], y[rows]),
    ),
    "NaN in a frame": (
        lambda: fit(FRAME.replace(FRAME.iloc[3, 0], np.nan)),
        "Leave out such rows",
        lambda: fit(
            (frame := FRAME.replace(FRAME.iloc[3, 0], np.nan))[rows := np.isfinite(frame).all(axis=1)], y[rows]
        ),
    ),
    "a row with all classes masked": (
        lambda: fit(stack_exits(np.where(np.arange(N)[:, None, None] == 7, -np.inf, L))),
        "first in row 7 .*Leave out such rows",
        lambda: fit(LOGITS[np.arange(N) != 7], y[np.arange(N) != 7]),
    ),
    "masked classes without stack_exits": (
        lambda: fit(masked(L).reshape(N, -1), layout=LOGITS.layout),
        r"logits as stack_exits\(logits=...\)",
        lambda: fit(stack_exits(logits=masked(L)), layout=LOGITS.layout),
    ),
    "NaN in a tensor's features": (
        lambda: fit(ExitArray.from_array(with_nan(np.asarray(FEATURES), (3, 0)), FEATURES.layout)),
        "features of exit 0 .*Leave out such rows",
        lambda: fit(FEATURES[np.arange(N) != 3], y[np.arange(N) != 3]),
    ),
    # labels
    "labels from 1": (
        lambda: fit(L, y + 1),
        r"stack_exits\(..., classes=\[...\]\)",
        lambda: fit(stack_exits(L, classes=[1, 2, 3, 4]), y + 1),
    ),
    "labels from 1 of an ExitArray": (
        lambda: fit(LOGITS, y + 1),
        r"X.with_layout\(X.layout.replace\(classes=\[...\]\)\)",
        lambda: fit(LOGITS.with_layout(LOGITS.layout.replace(classes=[1, 2, 3, 4])), y + 1),
    ),
    "labels of two signs": (
        lambda: fit(L[:, :, :2], np.sign(y - 1.5).astype(int)),
        "unclear which logit is which class",
        lambda: fit(stack_exits(L[:, :, :2], classes=[-1, 1]), np.sign(y - 1.5).astype(int)),
    ),
    "more classes than logits": (
        lambda: fit(L[:, :, :3], y),
        "leave out the rows of others",
        lambda: fit(L[:, :, :3][y < 3], y[y < 3]),
    ),
    "a class that the layout lacks": (
        lambda: fit(stack_exits(L, classes=NAMES), np.array(["ant", "bee", "cat", "emu"])[y]),
        "'emu'.*Correct y, leave out such rows, or correct the classes of the layout",
        lambda: fit(stack_exits(L, classes=["ant", "bee", "cat", "emu"]), np.array(["ant", "bee", "cat", "emu"])[y]),
    ),
    "names that another estimator has numbered": (
        lambda: fit(stack_exits(L, classes=sorted(NAMES)), y),
        "number the sorted classes themselves. For these, order the logits by the sorted classes, and pass X.with_lay",
        lambda: fit(stack_exits(L), y),
    ),
    "a class that partial_fit lacks": (
        lambda: heads().partial_fit(FEATURES, SHORT, classes=range(3)).partial_fit(FEATURES, y),
        "Pass all classes in the first call to partial_fit",
        lambda: heads().partial_fit(FEATURES, SHORT, classes=range(4)).partial_fit(FEATURES, y),
    ),
    "other classes in partial_fit": (
        lambda: heads().partial_fit(FEATURES, y).partial_fit(FEATURES, y, classes=range(5)),
        "Omit classes after the first call",
        lambda: heads().partial_fit(FEATURES, y).partial_fit(FEATURES, y),
    ),
    "a class that calibrate lacks": (
        lambda: fit(LOGITS).calibrate(LOGITS, y + 1),
        "Remove such rows, or fit the policy with all classes",
        lambda: fit(LOGITS).calibrate(LOGITS[y < 3], y[y < 3]),
    ),
    "other classes at predict": (
        lambda: FITTED.predict(stack_exits(L, classes=NAMES)),
        "or fit it again",
        lambda: fit(stack_exits(L, classes=NAMES), NAMES[y]).predict(stack_exits(L, classes=NAMES)),
    ),
    "continuous target": (
        lambda: fit(L, y + 0.5 * np.random.default_rng(0).random(N)),
        "numpy.digitize",
        lambda: fit(L, np.digitize(y + 0.5, [1, 2, 3])),
    ),
    "one class": (
        lambda: fit(FEATURES, np.zeros(N, dtype=int)),
        "pass rows of two classes or more",
        lambda: fit(FEATURES, y),
    ),
    "no weight": (
        lambda: ThresholdPolicy().fit(LOGITS, y, sample_weight=np.zeros(N)),
        r"sample_weight is zero|Sample weights must contain",
        lambda: ThresholdPolicy().fit(LOGITS, y),
    ),
    # folds and groups
    "folds that overlap": (
        lambda: heads(cv=ShuffleSplit(3)).fit_transform(FEATURES, y),
        r"to an integer, or to KFold\(\)",
        lambda: heads(cv=KFold()).fit_transform(FEATURES, y),
    ),
    "folds that leave rows out": (
        lambda: OptimalStoppingPolicy(cv=TimeSeriesSplit(3)).fit(LOGITS, y),
        "to an integer",
        lambda: OptimalStoppingPolicy(cv=3).fit(LOGITS, y),
    ),
    "no folds": (
        lambda: heads(cv=[]).fit_transform(FEATURES, y),
        r"cv=\[\]",
        lambda: heads(cv=GroupKFold(3)).fit_transform(FEATURES, y, groups=GROUPS),
    ),
    "folds without groups": (
        lambda: heads(cv=GroupKFold(3)).fit_transform(FEATURES, y),
        r"fit\(X, y, groups=...\)",
        lambda: heads(cv=GroupKFold(3)).fit_transform(FEATURES, y, groups=GROUPS),
    ),
    "folds that divide groups": (
        lambda: heads(cv=KFold(3)).fit_transform(FEATURES, y, groups=GROUPS),
        r"to an integer or to GroupKFold\(\)",
        lambda: heads(cv=3).fit_transform(FEATURES, y, groups=GROUPS),
    ),
    "more folds than groups": (
        lambda: ThresholdPolicy().fit(FEATURES, y, groups=GROUPS),
        r"by heads=ExitHeads\(cv=3\)",
        lambda: ThresholdPolicy(heads=ExitHeads(cv=3)).fit(FEATURES, y, groups=GROUPS),
    ),
    "one group": (
        lambda: heads().fit_transform(FEATURES, y, groups=np.zeros(N)),
        "or leave out groups",
        lambda: heads().fit_transform(FEATURES, y),
    ),
    "one group under risk control": (
        lambda: RiskControlledPolicy(alpha=0.9).fit(LOGITS, y, groups=np.zeros(N)),
        r"policy=FrozenEstimator\(policy\)",
        lambda: RiskControlledPolicy(FrozenEstimator(FITTED), alpha=0.9).fit(LOGITS, y, groups=np.zeros(N)),
    ),
    "no group for a row": (
        lambda: heads().fit_transform(FEATURES, y, groups=[None, *range(1, N)]),
        "the first of which is row 0. Give each row a group",
        lambda: heads().fit_transform(FEATURES, y, groups=["alone", *range(1, N)]),
    ),
    # heads and policies
    "no logits": (
        lambda: oracle(FEATURES, y),
        r"ExitHeads\(\).fit_transform\(X, y\)",
        lambda: oracle(ExitHeads().fit_transform(FEATURES, y), y),
    ),
    "lbfgs with hidden units": (
        lambda: heads(hidden_layer_sizes=(2,), solver="lbfgs").fit(FEATURES, y),
        r"solver='adam', or hidden_layer_sizes=\(\)",
        lambda: [
            heads(hidden_layer_sizes=(2,), solver="adam", max_epochs=1).fit(FEATURES, y),
            heads(hidden_layer_sizes=(), solver="lbfgs").fit(FEATURES, y),
        ],
    ),
    "boosted cascade with hidden units": (
        lambda: heads(hidden_layer_sizes=(2,), training="boosted", cascade=True).fit(FEATURES, y),
        r"cascade=False, or hidden_layer_sizes=\(\)",
        lambda: [
            heads(hidden_layer_sizes=(2,), training="boosted", max_epochs=1).fit(FEATURES, y),
            heads(training="boosted", cascade=True).fit(FEATURES, y),
        ],
    ),
    "an exit that is not there": (
        lambda: StaticExit(7).fit(LOGITS, y),
        "from 0 to 2, or -1",
        lambda: [StaticExit(exit).fit(LOGITS, y) for exit in (0, 2, -1)],
    ),
    "evidence without features": (
        lambda: OptimalStoppingPolicy(use_features=True).fit(LOGITS, y),
        "Set use_features=False",
        lambda: OptimalStoppingPolicy(use_features=False).fit(LOGITS, y),
    ),
    "routers without features": (
        lambda: EMExitAssigner(router_input="features", max_epochs=1).fit(LOGITS, y),
        "router_input='probabilities' or 'both'",
        lambda: [EMExitAssigner(router_input=kind, max_epochs=1).fit(LOGITS, y) for kind in ("probabilities", "both")],
    ),
    "joint training of given heads": (
        lambda: JEIGatedEnsemble(heads=ExitHeads()).fit(FEATURES, y),
        "joint=False",
        lambda: JEIGatedEnsemble(heads=ExitHeads(), joint=False, max_epochs=1).fit(FEATURES, y),
    ),
    "criterion of other exits": (
        lambda: fit(X, criterion=FrozenEstimator(FITTED)),
        "without FrozenEstimator",
        lambda: fit(X, criterion=FITTED),
    ),
    "risk control of no budget": (
        lambda: RiskControlledPolicy(StaticExit(0)).fit(LOGITS, y),
        "with_budget.*ThresholdPolicy",
        lambda: RiskControlledPolicy(ThresholdPolicy(), alpha=0.5).fit(LOGITS, y),
    ),
    "risk control of no policy": (
        lambda: RiskControlledPolicy([]).fit(LOGITS, y),
        "or None",
        lambda: RiskControlledPolicy(None, alpha=0.5).fit(LOGITS, y),
    ),
    "sets before calibration": (
        lambda: fit(LOGITS).predict_set(LOGITS),
        "Call 'calibrate'",
        lambda: fit(LOGITS).calibrate(LOGITS, y).predict_set(LOGITS),
    ),
    # one exit at a time
    "an exit beyond the last": (lambda: FITTED.decide(3, L[:, 0]), "0 to 2", lambda: FITTED.decide(2, L[:, 2])),
    "no logits at an exit": (lambda: FITTED.decide(0), "logits", lambda: FITTED.decide(0, L[:, 0])),
    "one sample": (
        lambda: FITTED.decide(0, L[0, 0]),
        r"\(n_samples, 4\), one row for a single sample",
        lambda: FITTED.decide(0, L[:1, 0]),
    ),
    "features that were not fitted": (
        lambda: FITTED.decide(0, L[:, 0], F[0]),
        "leave out features",
        lambda: FITTED.decide(0, L[:, 0]),
    ),
    "masked logits at an exit": (
        lambda: FITTED.decide(0, masked(L)[:, 0]),
        "-1e4",
        lambda: FITTED.decide(0, np.maximum(masked(L)[:, 0], -1e4)),
    ),
    "rows of samples that left": (
        lambda: FITTED.decide(1, L[:, 1], state=FITTED.decide(0, L[:, 0]).state),
        r"block\[~leaves\]",
        lambda: FITTED.decide(1, L[:, 1][~(step := FITTED.decide(0, L[:, 0])).leaves], state=step.state),
    ),
    "a scaler before heads": (
        lambda: (
            make_exit_pipeline(StandardScaler(), heads(layout=FEATURES.layout), ThresholdPolicy())
            .fit(FEATURES, y)
            .decide(0, None, F[0])
        ),
        "in ExitTransformer",
        lambda: (
            make_exit_pipeline(ExitTransformer(StandardScaler()), heads(), ThresholdPolicy())
            .fit(FEATURES, y)
            .decide(0, None, F[0])
        ),
    ),
    # metrics and searches
    "cost that no point has": (lambda: CURVE.accuracy_at(0.3333), "costs 0.3334 of", lambda: CURVE.accuracy_at(0.3334)),
    "accuracy that no point has": (
        lambda: CURVE.cost_at(0.6667),
        "has 0.6666. Ask for that or less",
        lambda: CURVE.cost_at(0.6666),
    ),
    "costs that are exits": (
        lambda: accuracy_cost_curve(y, FITTED.predict(LOGITS), FITTED.predict_exit(LOGITS)),
        r"policy.costs_\[exits\]",
        lambda: accuracy_cost_curve(y, FITTED.predict(LOGITS), FITTED.costs_[FITTED.predict_exit(LOGITS)]),
    ),
    "answers that are not right or wrong": (
        lambda: exit_auroc(FITTED.predict_at_exits(LOGITS), FITTED.exit_scores(LOGITS)),
        r"policy.predict_at_exits\(X\) == y\[:, None\]",
        lambda: exit_auroc(FITTED.predict_at_exits(LOGITS) == y[:, None], FITTED.exit_scores(LOGITS)),
    ),
    "confidence in percent": (
        lambda: bootstrap_interval(f1_score, y > 1, y > 2, confidence_level=95),
        "as 0.95",
        lambda: bootstrap_interval(f1_score, y > 1, y > 2, confidence_level=0.95, n_resamples=20),
    ),
    "budget that no setting meets": (lambda: search(MEAN_COST, best_within(0.4)), "is met by no setting", lambda: None),
    "one fold": (
        lambda: search(MEAN_COST, best_within(0.9, one_standard_error=True), cv=ONE_SPLIT),
        "search with cv=2 or more folds",
        lambda: search(MEAN_COST, best_within(0.9, one_standard_error=True), cv=2),
    ),
    "search without costs": (
        lambda: search("accuracy", best_within(0.9)),
        r"scoring=accuracy_and_cost\(\)",
        lambda: search(MEAN_COST, best_within(0.9)),
    ),
    "budgets in percent": (
        lambda: budget_curve(ThresholdPolicy(), LOGITS, y, [50, 70]),
        r"in \(0, 1\]",
        lambda: budget_curve(ThresholdPolicy(), LOGITS, y, [0.5, 0.7], cv=2),
    ),
    "one budget": (
        lambda: budget_curve(ThresholdPolicy(), LOGITS, y, 0.5),
        "a list of one budget or more",
        lambda: budget_curve(ThresholdPolicy(), LOGITS, y, [0.5], cv=2),
    ),
    "curve of a search": (
        lambda: budget_curve(search(), LOGITS, y, [0.5]),
        "best_estimator_ of a search",
        lambda: budget_curve(search().best_estimator_, LOGITS, y, [0.5], cv=2),
    ),
    "cost of what is no policy": (
        lambda: neg_mean_cost_scorer(LogisticRegression(), LOGITS),
        "such as ThresholdPolicy",
        lambda: neg_mean_cost_scorer(FITTED, LOGITS),
    ),
    "labels with names": (
        lambda: fit_temperature(L[:, 0], NAMES[y]),
        r"numpy.searchsorted\(classes, y\)",
        lambda: fit_temperature(L[:, 0], np.searchsorted(NAMES, NAMES[y])),
    ),
    "JSON that was changed": (
        lambda: policy_from_json(policy_to_json(FITTED).replace("max_prob", "margin")),
        "Write the policy again with policy_to_json",
        lambda: policy_from_json(policy_to_json(FITTED)),
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    act, message, cure = ERRORS[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ValueError, IndexError, NotFittedError), match=f"(?s){message}"):
            act()
        warnings.simplefilter("error", LayoutLostWarning)
        cure()


def test_best_within_names_a_budget_that_works():
    with pytest.raises(ValueError, match="Raise it to") as raised:
        search(MEAN_COST, best_within(0.4))
    budget = float(str(raised.value).partition("Raise it to ")[2].split()[0])
    assert search(MEAN_COST, best_within(budget)).best_params_ == {"budget": 0.5}


LOST = np.asarray(FEATURES)
OTHER_COSTS = costs([1e6, 2e6, 4e6], cost_unit="MACs")
COUNTED_FRAME = fit(costs([1e6, 2e6, 3e6], cost_unit="MACs").to_frame())
COUNTED = ThresholdPolicy().fit(costs([1e6, 2e6, 3e6], cost_unit="MACs"), y)
DEAR = ExitLayout([0] * 2, [6] * 2, costs=[100, 200], cost_unit="MACs")

#: What to do, what the warning says, and the cure.
WARNINGS = {
    "lost layout": (
        lambda: fit(LOST),
        r"pass layout=X.layout.*leave the scaler out.*pass layout=1",
        lambda: [fit(LOST, layout=FEATURES.layout), fit(FEATURES), fit(LOST, layout=1)],
    ),
    "lost layout in a pipeline": (
        lambda: make_pipeline(StandardScaler(), heads(), ThresholdPolicy()).fit(FEATURES, y),
        r"to the first estimator of skexit after that step.*ExitTransformer\(StandardScaler\(\)\)",
        lambda: [
            make_pipeline(StandardScaler(), heads(layout=FEATURES.layout), ThresholdPolicy()).fit(FEATURES, y),
            make_pipeline(ExitTransformer(StandardScaler()), heads(), ThresholdPolicy()).fit(FEATURES, y),
            make_pipeline(heads(), ThresholdPolicy()).fit(FEATURES, y),
        ],
    ),
    "lost layout in a search": (
        lambda: GridSearchCV(ThresholdPolicy(), {"budget": [0.6]}, cv=2).fit(LOST, y),
        "pass layout=X.layout",
        lambda: GridSearchCV(ThresholdPolicy(layout=FEATURES.layout), {"budget": [0.6]}, cv=2).fit(LOST, y),
    ),
    "logits as features": (
        lambda: fit(L.reshape(N, -1), layout=K),
        r"layout=ExitLayout\(\[4\] \* 3\), or pass stack_exits\(logits\)",
        lambda: [fit(L.reshape(N, -1), layout=ExitLayout([4] * 3)), fit(stack_exits(L))],
    ),
    "frame without attrs": (
        lambda: fit(without_attrs(FRAME)),
        r"X.layout.to_dict\(\).*layout=ExitLayout.from_dict\(...\), or ExitArray.from_frame\(frame, layout\)",
        lambda: [
            fit(
                without_attrs(FRAME), layout=ExitLayout.from_dict(json.loads(json.dumps(LOGITS.layout.to_dict())))
            ).predict(without_attrs(FRAME)),
            fit(ExitArray.from_frame(without_attrs(FRAME), LOGITS.layout)),
        ],
    ),
    "probabilities as logits": (
        lambda: fit(softmax(L, 2)),
        r"stack_exits\(probabilities=...\)",
        lambda: fit(stack_exits(probabilities=softmax(L, 2))),
    ),
    "probabilities in a frame": (
        lambda: fit(pd.DataFrame(softmax(L, 2).reshape(N, -1)), layout=LOGITS.layout),
        r"stack_exits\(probabilities=...\)",
        lambda: fit(stack_exits(probabilities=softmax(L, 2))),
    ),
    "other costs": (
        lambda: COUNTED.predict(OTHER_COSTS),
        r"X.with_layout\(X.layout.replace\(costs=...\)\)",
        lambda: COUNTED.predict(OTHER_COSTS.with_layout(OTHER_COSTS.layout.replace(costs=[1e6, 2e6, 3e6]))),
    ),
    "other costs in a frame": (
        lambda: COUNTED_FRAME.predict(OTHER_COSTS.to_frame()),
        r"numpy.asarray\(X\) of a frame",
        lambda: COUNTED.predict(np.asarray(OTHER_COSTS.to_frame())),
    ),
    "expensive heads": (
        lambda: ThresholdPolicy(budget=1.0, layout=DEAR).fit(np.asarray(FEATURES), y),
        "fewer features per exit",
        lambda: ThresholdPolicy(budget=1.0, layout=DEAR.replace(costs=[1e4, 1e5])).fit(np.asarray(FEATURES), y),
    ),
    "votes that tie": (
        lambda: fit(L, criterion="vote", budget=0.75),
        "such as criterion='max_prob' instead of 'vote'",
        lambda: fit(L, criterion="max_prob", budget=0.75),
    ),
    "temperature at its bound": (
        lambda: fit_temperature(1e-3 * L[:, 2], y),
        r"pass logits / numpy.std\(logits\)",
        lambda: [fit_temperature(scaled / np.std(scaled), y) for scaled in (1e-3 * L[:, 2], 1e3 * L[:, 2])],
    ),
    "a target that looks continuous": (
        lambda: heads(hidden_layer_sizes=(2,), max_epochs=1).fit(FEATURES, np.arange(N) // 3 * 30),
        "numpy.digitize",
        lambda: heads().fit(FEATURES, np.digitize(np.arange(N), [40, 80])),
    ),
    "no budget qualifies": (
        lambda: RiskControlledPolicy(RandomExit(), budgets=[0.5], alpha=0.01, random_state=0).fit(LOGITS, y),
        "Use a larger alpha, or a policy that loses less, or higher budgets",
        lambda: RiskControlledPolicy(RandomExit(), budgets=[0.5], alpha=0.9, random_state=0).fit(LOGITS, y),
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_warnings(case):
    act, message, cure = WARNINGS[case]
    with pytest.warns(UserWarning, match=f"(?s){message}"):
        act()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cure()


def test_expensive_heads_are_no_lost_layout():
    assert not issubclass(ExpensiveHeadsWarning, LayoutLostWarning)
