"""Whole models as exits: the cheap ones first, the expensive ones for the samples that stay.

What decides who stays is in :mod:`skexit.policies`; a network that is cut into stages is in :mod:`skexit.runtime`.
"""

from skexit.cascade._cascade import ModelCascade

__all__ = ["ModelCascade"]
