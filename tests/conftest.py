"""Hypothesis: the same examples in every run, and no deadline on shared machines. No waiting for the disk."""

import os

import pytest
from hypothesis import settings

settings.register_profile("skexit", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("skexit")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What is on its way to the disk is lost when the machine fails, and in no test; hundreds of small caches wait long."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
