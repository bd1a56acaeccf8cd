"""Labels of a live network: a tensor of numbers, or an array of names."""

import numpy as np
import pytest
import torch
from torch import nn

from skexit import ThresholdPolicy, stack_exits
from skexit.runtime import EarlyExitModel


@pytest.mark.parametrize("classes", [[0, 1, 2], [7, 3, 5], ["cat", "dog", "eel"]])
def test_the_array_of_labels_for_any_classes(classes):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 3)).eval()
    x, y = torch.randn(60, 8), np.asarray(classes)[np.arange(60) % 3]
    with torch.no_grad():
        logits = torch.stack([network[0](x), network(x)], 1).numpy()
    X = stack_exits(logits, classes=classes)
    live = EarlyExitModel(network, ["0", "1"], ThresholdPolicy(budget=0.8).fit(X, y), head=["0", "1"])
    labels, probabilities, _ = live(x)
    assert isinstance(labels, np.ndarray if isinstance(classes[0], str) else torch.Tensor)
    as_array = live.classes[probabilities.argmax(1).cpu()]
    assert isinstance(as_array, np.ndarray)
    np.testing.assert_array_equal(as_array, np.asarray(labels))
    np.testing.assert_array_equal(as_array, live.policy.predict(X))
