"""
A day of traffic that changes
=============================

In the middle of the day, images become noisy, blurred and pale. With fixed
thresholds, the policy exceeds its budget. A controller keeps the budget, and a
monitor raises an alarm. Both work without labels.
"""

# %%
# A stream with a corrupted middle
# --------------------------------
# The features of the four exits are the first two, four, six and eight rows of
# pixels of a digit. The stream has 6,000 images. Those from 2,000 to 4,000 are
# corrupted in one of three ways.

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skexit import ExitHeads, ThresholdPolicy, make_exit_pipeline, stack_exits

rng = np.random.default_rng(0)
digits = load_digits()
images, new, y, y_new = train_test_split(
    digits.images, digits.target, train_size=1000, random_state=0
)
images, reference, y, y_reference = train_test_split(
    images, y, train_size=400, random_state=0
)


def corrupt(images):
    corruption = rng.integers(3, size=len(images))[:, None, None]
    noisy = images + rng.normal(scale=0.5, size=images.shape)
    blurred = gaussian_filter(images, sigma=(0, 0.6, 0.6))
    pale = 0.7 * images
    return np.choose(corruption, [noisy, blurred, pale])


def as_exits(images):
    pixels = images.reshape(len(images), -1)
    return stack_exits(features=[pixels[:, : 16 * k] for k in (1, 2, 3, 4)])


rows = rng.integers(len(new), size=6000)
stream, y_stream = new[rows], y_new[rows]
stream[2000:4000] = corrupt(stream[2000:4000])
X_stream = as_exits(stream)

# %%
# Fixed thresholds and a controller
# ---------------------------------
# The policy may spend 65 % of the network's cost on average.

from skexit.monitoring import BudgetController

pipeline = make_exit_pipeline(
    ExitHeads(random_state=0), ThresholdPolicy(budget=0.65)
)
pipeline.fit(as_exits(images), y)
controller = BudgetController(pipeline)
exits = {
    "fixed thresholds": pipeline.predict_exit(X_stream),
    "controller": controller.predict_exit(X_stream),
}
at_exits = pipeline.predict_at_exits(X_stream)
for name, own in exits.items():
    cost = pipeline.costs_[own]
    correct = at_exits[np.arange(len(own)), own] == y_stream
    print(
        f"{name:<16} cost: {100 * cost[2000:4000].mean():.1f} % (corrupted), "
        f"{100 * cost.mean():.1f} % (all), "
        f"accuracy: {100 * correct.mean():.1f} %"
    )

# %%
# The controller adapts within a few hundred images, and meets the budget over
# the day. The fixed thresholds are more accurate, because they spend more.

import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
heights = {"fixed thresholds": 74, "controller": 62.5}
for (name, own), color in zip(
    exits.items(), ("#D55E00", "#0072B2"), strict=True
):
    cost = np.convolve(pipeline.costs_[own], np.ones(300) / 300, mode="valid")
    ax.plot(np.arange(300, 6001), 100 * cost, color=color)
    ax.text(4100, heights[name], name, color=color)
ax.axhline(65, color="black", linestyle="--", linewidth=1)
ax.axvspan(2000, 4000, color="gray", alpha=0.15)
ax.text(3000, ax.get_ylim()[0], "corrupted", ha="center", va="bottom")
_ = ax.set(xlabel="Images", ylabel="Mean cost of the last 300 (%)")

# %%
# The monitor
# -----------
# The monitor compares exits and cost with 600 reference images, and raises an
# alarm. If nothing changes, the probability of an alarm is at most 1 %, however
# long the stream is.

import warnings

from skexit.monitoring import ExitMonitor
from skexit.plotting import MonitorDisplay

monitor = ExitMonitor(pipeline, as_exits(reference), y_reference)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    monitor.update(exits["fixed thresholds"])
print(monitor.advice)
display = MonitorDisplay.from_monitor(monitor, budget=0.65)
