"""Keep a budget or a risk while inputs change, and detect such changes."""

from skexit.monitoring._budget import BudgetController
from skexit.monitoring._monitor import ExitMonitor
from skexit.monitoring._prometheus import prometheus_collector
from skexit.monitoring._risk import RiskController

__all__ = ["BudgetController", "ExitMonitor", "RiskController", "prometheus_collector"]
