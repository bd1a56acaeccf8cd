"""The base class of live networks: a module that stays in evaluation mode."""

from __future__ import annotations

from typing import Self

from torch import nn


class EvaluationModule(nn.Module):
    """A module that cannot be trained."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode. A live network cannot be trained, so ``mode=True`` raises a RuntimeError."""
        if mode:
            name = type(self).__name__
            article = "an" if name[0] in "AEIOU" else "a"
            raise RuntimeError(
                f"{article} {name} cannot be trained. Train the plain network, and repeat extraction and fit."
            )
        return super().train(False)
