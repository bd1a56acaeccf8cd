"""Exit assignments found by expectation-maximisation, and routers that learn the assignments."""

from skexit.policies.em._assigner import EMExitAssigner

__all__ = ["EMExitAssigner"]
