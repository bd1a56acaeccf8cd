"""Live networks that stop where a policy says."""

from skexit.runtime.batch import ExitOutput
from skexit.runtime.early_exit import EarlyExitModel

__all__ = ["EarlyExitModel", "ExitOutput"]
