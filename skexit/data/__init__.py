"""X as scikit-learn sees it: rows of samples, columns of exits, and the layout that tells which are which.

Reading and validating X is here; storing it is in :mod:`skexit.cache._cache`.
"""

from skexit.data._arrays import ExitArray
from skexit.data._layout import ExitLayout
from skexit.data._stack import stack_exits

__all__ = ["ExitArray", "ExitLayout", "stack_exits"]
