"""The user's torch network: its modules, inputs, exits and costs, and the recording that divides it into stages.

Extraction, the live network and training share this package, which depends on neither caches nor policies.
"""

from skexit.utils._optional import optional_import

with optional_import("skexit.backbone reads networks of", "torch"):
    from skexit.backbone._costs import ExitCosts, exit_costs
    from skexit.backbone._exit_points import describe_exits, exit_points

__all__ = ["ExitCosts", "describe_exits", "exit_costs", "exit_points"]
