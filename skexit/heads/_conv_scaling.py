"""Standardisation of the features of an exit: each channel of a map as a whole, other features one by one."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from skexit._nn._dense import Moments
from skexit._nn._mini_batches import batches, enough_in_order
from skexit.data import ExitArray
from skexit.data._layout_checks import FeatureMap
from skexit.data._validation import read_features

Floats = NDArray[np.float64]

#: Largest number of values that are read at once.
_CHUNK_NUMBERS = 2**22


@dataclass(frozen=True)
class HeadScaling:
    """Means and standard deviations of the channels of a map and of the other features.

    A constant channel or feature has a standard deviation of 1.
    """

    place: FeatureMap
    channels: tuple[Floats, Floats]
    others: tuple[Floats, Floats]

    def columns(self) -> tuple[Floats, Floats]:
        """Means and standard deviations of all features, in the order of the columns."""
        first, _, height, width = self.place
        mean, scale = (
            np.concatenate([others[:first], np.repeat(channels, height * width), others[first:]])
            for channels, others in zip(self.channels, self.others, strict=True)
        )
        return mean, scale


def head_scaling(X: ExitArray, k: int, place: FeatureMap) -> HeadScaling:
    """Standardisation of the features of exit `k`, computed from up to 100,000 rows."""
    first, n_channels, *sides = place
    map_columns = slice(first, first + n_channels * prod(sides))
    channels, others = Moments(), Moments()
    n_rows = max(1, _CHUNK_NUMBERS // X.layout.n_features[k])
    for rows in batches(enough_in_order(np.arange(len(X))), n_rows):
        features = read_features(X, k, rows)
        maps = features[:, map_columns].reshape(-1, n_channels, prod(sides))
        places = maps.swapaxes(1, 2).reshape(-1, n_channels)
        channels = channels.add(places, np.ones(len(places)))
        others = others.add(np.delete(features, map_columns, axis=1), np.ones(len(features)))
    return HeadScaling(place, channels.scaling(), others.scaling())
