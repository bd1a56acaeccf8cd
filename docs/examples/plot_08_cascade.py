"""
A cascade of models
===================

Exits can also be whole models. In a :class:`~skexit.ModelCascade`, a small
model runs first, and larger models run only for the samples that do not stop.
"""

# %%
# Three models
# ------------
# The data are scikit-learn's digits, some of them covered by noise. The models
# are a linear model, a support vector machine, and a large ensemble. They are
# fitted as usual.

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import BaggingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

images, y = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
images = images / 16
images += (
    0.2 * rng.normal(size=images.shape) * rng.exponential(size=(len(y), 1))
)

small = LogisticRegression(C=0.1).fit(images[:600], y[:600])
medium = SVC().fit(images[:600], y[:600])
large = BaggingClassifier(SVC(), 20, random_state=0).fit(images[:600], y[:600])
for name, model in [("small", small), ("medium", medium), ("large", large)]:
    print(f"{name}: {100 * model.score(images[1200:], y[1200:]):.1f} %")

# %%
# A policy on their logits
# ------------------------
# The cascade is the first step of a pipeline, and a policy is the last step.
# ``fit`` runs every model on rows that no model was fitted on. It measures the
# cost of each model per row, and learns when to stop. A budget is a fraction of
# the cost of the last model alone.

from skexit import ModelCascade, ThresholdPolicy, make_exit_pipeline

cascade = ModelCascade([("small", small), ("medium", medium), ("large", large)])
pipeline = make_exit_pipeline(cascade, ThresholdPolicy(budget=0.3))
pipeline.fit(images[600:1200], y[600:1200])
print("milliseconds per row:", cascade.model_costs_.round(3))

# %%
# ``predict`` runs each model only for the samples that reach it. A sample that
# goes through all models costs more than 1.

from time import perf_counter

new, y_new = images[1200:], y[1200:]
print("costs:", pipeline.costs_.round(2))
print("samples by exit:", np.bincount(pipeline.predict_exit(new), minlength=3))
print(f"accuracy: {100 * pipeline.score(new, y_new):.1f} %")


def milliseconds(predict):
    start = perf_counter()
    predict(new)
    return 1000 * (perf_counter() - start)


print(f"large model alone: {milliseconds(large.predict):.0f} ms")
print(f"cascade:           {milliseconds(pipeline.predict):.0f} ms")

# %%
# Which budget
# ------------
# To compare policies and budgets, run the models once: ``fit_transform``
# returns an X like that of an extraction, for policies, searches, plots and
# metrics.

from sklearn.model_selection import GridSearchCV

from skexit.model_selection import accuracy_and_cost, best_within

X, y_fit = cascade.fit_transform(images[600:1200]), y[600:1200]
search = GridSearchCV(
    ThresholdPolicy(),
    {"criterion": ["entropy", "margin"], "budget": [0.2, 0.4, 0.6, 0.8]},
    scoring=accuracy_and_cost(),
    refit=best_within(0.6),
).fit(X, y_fit)
print(search.best_params_)

# %%
# ``transform`` returns an X that runs a model when a policy reads its logits,
# and only for the rows that are read.

X_new = cascade.transform(new)
accuracy = search.best_estimator_.score(X_new, y_new)
print(f"accuracy: {100 * accuracy:.1f} %")

# %%
# The plot compares the cascade with single models. The cost of a single model
# is that of a cascade up to it. The last model alone would cost 100 %.

from skexit import StaticExit
from skexit.plotting import AccuracyCostDisplay

best = search.best_estimator_
policies = {
    "cascade": [best.with_budget(b) for b in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)],
    "one model for all": [StaticExit(k).fit(X, y_fit) for k in range(3)],
}
display = AccuracyCostDisplay.from_estimators(policies, X_new, y_new)

# %%
# Another choice is the lowest budget that loses at most two points of accuracy,
# with a guarantee for new rows:

from skexit import RiskControlledPolicy

policy = RiskControlledPolicy(
    search.best_estimator_, alpha=0.02, random_state=0
)
policy.fit(X, y_fit)
print(f"budget: {100 * policy.budget_:.0f} %")
print(f"cost: {100 * policy.mean_cost(X_new):.0f} %")

# %%
# Torch modules
# -------------
# A model may also be a torch module that returns logits. It gets its inputs as
# tensors. This cascade has two torch modules after the small model from above:

import torch
from torch import nn


def train(module):
    optimizer = torch.optim.Adam(
        module.parameters(), lr=0.003, weight_decay=0.001
    )
    inputs = torch.tensor(images[:600], dtype=torch.float32)
    labels = torch.tensor(y[:600])
    for _ in range(25):
        for rows in torch.randperm(600).split(100):
            optimizer.zero_grad()
            logits = module(inputs[rows])
            nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
    return module


torch.manual_seed(0)
narrow = train(
    nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)
    )
)
wide = train(
    nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32 * 16, 10),
    )
)
mixed = ModelCascade(
    [small, narrow, wide], costs=[640, 4736, 613376], cost_unit="MACs"
)
pipeline = make_exit_pipeline(mixed, ThresholdPolicy(budget=0.3))
pipeline.fit(images[600:1200], y[600:1200])
for k, name in enumerate(["small", "narrow", "wide"]):
    alone = StaticExit(k).fit(mixed.transform(images[600:1200]), y_fit)
    print(f"{name}: {100 * alone.score(mixed.transform(new), y_new):.1f} %")
print(f"cascade: {100 * pipeline.score(new, y_new):.1f} %")
print(f"cost: {100 * pipeline.mean_cost(new):.0f} %")
