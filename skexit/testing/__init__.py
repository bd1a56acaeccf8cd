"""Checks that hold a policy of your own to the contract of every policy.

The checks and their data are here; the contract is :class:`skexit.policies.ExitPolicy`. pytest is imported only by
`parametrize_policy_checks`.
"""

from skexit.testing._run import check_policy, parametrize_policy_checks, policy_checks

__all__ = ["check_policy", "parametrize_policy_checks", "policy_checks"]
