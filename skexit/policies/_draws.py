"""Random numbers that follow from a sample itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skexit.utils._array_api import array_namespace, as_like
from skexit.utils._module_names import set_module


@set_module("skexit.persistence")
@dataclass(frozen=True)
class SampleDraws:
    """Draws from [0, 1) that a sample's logits at the first exit determine.

    The same sample gets the same draws, alone or in a batch, cached or in the live network.

    Parameters
    ----------
    projection : ndarray of shape (n_classes,)
    phases : tuple of float, one an exit
    """

    projection: NDArray[np.float64]
    phases: tuple[float, ...]

    @classmethod
    def from_seed(cls, n_classes: int, n_exits: int, random_state: np.random.RandomState) -> SampleDraws:
        """Draws that `random_state` seeds.

        Parameters
        ----------
        n_classes, n_exits : int
        random_state : RandomState

        Returns
        -------
        SampleDraws
        """
        projection = random_state.normal(size=n_classes)
        return cls(projection, tuple(random_state.uniform(0, 2 * np.pi, size=n_exits).tolist()))

    def project(self, logits: Any) -> Any:
        """One number a sample, from its logits at the first exit.

        Parameters
        ----------
        logits : array of shape (n_samples, n_classes)

        Returns
        -------
        array of shape (n_samples,)
        """
        return logits @ as_like(self.projection, logits)

    def __call__(self, k: int, projected: Any) -> Any:
        """Draws of exit `k`.

        Parameters
        ----------
        k : int
        projected : array of shape (n_samples,)
            What `project` gave.

        Returns
        -------
        array of shape (n_samples,)
        """
        xp = array_namespace(projected)
        # The fractional part of a steep sine looks uniform and needs no generator with a state.
        draws = 1e4 * xp.sin(projected + self.phases[k])
        return draws - xp.floor(draws)
