"""EENet: exit utilities and exit assignments, learned together for a budget."""

from skexit.policies.eenet._policy import EENetPolicy

__all__ = ["EENetPolicy"]
