"""Whole models as exits: cheap models run first, and expensive models run for the samples that continue.

Policies in :mod:`skexit.policies` decide which samples continue. :mod:`skexit.runtime` divides networks into stages.
"""

from skexit.cascade._cascade import ModelCascade

__all__ = ["ModelCascade"]
