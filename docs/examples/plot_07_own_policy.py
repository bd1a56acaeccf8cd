"""
A policy of your own
====================

A policy scores the confidence of an exit, and sets thresholds. A new policy
needs two short methods. The base class adds budgets, calibration, saving and
scikit-learn's interface.
"""

# %%
# The idea
# --------
# An exit can be confident and wrong, more often for some classes than for
# others. If an early exit confuses dogs and cats, its prediction "cat" is less
# reliable. So this policy weights each probability with the accuracy of the
# exit on samples for which it predicts that class.
#
# - ``fit_policy`` learns: here, the share of correct predictions of each exit
#   and class, which is moved towards the exit's mean if there are few samples.
# - ``score_exit`` scores one exit for the samples that are still running.
#   ``memory`` is a dict that may carry notes to later exits.
#
# The base class finds the thresholds for a budget from the scores of the fitted
# rows. A sample stops at the first exit whose score reaches the threshold.
#
# The code uses the array API, so it also runs on torch tensors in a live
# network.

import numpy as np
from array_api_compat import array_namespace, device

from skexit.policies import BudgetedPolicy
from skexit.uncertainty import max_probability, softmax


class PrecisionPolicy(BudgetedPolicy):
    """Stop if an exit is confident of a class that it predicts reliably."""

    def __init__(self, budget=0.5, strength=20, *, heads=None, layout=None):
        self.budget = budget
        self.strength = strength
        self.heads = heads
        self.layout = layout

    def fit_policy(self, X, labels, weight):
        shape = X.layout.n_exits, len(self.classes_)
        self.precisions_ = np.empty(shape)
        for k in range(X.layout.n_exits):
            answers = X.logits(k).argmax(axis=1)
            right = weight * (answers == labels)
            n_right = np.bincount(answers, right, shape[1])
            n_said = np.bincount(answers, weight, shape[1])
            mean = right.sum() / weight.sum()
            n_right += self.strength * mean
            self.precisions_[k] = n_right / (n_said + self.strength)
        self.fit_thresholds(X, weight)

    def score_exit(self, k, logits, features, memory):
        xp = array_namespace(logits)
        precisions = xp.asarray(
            self.precisions_[k], dtype=logits.dtype, device=device(logits)
        )
        return max_probability(softmax(logits) * precisions)


# %%
# Check it
# --------
# ``check_policy`` fits it to small data and checks the rules for all policies:
# later exits change no earlier decision, batches of another size or order have
# the same exits, only the ratios of weights matter, and so on. The error of a
# check explains what to do. With pytest, ``parametrize_policy_checks`` runs the
# same checks one by one.

from skexit.testing import check_policy

check_policy(PrecisionPolicy())

# %%
# Compare it
# ----------
# It is a policy like any other, so it can be compared with another policy.

from sklearn.model_selection import train_test_split

from skexit import ExitHeads, ThresholdPolicy
from skexit.datasets import load_cifar10_resnet56

X, y = load_cifar10_resnet56(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.5, stratify=y, random_state=0
)
heads = ExitHeads(random_state=0)
logits_train = heads.fit_transform(X_train, y_train)
logits_test = heads.transform(X_test)

ours = PrecisionPolicy(budget=0.6).fit(logits_train, y_train)
theirs = ThresholdPolicy(budget=0.6).fit(logits_train, y_train)

from skexit.plotting import AccuracyCostDisplay

budgets = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
answers = {}
for name, policy in (("precision", ours), ("maximum probability", theirs)):
    settings = [policy.with_budget(fraction) for fraction in budgets]
    y_pred = [setting.predict(logits_test) for setting in settings]
    exits = [setting.predict_exit(logits_test) for setting in settings]
    costs = policy.costs_[np.column_stack(exits)]
    answers[name] = np.column_stack(y_pred), costs

display = AccuracyCostDisplay.from_predictions(
    y_test, answers, n_resamples=200, random_state=0
)

# %%
# The difference of the mean accuracy over all budgets, in points, with a 95 %
# interval:

from skexit.metrics import area_under_accuracy_cost, bootstrap_interval


def gain(y_true, y_pred, costs, other_y_pred, other_costs):
    ours = area_under_accuracy_cost(y_true, y_pred, costs)
    return ours - area_under_accuracy_cost(y_true, other_y_pred, other_costs)


arrays = (y_test, *answers["precision"], *answers["maximum probability"])
low, high = bootstrap_interval(
    gain, *arrays, method="difference", n_resamples=200, random_state=0
)
print(f"{100 * gain(*arrays):+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")

# %%
# What it learned
# ---------------
# These are the classes for which the first exit is the least and the most
# accurate, in %:

names = load_cifar10_resnet56().target_names
order = ours.precisions_[0].argsort()
for c in order[[0, 1, -2, -1]]:
    print(f"{names[c]:10s} {100 * ours.precisions_[0, c]:.0f}")

# %%
# The base class adds the rest: calibration and sets of classes, pipelines and
# searches, and the table of exits below.

from sklearn.model_selection import GridSearchCV

search = GridSearchCV(PrecisionPolicy(0.6), {"strength": [2, 20, 200]}, cv=3)
search.fit(logits_train, y_train)
search.best_estimator_
