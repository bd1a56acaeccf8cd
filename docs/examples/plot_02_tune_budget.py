"""
Tune λ and budget of all policies in one search
===============================================

Which policy, with which settings, is the most accurate one for 60 % of the
compute? One :class:`~sklearn.model_selection.GridSearchCV` answers this: it
replaces the last step of a pipeline, and its ``refit`` takes the best setting
within the budget.
"""

# %%
# The data
# --------
# The outputs of a ResNet-56 with nine exits, for images that it was not trained
# on. The test rows are used at the end.

from sklearn.model_selection import train_test_split

from skexit.datasets import load_cifar10_resnet56

X, y = load_cifar10_resnet56(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.5, stratify=y, random_state=0
)
X_train

# %%
# The grid
# --------
# Heads compute logits from features, and a policy decides by the logits. Both
# are steps of one pipeline, so each fold fits its own heads. The heads are the
# same for all policies: ``memory`` stores them, so that each fold fits them
# once.
#
# A list of grids has the parameters of each policy. λ is the price of the whole
# network, in the unit of the policy's objective. A budget is a fraction of the
# network's cost.

from tempfile import TemporaryDirectory

from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skexit import (
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    ThresholdPolicy,
)
from skexit.model_selection import accuracy_and_cost, best_within

confidence = ThresholdPolicy()
stopping = OptimalStoppingPolicy(random_state=0)
jei = JEIGatedEnsemble(random_state=0)
budgets = [0.5, 0.55, 0.58, 0.6, 0.7]
grids = [
    {
        "policy": [confidence],
        "policy__criterion": ["max_prob", "margin"],
        "policy__budget": budgets,
    },
    {"policy": [stopping], "policy__budget": budgets},
    {"policy": [jei], "policy__lam": [1, 2, 3, 4]},
]

folder = TemporaryDirectory()
pipeline = Pipeline(
    [("heads", ExitHeads(random_state=0)), ("policy", confidence)],
    memory=folder.name,
)
search = GridSearchCV(
    pipeline, grids, scoring=accuracy_and_cost(), refit=best_within(0.6), cv=2
)
search.fit(X_train, y_train)
print(search.best_params_)

# %%
# The choice
# ----------
# Each setting is a point: its mean cost and accuracy on the test folds, with
# their standard deviations. ``best_within`` chose the highest point to the left
# of the line. A policy meets its budget on the rows that it was fitted on, and
# may cost a little more on other rows. So the grid also has budgets below 60 %.

from skexit.plotting import AccuracyCostDisplay

display = AccuracyCostDisplay.from_cv_results(search.cv_results_, by="policy")
_ = display.ax_.axvline(60, color="gray", linestyle=":", linewidth=1)

# %%
# The table shows the best settings. The chosen setting is the first one with a
# cost of at most 0.6:

import pandas as pd

results = pd.DataFrame(
    {
        "policy": [
            type(params["policy"]).__name__
            for params in search.cv_results_["params"]
        ],
        "criterion": search.cv_results_["param_policy__criterion"],
        "λ": search.cv_results_["param_policy__lam"],
        "budget": search.cv_results_["param_policy__budget"],
        "mean cost": search.cv_results_["mean_test_mean_cost"],
        "accuracy": search.cv_results_["mean_test_accuracy"],
    }
)
results.sort_values("accuracy", ascending=False).round(3).head(10)

# %%
# On new rows
# -----------
# The accuracy on the folds is slightly too high, because the best setting was
# chosen by it. It is also that of policies fitted on half of the training rows.
# So measure the refitted policy on rows that were not used for the choice:

scores = accuracy_and_cost()(search.best_estimator_, X_test, y_test)
print({name: round(score, 3) for name, score in scores.items()})

# %%
# ``with_budget`` sets another budget for the chosen policy, without a new fit:

heads, policy = search.best_estimator_
logits = heads.transform(X_test)
scores = accuracy_and_cost()(policy.with_budget(0.8), logits, y_test)
print({name: round(score, 3) for name, score in scores.items()})

folder.cleanup()
