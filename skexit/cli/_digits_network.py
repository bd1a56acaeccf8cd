"""The network of the demo: deep enough that a stage takes longer than an exit."""

from __future__ import annotations

import torch
from torch import nn

from skexit.utils._threads import one_torch_thread

#: Channels, stride and blocks of each stage.
_STAGES = [(16, 1, 1), (24, 1, 4), (48, 2, 6), (48, 1, 8)]
_BATCH_SIZE = 40


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

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
    """Four stages, each deeper than the one before, after a layer that halves the canvas."""
    network = nn.Sequential()
    network.add_module("stem", nn.Sequential(nn.Conv2d(1, 16, 3, 2, padding=1), nn.BatchNorm2d(16), nn.ReLU()))
    n_inputs = 16
    for stage, (width, stride, n_blocks) in enumerate(_STAGES, start=1):
        blocks = [_Block(n_inputs, width, stride), *[_Block(width, width, 1) for _ in range(n_blocks - 1)]]
        network.add_module(f"stage{stage}", nn.Sequential(*blocks))
        n_inputs = width
    network.add_module("classifier", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_inputs, 10)))
    return network


def train_network(images: torch.Tensor, y: torch.Tensor, *, seed: int) -> nn.Module:
    """Train the network, for one epoch, as each of the few images is there at many places."""
    with torch.random.fork_rng(), one_torch_thread():
        torch.manual_seed(seed)
        network = _make_network()
        batches = torch.randperm(len(y)).split(_BATCH_SIZE)
        optimizer = torch.optim.AdamW(network.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=len(batches))
        for batch in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()
