"""Exits assigned by expectation-maximisation, and routers that learn the assignment."""

from skexit.policies.em._assigner import EMExitAssigner

__all__ = ["EMExitAssigner"]
