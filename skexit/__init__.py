"""Stop neural networks early: exit policies as scikit-learn estimators."""

from skexit.arrays import ExitArray, stack_exits
from skexit.cache import FeatureCache
from skexit.layout import ExitLayout

__version__ = "0.1.0"

__all__ = ["ExitArray", "ExitLayout", "FeatureCache", "stack_exits"]
