"""
Lose at most two points of accuracy, with a guarantee
=====================================================

How early can samples stop if accuracy may fall by at most two points? A
:class:`~skexit.RiskControlledPolicy` finds the lowest budget for which this
holds, by tests on rows that nothing was fitted on.
"""

# %%
# Fit, then test
# --------------
# Heads and policy are fitted on some rows. Budgets are then tested on other
# rows, one after another, from the highest to the lowest. The fitted policy is
# passed in a :class:`~sklearn.frozen.FrozenEstimator`, so that all rows of the
# second ``fit`` are used for tests.

from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skexit import ExitHeads, OptimalStoppingPolicy, RiskControlledPolicy
from skexit.datasets import load_cifar10_resnet56

X, y = load_cifar10_resnet56(return_X_y=True)
X_fit, X_rest, y_fit, y_rest = train_test_split(
    X, y, train_size=1500, stratify=y, random_state=0
)
X_calibrate, X_test, y_calibrate, y_test = train_test_split(
    X_rest, y_rest, test_size=1500, stratify=y_rest, random_state=0
)

heads = ExitHeads(random_state=0)
fitted = OptimalStoppingPolicy(random_state=0)
fitted.fit(heads.fit_transform(X_fit, y_fit), y_fit)
logits_calibrate = heads.transform(X_calibrate)
logits_test = heads.transform(X_test)

policy = RiskControlledPolicy(
    FrozenEstimator(fitted), alpha=0.02, delta=0.1, random_state=0
)
policy.fit(logits_calibrate, y_calibrate)
print(f"lowest budget that passes: {100 * policy.budget_:.1f} %")

# %%
# With a probability of 90 % over the rows of the tests, the expected loss of
# accuracy on new rows is at most two points. On these new rows, it is

lost = (policy.predict_at_exits(logits_test)[:, -1] == y_test).mean()
lost -= policy.score(logits_test, y_test)
cost = policy.mean_cost(logits_test)
print(f"lost: {100 * lost:.1f} points, cost: {100 * cost:.1f} %")

# %%
# The tests
# ---------
# Each budget has a mean loss on the rows of the tests, and a p-value: the
# probability of such a small loss if the expected loss is above alpha. The
# first p-value above delta ends the search.

import matplotlib.pyplot as plt

figure, (losses, p_values) = plt.subplots(
    2, 1, sharex=True, figsize=(6.4, 5), layout="constrained"
)
losses.plot(policy.budgets_, policy.risks_, ".-")
losses.axhline(policy.alpha, color="gray", linestyle=":")
losses.set(ylabel="accuracy lost")
p_values.semilogy(policy.budgets_, policy.p_values_, ".-")
p_values.axhline(policy.delta, color="gray", linestyle=":")
p_values.set(
    ylabel="p-value", xlabel="budget, a fraction of the network's cost"
)
for ax in (losses, p_values):
    ax.axvline(policy.budget_, color="tab:green", linewidth=1)

# %%
# What a guarantee costs
# ----------------------
# For a smaller loss, or with fewer rows for the tests, the budget is larger.

import warnings

import pandas as pd

rows = []
for alpha in (0.01, 0.02, 0.05):
    for n_rows in (500, 2000):
        controlled = RiskControlledPolicy(
            FrozenEstimator(fitted), alpha=alpha, random_state=0
        )
        with warnings.catch_warnings():
            # If no budget passes, all samples go to the last exit.
            warnings.simplefilter("ignore", UserWarning)
            controlled.fit(logits_calibrate[:n_rows], y_calibrate[:n_rows])
        cost = controlled.mean_cost(logits_test)
        score = controlled.score(logits_test, y_test)
        rows.append((alpha, n_rows, cost, score))
columns = ["alpha", "rows for tests", "mean cost", "accuracy"]
pd.DataFrame(rows, columns=columns).round(3)
