"""The data and the network of the demo. The network is small, and its last stage takes most of the time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm import tqdm

from skexit.utils._threads import one_torch_thread

#: Channels, stride and number of blocks of each stage.
_STAGES = [(8, 1, 1), (12, 1, 1), (32, 2, 2), (40, 1, 9)]
EXITS = ["stage1", "stage2", "stage3", "stage4"]
_BATCH_SIZE = 60
#: The network is trained on so many copies of each image, at different places.
_N_PLACES = 60
#: Height and width of the inputs, in pixels.
_CANVAS = 16


@dataclass(frozen=True)
class Digits:
    """Images of shape (n_samples, 1, 16, 16), and labels of shape (n_samples,)."""

    images: torch.Tensor
    y: torch.Tensor


def split_digits(seed: int) -> tuple[Digits, Digits, Digits]:
    """Separate images to train the network, to fit the policies and to test."""
    digits = load_digits()
    network, rest, network_y, rest_y = train_test_split(
        digits.images, digits.target, train_size=600, stratify=digits.target, random_state=seed
    )
    fit, test, fit_y, test_y = train_test_split(rest, rest_y, train_size=600, stratify=rest_y, random_state=seed)
    rng = np.random.default_rng(seed)
    copies = np.tile(network, (_N_PLACES, 1, 1)), np.tile(network_y, _N_PLACES)
    return _scatter(*copies, rng), _scatter(fit, fit_y, rng), _scatter(test, test_y, rng)


def _scatter(images: NDArray[np.float64], y: NDArray[np.int64], rng: np.random.Generator) -> Digits:
    """Put each 8 x 8 image at a random place of a 16 x 16 image, with more or less noise, so that some are harder."""
    noise = rng.uniform(0.05, 0.15, size=(len(images), 1, 1, 1))
    canvas = noise * rng.normal(size=(len(images), 1, _CANVAS, _CANVAS))
    for row, (top, left) in enumerate(rng.integers(0, _CANVAS - 7, size=(len(images), 2))):
        canvas[row, 0, top : top + 8, left : left + 8] += images[row] / 16
    return Digits(torch.from_numpy(canvas.astype(np.float32)), torch.from_numpy(y))


class _Block(nn.Module):
    """Two convolutions and a skip connection."""

    def __init__(self, n_inputs: int, n_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_outputs)
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_outputs)
        self.shortcut = nn.Identity() if n_inputs == n_outputs else nn.Conv2d(n_inputs, n_outputs, 1, stride)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))


def _make_network() -> nn.Sequential:
    """A convolution with stride 2, and four stages of residual blocks."""
    network = nn.Sequential()
    network.add_module("stem", nn.Sequential(nn.Conv2d(1, 16, 3, 2, padding=1), nn.BatchNorm2d(16), nn.ReLU()))
    n_inputs = 16
    for stage, (width, stride, n_blocks) in enumerate(_STAGES, start=1):
        blocks = [_Block(n_inputs, width, stride), *[_Block(width, width, 1) for _ in range(n_blocks - 1)]]
        network.add_module(f"stage{stage}", nn.Sequential(*blocks))
        n_inputs = width
    network.add_module("classifier", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_inputs, 10)))
    return network


def train_network(data: Digits, *, seed: int, progress: bool) -> nn.Module:
    """Train the network for one epoch."""
    with torch.random.fork_rng(), one_torch_thread():
        torch.manual_seed(seed)
        # With channels last and a fused optimizer, a step takes four fifths of the time.
        network = _make_network().to(memory_format=torch.channels_last)
        batches = torch.randperm(len(data.y)).split(_BATCH_SIZE)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=len(batches))
        for batch in tqdm(batches, desc="     training", unit="batch", leave=False, disable=None if progress else True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(data.images[batch]), data.y[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.to(memory_format=torch.contiguous_format).eval()
