"""The ResNet for CIFAR of He et al. (2016): three stages, 16 to 64 channels, shortcuts without weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut; where the width doubles, the shortcut is padded with zeros."""

    def __init__(self, n_inputs: int, n_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_outputs)
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_outputs)
        self.stride = stride
        self.padding = (n_outputs - n_inputs) // 2

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.bn1(self.conv1(inputs)))
        shortcut = inputs[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(self.bn2(self.conv2(hidden)) + shortcut)


class ResNetCIFAR(nn.Module):
    """A ResNet with `n_blocks` blocks in each of three stages."""

    def __init__(self, n_blocks: int, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, n_blocks)
        self.layer2 = _stage(16, 32, 2, n_blocks)
        self.layer3 = _stage(32, 64, 2, n_blocks)
        self.linear = nn.Linear(64, n_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.bn1(self.conv1(inputs)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(hidden.mean((2, 3)))


def _stage(n_inputs: int, n_outputs: int, stride: int, n_blocks: int) -> nn.Sequential:
    first = BasicBlock(n_inputs, n_outputs, stride)
    return nn.Sequential(first, *[BasicBlock(n_outputs, n_outputs, 1) for _ in range(n_blocks - 1)])


def resnet56() -> ResNetCIFAR:
    """Nine blocks a stage."""
    return ResNetCIFAR(n_blocks=9)
