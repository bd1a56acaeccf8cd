"""
A live network that stops
=========================

Make a torch network stop early: train it, extract features, fit a policy, and
run the network so that each sample stops at the exit that the policy chooses.
"""

# %%
# A small network
# ---------------
# The data are scikit-learn's digits. Noise covers some of them, so that some
# are easy and some are hard. Any torch network can be used. This one is trained
# in seconds.

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

images, y = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
noise = rng.normal(size=images.shape) * rng.exponential(4, size=(len(y), 1))
images = torch.tensor((images + noise) / 16, dtype=torch.float32)
images, y = images.reshape(-1, 1, 8, 8), torch.tensor(y)


def block(n_in, n_out, stride=1):
    convolution = nn.Conv2d(n_in, n_out, 3, stride, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU())


torch.manual_seed(0)
network = nn.Sequential(
    block(1, 16), block(16, 32, 2), block(32, 64), block(64, 64), nn.Flatten()
)
network.append(nn.Linear(64 * 16, 10))
optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
for _ in range(6):
    for rows in torch.randperm(700).split(50):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images[rows]), y[rows])
        loss.backward()
        optimizer.step()

# %%
# Run it once
# -----------
# The exits are names of modules. The extractor runs the network over images
# that it was not trained on, and stores the outputs of these modules. It also
# counts the cost of each exit.

from tempfile import TemporaryDirectory

from torch.utils.data import DataLoader, TensorDataset

from skexit.extraction import ExitExtractor

exits = ["0", "1", "2", "3"]
folder = TemporaryDirectory()
loader = DataLoader(TensorDataset(images[700:1250], y[700:1250]), batch_size=50)
extractor = ExitExtractor(network, exits=exits)
cache = extractor.extract(loader, folder.name, progress=False)
print(cache.X, cache.layout.cost_fractions.round(2))

# %%
# Fit a policy
# ------------

from sklearn.pipeline import make_pipeline

from skexit import ExitHeads, ThresholdPolicy

pipeline = make_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.6))
pipeline.fit(cache.X, cache.y)

# %%
# The live network
# ----------------
# :class:`~skexit.runtime.EarlyExitModel` calls the network's own modules, stage
# by stage. After each exit, the samples that leave are removed from the batch.

from skexit.runtime import EarlyExitModel

test_images, test_y = images[1250:], y[1250:]
live = EarlyExitModel(network, exits, pipeline, example_input=test_images[:1])
labels, probabilities, stops = live(test_images)

with torch.inference_mode():
    plain = network.eval()(test_images).argmax(dim=1)
for name, predicted in (("network", plain), ("live", labels)):
    accuracy = 100 * (predicted == test_y).double().mean()
    print(f"accuracy of {name}: {accuracy:.1f} %")
print(f"mean cost: {100 * pipeline[-1].costs_[stops].mean():.1f} %")

# %%
# A hook counts the images that reach each block.

seen = []
hooks = [
    network[k].register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    for k in range(4)
]
live(test_images)
for hook in hooks:
    hook.remove()
print("images in each block:", seen)

# %%
# Its exits are the same as those of the policy on a cache of the same images:

test_folder = TemporaryDirectory()
loader = DataLoader(TensorDataset(test_images, test_y), batch_size=50)
test_cache = extractor.extract(loader, test_folder.name, progress=False)
logits = pipeline[0].transform(test_cache.X)
print(np.array_equal(pipeline[-1].predict_exit(logits), stops.numpy()))

# %%
# Easy and hard
# -------------
# These digits left at the first exit in use, and at the last exit:

import matplotlib.pyplot as plt

figure, axes = plt.subplots(2, 8, figsize=(6.4, 1.9), layout="constrained")
for axes_row, exit, title in (
    (axes[0], int(stops.min()), "first"),
    (axes[1], 3, "last"),
):
    axes_row[0].set_ylabel(title)
    for ax, row in zip(
        axes_row, torch.nonzero(stops == exit)[:8, 0], strict=False
    ):
        ax.imshow(test_images[row, 0], cmap="gray_r")
        ax.set(xticks=[], yticks=[])

folder.cleanup()
test_folder.cleanup()
