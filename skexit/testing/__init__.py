"""Checks that a policy of your own keeps the contract of all policies.

The contract is :class:`skexit.policies.ExitPolicy`; this package has the checks and their data. Only
`parametrize_policy_checks` imports pytest.
"""

from skexit.testing._run import check_policy, parametrize_policy_checks, policy_checks

__all__ = ["check_policy", "parametrize_policy_checks", "policy_checks"]
