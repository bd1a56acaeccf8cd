"""Data sets that benchmarks measure on, from files; CIFAR is downloaded where it is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

N_CLASSES_CIFAR100 = 100


def load_images(root: Path, part: str = "test", n_images: int | None = None) -> TensorDataset:
    """The first images of the part "train" or "test", as the network takes them, and their labels."""
    images, y = read_images(root, part)
    inputs = normalize(torch.from_numpy(images[:n_images]).permute(0, 3, 1, 2) / 255).contiguous()
    return TensorDataset(inputs, torch.from_numpy(y[:n_images].astype(np.int64)))


def read_images(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """All images of a part, of shape (n_images, 32, 32, 3), and their labels."""
    if (root / "cifar10.npz").exists():
        arrays = np.load(root / "cifar10.npz")
        return arrays[f"X_{part}"], arrays[f"y_{part}"]
    from torchvision.datasets import CIFAR10

    data = CIFAR10(root, train=part == "train", download=True)
    return data.data, np.asarray(data.targets)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Images of shape (..., 3, 32, 32), from 0 to 1, as the network takes them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / std[:, None, None]


def load_cifar100(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """All images of the part "train" or "test", of shape (n_images, 32, 32, 3), and their labels.

    From ``cifar100/*.webp`` in `root`, lossless mosaics of 32 x 32 tiles row by row, with the labels in
    ``cifar100/{part}_labels.npy``; where these are absent, as torchvision has them.
    """
    folder = root / "cifar100"
    if (folder / f"{part}_labels.npy").exists():
        tiles = [_read_tiles(path) for path in sorted(folder.glob(f"{part}_*.webp"))]
        return np.concatenate(tiles), np.load(folder / f"{part}_labels.npy").astype(np.int64)
    from torchvision.datasets import CIFAR100

    data = CIFAR100(root, train=part == "train", download=True)
    return data.data, np.asarray(data.targets)


def _read_tiles(path: Path) -> np.ndarray:
    from PIL import Image

    mosaic = np.asarray(Image.open(path).convert("RGB"))
    tiles = mosaic.reshape(-1, 32, mosaic.shape[1] // 32, 32, 3).swapaxes(1, 2)
    return tiles.reshape(-1, 32, 32, 3)


def long_tail_rows(y: np.ndarray, imbalance: float = 100, n_largest: int = 500) -> np.ndarray:
    """Rows of the long-tailed CIFAR-100: of class c, the first ``n_largest / imbalance ** (c / 99)`` images.

    Parameters
    ----------
    y : ndarray of shape (n_images,)
        Labels of the training images, 0 to 99.
    imbalance : float, default=100
        Images of the first class for one of the last.
    n_largest : int, default=500
        Images of the first class.

    Returns
    -------
    ndarray of shape (n_rows,)
        In rising order.
    """
    last = N_CLASSES_CIFAR100 - 1
    rows = [np.flatnonzero(y == c)[: int(n_largest * imbalance ** (-c / last))] for c in range(last + 1)]
    return np.sort(np.concatenate(rows))


def load_sst2(root: Path, part: str) -> tuple[list[str], np.ndarray]:
    """Sentences of the part "train", "dev" or "test" of SST-2, and whether they are positive."""
    return _read_texts(root / "sst2" / f"{part}.tsv")


def load_ag_news(root: Path, part: str) -> tuple[list[str], np.ndarray]:
    """Descriptions of news in the part "train" or "test" of AG News, and their classes, 0 to 3."""
    return _read_texts(root / "ag_news" / f"{part}.tsv")


def _read_texts(path: Path) -> tuple[list[str], np.ndarray]:
    """A text, a tab and a label a line."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is needed, with lines of a text, a tab and the number of its class.")
    with path.open(encoding="utf-8") as file:
        lines = [line.rsplit("\t", 1) for line in file]
    y = np.array([int(label) for _, label in lines])
    return [text for text, _ in lines], y - y.min()
