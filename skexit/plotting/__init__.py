"""Displays of policies and their predictions. matplotlib is imported only when something is drawn."""

from skexit.plotting._accuracy_cost import AccuracyCostDisplay
from skexit.plotting._coverage import CoverageDisplay
from skexit.plotting._exit_distribution import ExitDistributionDisplay
from skexit.plotting._exit_scores import ExitScoreDisplay
from skexit.plotting._monitor import MonitorDisplay
from skexit.plotting._reliability import ReliabilityDisplay

__all__ = [
    "AccuracyCostDisplay",
    "CoverageDisplay",
    "ExitDistributionDisplay",
    "ExitScoreDisplay",
    "MonitorDisplay",
    "ReliabilityDisplay",
]
