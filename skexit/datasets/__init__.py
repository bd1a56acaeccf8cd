"""Data that comes with the package: logits and features of a real network at its exits."""

from skexit.datasets._cifar10_resnet56 import load_cifar10_resnet56

__all__ = ["load_cifar10_resnet56"]
