"""Hypothesis: the same examples in every run, and no deadline on shared machines. No waiting for the disk.

``pytest --round-otherwise`` lets networks round otherwise in each batch size.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many tests run at a time as there are cores: threads of their own would only wait for each other.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import pytest
from hypothesis import settings

settings.register_profile("skexit", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("skexit")


def pytest_addoption(parser):
    parser.addoption("--round-otherwise", action="store_true", help="networks round otherwise in each batch size")


@pytest.fixture(autouse=True, scope="session")
def rounding(request):
    """What must agree between batch sizes, processors, cache and live network may not hang on the last bits."""
    if request.config.getoption("--round-otherwise"):
        from rounding import round_otherwise

        with round_otherwise():
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What is on its way to the disk is lost when the machine fails, and in no test; hundreds of small caches wait long."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
