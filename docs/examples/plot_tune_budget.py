"""
Tune λ and budget of all policies in one search
===============================================

Which policy, with which settings, is the most accurate one for half of the
compute? That is one :class:`~sklearn.model_selection.GridSearchCV`: it swaps
the last step of a pipeline, and its ``refit`` takes the best setting within
the budget.
"""

# %%
# The data
# --------
# In place of a network we read images of digits from the top: the first exit
# has seen two of the eight rows of pixels, the last one all of them. The test
# rows are kept for the end.

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skexit import stack_exits

images, y = load_digits(return_X_y=True)
X = stack_exits(
    features=[images[:, :16], images[:, :32], images[:, :48], images]
)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.4, stratify=y, random_state=0
)
X_train

# %%
# The grid
# --------
# Heads turn pixels into logits, and a policy decides on these. Both are steps
# of one pipeline, so that each fold fits its own. The heads are the same for
# all policies: ``memory`` keeps them, and each fold fits them once.
#
# A list of grids gives each policy the parameters it has. λ is the price of the
# whole network, in the units of the policy's objective; a budget is a fraction
# of the network's cost. :class:`~skexit.EENetPolicy` has no price.
# :class:`~skexit.JEIGatedEnsemble` finds logits here, and learns gates for
# these heads as they are; without the step ``"heads"``, it would train its own
# together with the gates.

from tempfile import TemporaryDirectory

from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skexit import EENetPolicy, EMExitAssigner, ExitHeads, JEIGatedEnsemble
from skexit.model_selection import accuracy_and_cost, best_within

em = EMExitAssigner(max_epochs=8, random_state=0)
eenet = EENetPolicy(random_state=0)
jei = JEIGatedEnsemble(random_state=0)
grids = [
    {"policy": [em], "policy__lam": [0.3, 1, 3]},
    {"policy": [jei], "policy__lam": [0.3, 1, 3]},
    {"policy": [em, eenet, jei], "policy__budget": [0.45, 0.48, 0.5]},
]

folder = TemporaryDirectory()
pipeline = Pipeline(
    [("heads", ExitHeads(random_state=0)), ("policy", em)], memory=folder.name
)
search = GridSearchCV(
    pipeline, grids, scoring=accuracy_and_cost(), refit=best_within(0.5), cv=3
)
search.fit(X_train, y_train)
print(search.best_params_)

# %%
# The choice
# ----------
# Each setting is a point: its mean cost and accuracy on the test folds, with
# their standard deviations. ``best_within`` took the highest one left of the
# line. A policy meets its budget on the rows it was fitted on and may cost a
# little more on others, which is why the grid has budgets below 0.5, too.

from skexit.plotting import AccuracyCostDisplay

display = AccuracyCostDisplay.from_cv_results(search.cv_results_, by="policy")
_ = display.ax_.axvline(50, color="black", linestyle=":", linewidth=1)

# %%
# All settings, by accuracy; the chosen one is the first that costs at most 0.5:

import pandas as pd

results = pd.DataFrame(
    {
        "policy": [
            type(params["policy"]).__name__
            for params in search.cv_results_["params"]
        ],
        "λ": search.cv_results_["param_policy__lam"],
        "budget": search.cv_results_["param_policy__budget"],
        "mean cost": search.cv_results_["mean_test_mean_cost"],
        "accuracy": search.cv_results_["mean_test_accuracy"],
    }
)
results.sort_values("accuracy", ascending=False).round(3)

# %%
# On new rows
# -----------
# The accuracy on the folds is flattered by the choice, and it is that of
# policies fitted on two thirds of the training rows. What to expect of the
# refitted one is what it does on rows that took no part in the choice:

scores = accuracy_and_cost()(search.best_estimator_, X_test, y_test)
print({name: round(score, 3) for name, score in scores.items()})

# %%
# The chosen policy can serve other budgets without being fitted again:

heads, policy = search.best_estimator_
logits = heads.transform(X_test)
scores = accuracy_and_cost()(policy.with_budget(0.4), logits, y_test)
print({name: round(score, 3) for name, score in scores.items()})

folder.cleanup()
