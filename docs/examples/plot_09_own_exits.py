"""
A network with exits of its own
===============================

MSDNet, BranchyNet and similar networks return the logits of several exits. Such
a network needs no heads: skexit finds its exits from its outputs, fits a policy
on its logits, and the live network skips layers that no sample needs.
"""

# %%
# A list of logits
# ----------------
# The data are scikit-learn's digits, some of them covered by noise. The small
# network has a classifier after each block. Classifiers and blocks are trained
# together, with a weighted sum of the losses of all exits.

import torch
from sklearn.datasets import load_digits
from torch import nn

from skexit.training import joint_cross_entropy

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
labels = torch.tensor(labels)
amount = torch.empty(len(images), 1, 1, 1).exponential_(5)
images = images + amount * torch.randn(images.shape)


def block(n_in, n_out, stride=1):
    convolution = nn.Conv2d(n_in, n_out, 3, stride, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU())


class BranchyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = block(1, 16)
        self.blocks = nn.ModuleList(
            [block(16, 16), block(16, 16), block(16, 32, 2), block(32, 32)]
        )
        self.classifiers = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10)
            )
            for width in [16, 16, 32, 32]
        )

    def forward(self, x):
        x, logits = self.stem(x), []
        for block, classifier in zip(
            self.blocks, self.classifiers, strict=True
        ):
            x = block(x)
            logits.append(classifier(x))
        return logits


network = BranchyNetwork()
optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
for _ in range(15):
    for rows in torch.randperm(700).split(50):
        optimizer.zero_grad()
        joint_cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()

# %%
# The logits may also be a tuple, ``(last, [early, ...])``, a dict, a dataclass,
# or one tensor of shape (n_samples, n_exits, n_classes).
#
# Where can it stop?
# ------------------
# One batch is enough to find out. Each of the network's logits belongs to an
# exit, and the cost of an exit includes its classifier.

from skexit.backbone import describe_exits, exit_costs, exit_points

network.eval()
exits = exit_points(network, example_input=images[:2])
print(exits)
places = describe_exits(network, images[:2])
print(places.loc[places["name"].isin(exits), ["name", "shape", "live"]])
print("costs:", exit_costs(network, exits, images[:2]).costs)

# %%
# Run it once
# -----------
# Run the network over images that it was not trained on. The cache contains the
# logits of each exit, and the pooled outputs of the blocks.

from tempfile import TemporaryDirectory

from skexit.extraction import ExitExtractor

folder = TemporaryDirectory()
loader = [(images[700:1250], labels[700:1250])]
extractor = ExitExtractor(network, example_input=images[:2])
cache = extractor.extract(loader, folder.name, progress=False)
print(cache.X)
for k, name in enumerate(extractor.exits):
    accuracy = (cache.X.logits(k).argmax(1) == cache.y).mean()
    print(f"{name}: {100 * accuracy:.1f} %")

# %%
# A policy on the network's own logits
# ------------------------------------
# No heads are fitted, because every exit has logits.

from skexit import OptimalStoppingPolicy

policy = OptimalStoppingPolicy(budget=0.5).fit(cache.X, cache.y)

# %%
# The live network
# ----------------
# It calls the blocks and classifiers of the network only for the samples that
# have not left.

from skexit.runtime import EarlyExitModel

test_images, test_labels = images[1250:], labels[1250:]
live = EarlyExitModel(
    network, extractor.exits, policy, example_input=images[:2]
)
answers, probabilities, stops = live(test_images)
with torch.inference_mode():
    last = network(test_images)[-1].argmax(1)
for name, predicted in (("network", last), ("live", answers)):
    accuracy = 100 * (predicted == test_labels).double().mean()
    print(f"accuracy of {name}: {accuracy:.1f} %")
print(f"mean cost: {100 * policy.costs_[stops].mean():.0f} %")

# %%
# Samples leave at the same exits as on cached rows:

test_folder = TemporaryDirectory()
test_cache = extractor.extract(
    [(test_images, test_labels)], test_folder.name, progress=False
)
print((policy.predict_exit(test_cache.X) == stops.numpy()).mean())

# %%
# Budgets
# -------
# The plot compares the policy with a single exit for all samples:

from skexit import StaticExit
from skexit.plotting import AccuracyCostDisplay

budgets = [0.35, 0.4, 0.45, 0.5]
policies = {
    "optimal stopping": [policy.with_budget(budget) for budget in budgets],
    "single exits": [
        StaticExit(k).fit(cache.X, cache.y) for k in range(len(extractor.exits))
    ],
}
display = AccuracyCostDisplay.from_estimators(
    policies, test_cache.X, test_labels.numpy()
)

folder.cleanup()
test_folder.cleanup()
