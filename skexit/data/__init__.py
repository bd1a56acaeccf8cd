"""X as scikit-learn takes it: one row per sample, columns of exits, and the layout that assigns columns to exits.

This package reads and validates X; :mod:`skexit.cache` stores it.
"""

from skexit.data._arrays import ExitArray
from skexit.data._layout import ExitLayout
from skexit.data._stack import stack_exits

__all__ = ["ExitArray", "ExitLayout", "stack_exits"]
