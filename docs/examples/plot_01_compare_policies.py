"""
Compare policies, with intervals
================================

Policies are fitted on the same rows of a ResNet-56's outputs, and measured on
the same test rows at many budgets. The bootstrap shows which differences are
larger than chance.
"""

# %%
# The network
# -----------
# A ResNet-56 with nine exits was run once on 5,000 images that it was not
# trained on. skexit comes with its outputs: the features of each exit, the
# network's logits at the last exit, and the cost of each exit.

from sklearn.model_selection import train_test_split

from skexit.datasets import load_cifar10_resnet56

X, y = load_cifar10_resnet56(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.5, stratify=y, random_state=0
)
X_train.layout

# %%
# The policies
# ------------
# The heads, a linear classifier at each exit, are fitted once for all policies.
# The policies learn from cross-fitted logits, which
# :meth:`~skexit.ExitHeads.fit_transform` returns, because heads are too
# confident on rows that they were trained on.

from skexit import (
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    ThresholdPolicy,
)

heads = ExitHeads(random_state=0)
logits_train = heads.fit_transform(X_train, y_train)
logits_test = heads.transform(X_test)

budget = 0.6
policies = {
    "maximum probability": ThresholdPolicy(budget=budget),
    "JEI-DNN": JEIGatedEnsemble(budget=budget, random_state=0),
    "optimal stopping": OptimalStoppingPolicy(budget=budget, random_state=0),
}
for policy in policies.values():
    policy.fit(logits_train, y_train)

# %%
# Curves
# ------
# ``with_budget`` sets other budgets for a fitted policy. Each point of a curve
# is a column: the predicted class of each test row, and its cost. The bands are
# 95 % intervals.

import numpy as np

from skexit.plotting import AccuracyCostDisplay

budgets = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
answers = {}
for name, policy in policies.items():
    settings = [policy.with_budget(fraction) for fraction in budgets]
    y_pred = [setting.predict(logits_test) for setting in settings]
    exits = [setting.predict_exit(logits_test) for setting in settings]
    costs = policy.costs_[np.column_stack(exits)]
    answers[name] = np.column_stack(y_pred), costs

display = AccuracyCostDisplay.from_predictions(
    y_test, answers, n_resamples=200, random_state=0
)

# %%
# The points form an :class:`~skexit.metrics.AccuracyCostCurve`, which
# interpolates between them. It gives the accuracy at half of the cost, and the
# cost for an accuracy of 90 %.

from skexit.metrics import accuracy_cost_curve

for name, answer in answers.items():
    curve = accuracy_cost_curve(y_test, *answer)
    accuracy, cost = curve.accuracy_at(0.5), curve.cost_at(0.9)
    print(
        f"{name:20s} accuracy at half of the cost: {100 * accuracy:.1f} %, "
        f"cost for an accuracy of 90 %: {100 * cost:.1f} %"
    )

# %%
# Differences
# -----------
# The bands overlap, but the curves vary together: an easy test row is easy for
# all policies. So resample the rows of two policies together, and look at the
# difference: here, the accuracy at a mean cost of 50 % minus that of maximum
# probability, in points. If the interval contains 0, the difference may be
# chance.

from skexit.metrics import accuracy_at_budget, bootstrap_interval


def gain(y_true, y_pred, costs, other_y_pred, other_costs):
    ours = accuracy_at_budget(y_true, y_pred, costs, budget=0.5)
    return ours - accuracy_at_budget(
        y_true, other_y_pred, other_costs, budget=0.5
    )


baseline = answers["maximum probability"]
for name, answer in answers.items():
    if name != "maximum probability":
        arrays = (y_test, *answer, *baseline)
        low, high = bootstrap_interval(
            gain, *arrays, method="difference", n_resamples=200, random_state=0
        )
        print(
            f"{name:20s} {100 * gain(*arrays):+.1f} "
            f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        )

# %%
# The intervals are for new test rows and these fitted policies. To see the
# effect of another training set, fit on several splits.
#
# Exit by exit
# ------------
# The share of samples that leave at each exit, and the accuracy of each exit on
# these and on all samples:

from skexit.metrics import exit_report

policy = policies["optimal stopping"]
exits = policy.predict_exit(logits_test)
y_pred = policy.predict_at_exits(logits_test)
print(exit_report(y_test, y_pred, exits, policy.costs_))

# %%
# Policies spend the same budget in different ways:

from skexit.plotting import ExitDistributionDisplay

display = ExitDistributionDisplay.from_estimators(policies, logits_test)
