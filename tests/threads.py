"""Threads that meet in the middle of what they do."""

import sys
from contextlib import contextmanager


@contextmanager
def frequent_switches():
    """Switch between threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
