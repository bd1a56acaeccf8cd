"""
Compare methods, and say how sure that is
=========================================

Four policies are fitted on the same rows and measured on the same test rows,
over all budgets. The bootstrap says which differences are more than chance.
"""

# %%
# The methods
# -----------
# In place of a network we read images of digits from the top: each exit has
# seen two more rows of pixels than the one before. The heads are fitted once,
# for all policies. These learn from cross-fitted logits, which
# :meth:`~skexit.ExitHeads.fit_transform` gives: what heads say of rows they
# have learned from looks better than it is.

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitHeads,
    JEIGatedEnsemble,
    ThresholdPolicy,
    stack_exits,
)

images, y = load_digits(return_X_y=True)
X = stack_exits(
    features=[images[:, :16], images[:, :32], images[:, :48], images]
)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.5, stratify=y, random_state=0
)

heads = ExitHeads(random_state=0)
X_train = heads.fit_transform(X_train, y_train)
X_test = heads.transform(X_test)

budget = 0.5
methods = {
    "maximum probability": ThresholdPolicy(budget=budget),
    "EM routing": EMExitAssigner(budget=budget, random_state=0),
    "EENet": EENetPolicy(budget=budget, random_state=0),
    "JEI-DNN": JEIGatedEnsemble(budget=budget, random_state=0),
}
for policy in methods.values():
    policy.fit(X_train, y_train)

# %%
# Curves
# ------
# ``with_budget`` gives each fitted policy other budgets. A point of a curve is
# a column: the class that each test row gets there, and what that costs. The
# bands are 95 % intervals.

import numpy as np

from skexit.plotting import AccuracyCostDisplay

budgets = [0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0]
answers = {}
for name, policy in methods.items():
    settings = [policy.with_budget(fraction) for fraction in budgets]
    y_pred = [setting.predict(X_test) for setting in settings]
    exits = [setting.predict_exit(X_test) for setting in settings]
    costs = policy.costs_[np.column_stack(exits)]
    answers[name] = np.column_stack(y_pred), costs

display = AccuracyCostDisplay.from_predictions(
    y_test, answers, n_resamples=500, random_state=0
)

# %%
# The points are in an :class:`~skexit.metrics.AccuracyCostCurve`, which reads
# off accuracies and costs between them. Half of the compute, and the compute
# for an accuracy of 90 %:

from skexit.metrics import accuracy_cost_curve

curves = {
    name: accuracy_cost_curve(y_test, *answer)
    for name, answer in answers.items()
}
for name, curve in curves.items():
    accuracy, cost = curve.accuracy_at(0.5), curve.cost_at(0.9)
    print(f"{name:20s} accuracy {accuracy:.3f} at 0.5, cost {cost:.3f} for 0.9")

# %%
# Differences
# -----------
# The bands overlap, but that says little: they vary together, for an easy test
# row is easy for all methods. Draw the rows for two methods at once, and look
# at their difference. Here: mean accuracy over all budgets (the area under the
# curve), a method's less that of maximum probability. An interval that holds 0
# may be chance.

from skexit.metrics import area_under_accuracy_cost, bootstrap_interval


def gain(y_true, y_pred, costs, other_y_pred, other_costs):
    ours = area_under_accuracy_cost(y_true, y_pred, costs)
    return ours - area_under_accuracy_cost(y_true, other_y_pred, other_costs)


baseline = answers["maximum probability"]
for name, answer in answers.items():
    if name != "maximum probability":
        arrays = (y_test, *answer, *baseline)
        low, high = bootstrap_interval(
            gain, *arrays, n_resamples=500, random_state=0
        )
        print(f"{name:10s} {gain(*arrays):+.4f} [{low:+.4f}, {high:+.4f}]")

# %%
# The intervals are about new test rows, with these fitted policies. With
# another training set the policies would be others; for that, fit on several
# splits.
#
# Exit by exit
# ------------
# Where the samples of one policy leave, and how often each exit is right on
# these and on all:

from skexit.metrics import exit_report

policy = methods["JEI-DNN"]
exits, y_pred = policy.predict_exit(X_test), policy.predict_at_exits(X_test)
print(exit_report(y_test, y_pred, exits, policy.costs_))

# %%
# The same budget is spent in different ways:

from skexit.plotting import ExitDistributionDisplay

display = ExitDistributionDisplay.from_estimators(methods, X_test)

# %%
# Can the probabilities be believed? Points on the diagonal are as often right
# as they say.

from skexit.plotting import ReliabilityDisplay

display = ReliabilityDisplay.from_estimator(policy, X_test, y_test, n_bins=5)
