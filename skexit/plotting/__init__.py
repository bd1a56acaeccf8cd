"""Pictures of what a policy does. matplotlib is imported when something is drawn."""

from skexit.plotting.accuracy_cost import AccuracyCostDisplay
from skexit.plotting.coverage import CoverageDisplay
from skexit.plotting.exit_distribution import ExitDistributionDisplay
from skexit.plotting.exit_scores import ExitScoreDisplay
from skexit.plotting.reliability import ReliabilityDisplay

__all__ = [
    "AccuracyCostDisplay",
    "CoverageDisplay",
    "ExitDistributionDisplay",
    "ExitScoreDisplay",
    "ReliabilityDisplay",
]
