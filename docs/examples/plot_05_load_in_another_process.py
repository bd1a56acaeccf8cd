"""
Load a saved policy in another process
======================================

A policy is often trained in one process and used in another. A fitted policy
consists of NumPy arrays, so a process that loads and applies it does not import
torch.
"""

# %%
# Fit and save
# ------------

from pathlib import Path
from tempfile import TemporaryDirectory

import joblib
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from skexit import ExitHeads, OptimalStoppingPolicy
from skexit.datasets import load_cifar10_resnet56

X, y = load_cifar10_resnet56(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.5, stratify=y, random_state=0
)

pipeline = make_pipeline(
    ExitHeads(random_state=0), OptimalStoppingPolicy(budget=0.6, random_state=0)
)
pipeline.fit(X_train, y_train)

temporary = TemporaryDirectory()
folder = Path(temporary.name)
joblib.dump(pipeline, folder / "policy.joblib", compress=3)
joblib.dump(X_test, folder / "X.joblib")
print((folder / "policy.joblib").stat().st_size, "bytes")

# %%
# Load and predict
# ----------------
# Another process writes its predictions and lists what it has imported:

import subprocess
import sys

import numpy as np

program = """
import sys
import time

import joblib
import numpy as np
import skexit

start = time.perf_counter()
pipeline = joblib.load("policy.joblib")
print(f"loaded in {time.perf_counter() - start:.3f} s")
np.save("predicted.npy", pipeline.predict(joblib.load("X.joblib")))
print("torch is imported:", "torch" in sys.modules)
"""


def run(program):
    command = [sys.executable, "-c", program]
    return subprocess.check_output(command, cwd=folder, text=True)


print(run(program))
predicted = np.load(folder / "predicted.npy")
same = np.array_equal(predicted, pipeline.predict(X_test))
print("the predictions are the same:", same)

# %%
# joblib files are pickles, and a pickle can run any code when it is loaded.
# Load only files that you trust. For other files, use skops: it creates only
# objects of the types that you trust, and refuses all others.

import skops.io

import skexit

skops.io.dump(pipeline, folder / "policy.skops")
loaded = skops.io.load(folder / "policy.skops", trusted=skexit.TRUSTED_TYPES)
same = np.array_equal(predicted, loaded.predict(X_test))
print("the predictions are the same:", same)

# %%
# The predictions are the same. This plot shows the exits of each class:

from skexit.plotting import ExitDistributionDisplay

display = ExitDistributionDisplay.from_estimator(loaded, X_test, y_test)

# %%
# Another version
# ---------------
# The file contains the version of skexit that wrote it. With another version,
# the policy may decide differently, so loading it raises a warning. Here, the
# other process has a newer version number:

program = """
import textwrap
import warnings

import joblib
import skexit

skexit._version.__version__ = "9.0"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    joblib.load("policy.joblib")
print(caught[-1].category.__name__)
print(textwrap.fill(str(caught[-1].message), 80))
"""
print(run(program))

# %%
# Another layout
# --------------
# The pipeline stores the layout that it was fitted on. An X with other exits,
# widths or classes raises an error, even if it has the same number of columns.
# If only the FLOPs differ, there is a warning. The fingerprint of a layout is
# short enough for the name of a file.

import textwrap

from skexit import stack_exits

X_other = stack_exits(features=[X_test.features(k) for k in range(8)])
print("fitted on", pipeline[0].layout_fingerprint_)
print("X_test is", X_test.layout.fingerprint)
print("X_other is", X_other.layout.fingerprint)
try:
    pipeline.predict(X_other)
except ValueError as error:
    print(textwrap.fill(str(error), 80))

temporary.cleanup()
