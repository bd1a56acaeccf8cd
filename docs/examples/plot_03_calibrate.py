"""
Calibrated probabilities and prediction sets
============================================

Samples leave early because an exit is confident, even if it is wrong. So each
exit is calibrated on the rows that leave there. Its probabilities then agree
with its accuracy, and sets of classes contain the true class for a chosen share
of the samples.
"""

# %%
# Three kinds of rows
# -------------------
# Some rows fit heads and policy, others calibrate them, and the rest measure
# the effect. The outputs are those of a ResNet-56 with nine exits, on images
# that it was not trained on.

from sklearn.model_selection import train_test_split

from skexit import ExitHeads, OptimalStoppingPolicy
from skexit.datasets import load_cifar10_resnet56

X, y = load_cifar10_resnet56(return_X_y=True)
X_fit, X_rest, y_fit, y_rest = train_test_split(
    X, y, train_size=2000, stratify=y, random_state=0
)
X_calibrate, X_test, y_calibrate, y_test = train_test_split(
    X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0
)

heads = ExitHeads(random_state=0)
policy = OptimalStoppingPolicy(budget=0.7, random_state=0)
policy.fit(heads.fit_transform(X_fit, y_fit), y_fit)
logits_calibrate = heads.transform(X_calibrate)
logits_test = heads.transform(X_test)

# %%
# Are the probabilities calibrated?
# ---------------------------------
# On the diagonal, accuracy equals confidence.

from skexit.plotting import ReliabilityDisplay

display = ReliabilityDisplay.from_estimator(
    policy, logits_test, y_test, n_bins=5
)

# %%
# ``calibrate`` fits a temperature for each exit. Decisions do not change, only
# probabilities do. The error is the mean distance from the diagonal. Part of it
# is chance.

from skexit.uncertainty import expected_calibration_error

before = policy.predict_proba(logits_test)
exits = policy.predict_exit(logits_test)
policy.calibrate(logits_calibrate, y_calibrate)
after = policy.predict_proba(logits_test)

print("temperatures", policy.temperatures_.round(2))
for name, probabilities in (("before", before), ("after", after)):
    error = expected_calibration_error(
        y_test, probabilities, labels=policy.classes_
    )
    print(f"calibration error {name}: {100 * error:.1f} points")
print("the same exits:", (policy.predict_exit(logits_test) == exits).all())

# %%
# Sets of classes
# ---------------
# A set has as many classes as needed to contain the true class for 95 % of the
# rows that leave at an exit. Most sets have a single class. They have more
# classes if the exit is not confident.

from skexit.uncertainty import coverage_score, inefficiency_score

sets = policy.predict_set(logits_test, alpha=0.05)
names = load_cifar10_resnet56().target_names
for row in (1, 4, 10):
    print(f"exit {exits[row]}: {', '.join(names[sets[row]])}")
print(f"coverage: {100 * coverage_score(y_test, sets):.1f} %")
print(f"classes in a set: {inefficiency_score(sets):.2f}")

# %%
# With one threshold for all exits (``method="general"``), the coverage is
# correct over all rows, but not at each exit. With one threshold per exit, it
# is also correct at each exit:

import pandas as pd

used = [k for k in range(9) if (exits == k).sum() >= 50]
coverages = {}
for method in ("general", "gated"):
    sets = policy.predict_set(logits_test, alpha=0.05, method=method)
    coverages[method] = [
        coverage_score(
            y_test[exits == k], sets[exits == k], labels=policy.classes_
        )
        for k in used
    ]
pd.DataFrame(coverages, index=[f"exit {k}" for k in used]).round(3)

# %%
# For a higher coverage, sets are larger:

from skexit.plotting import CoverageDisplay

display = CoverageDisplay.from_estimator(
    policy, logits_test, y_test, methods=("general", "gated")
)
