"""What every live network is: a module that stays in evaluation mode."""

from __future__ import annotations

from typing import Self

from torch import nn


class EvaluationModule(nn.Module):
    """A module that cannot be trained."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: what stops early cannot be trained, so that `mode=True` is a RuntimeError."""
        if mode:
            name = type(self).__name__
            article = "an" if name[0] in "AEIOU" else "a"
            raise RuntimeError(f"{article} {name} cannot be trained; train the network, and extract and fit again.")
        return super().train(False)
