"""Exits of a network that does not exist: as many as wanted, of any size, more often right the later they are."""

from __future__ import annotations

import numpy as np

from skexit import ExitArray, ExitLayout

N_FEATURES = 32


def make_exits(n_rows: int, n_exits: int, n_classes: int) -> tuple[ExitArray, np.ndarray]:
    """Logits and features of all exits, as rows of one array of float32, and labels.

    The logit of the right class grows from exit to exit, by noise that all exits share in part and
    that is larger for some samples than for others; the last is right for about nine in ten samples,
    whatever the number of classes. Features are a random projection of the logits, with noise.
    """
    rng = np.random.default_rng(0)
    y = rng.integers(n_classes, size=n_rows)
    layout = ExitLayout([n_classes] * n_exits, [N_FEATURES] * n_exits)
    X = np.empty((n_rows, layout.n_columns), np.float32)
    difficulty = rng.exponential(size=(n_rows, 1))
    common = rng.standard_normal((n_rows, n_classes), dtype=np.float32)
    needed = 2 + np.log(n_classes)
    projection = rng.standard_normal((n_classes, N_FEATURES), dtype=np.float32) / np.sqrt(n_classes)
    for k in range(n_exits):
        noise = 0.8 * common + 0.6 * rng.standard_normal((n_rows, n_classes), dtype=np.float32)
        logits = (0.4 + 0.6 * difficulty) * noise
        logits[np.arange(n_rows), y] += needed * (k + 1) / n_exits
        X[:, layout.logit_columns(k)] = logits
        X[:, layout.feature_columns(k)] = logits @ projection + rng.standard_normal((n_rows, N_FEATURES))
    return ExitArray.from_array(X, layout), y
