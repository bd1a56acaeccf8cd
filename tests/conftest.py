"""Hypothesis: the same examples in every run, and no deadline on shared machines."""

from hypothesis import settings

settings.register_profile("skexit", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("skexit")
