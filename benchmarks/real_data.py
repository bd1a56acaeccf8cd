"""Data sets that benchmarks measure on, from files; CIFAR-100 is downloaded where it is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np

N_CLASSES_CIFAR100 = 100


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
