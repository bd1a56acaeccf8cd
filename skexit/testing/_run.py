"""Run the checks: all at once, or one by one under pytest."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import SkipTest

from sklearn.exceptions import SkipTestWarning

from skexit.policies import ExitPolicy
from skexit.testing._checks import CHECKS
from skexit.testing._fits import PolicyFits


def policy_checks(policy: ExitPolicy) -> Iterator[tuple[ExitPolicy, Callable[[ExitPolicy], None]]]:
    """Every check of a policy.

    The checks share their fits.

    Parameters
    ----------
    policy : ExitPolicy
        Not fitted. Copies are fitted to small data, with 0 for each ``random_state`` that is not an integer.

    Yields
    ------
    policy : ExitPolicy
        The policy that was passed.
    check : callable
        Takes the policy. Raises an AssertionError with a cure if the policy fails the check, or ``unittest.SkipTest``
        if a package is missing. Its ``__name__`` is the name of the check.

    Raises
    ------
    TypeError
        If `policy` is not an instance of ExitPolicy.

    Examples
    --------
    >>> from skexit import ThresholdPolicy
    >>> from skexit.testing import policy_checks
    >>> for policy, check in policy_checks(ThresholdPolicy()):
    ...     if check.__name__ == "check_causal":
    ...         check(policy)
    """
    if not isinstance(policy, ExitPolicy):
        raise TypeError(f"policy={policy!r} must be an instance of a subclass of skexit.policies.ExitPolicy.")
    fits = PolicyFits(policy)
    for check in CHECKS:
        yield policy, _bind(check, fits)


def check_policy(policy: ExitPolicy) -> None:
    """Check that a policy keeps the contract of all policies.

    The contract of all estimators is checked by scikit-learn's ``check_estimator``.

    Parameters
    ----------
    policy : ExitPolicy
        Not fitted. Copies are fitted to small data, with 0 for each ``random_state`` that is not an integer.

    Raises
    ------
    AssertionError
        If a check fails, at the first one. The error names the policy, the check and a cure.

    Warns
    -----
    SkipTestWarning
        If torch is not installed: one check needs it.

    Examples
    --------
    >>> from skexit import ThresholdPolicy
    >>> from skexit.testing import check_policy
    >>> check_policy(ThresholdPolicy(budget=0.6))
    """
    for _, check in policy_checks(policy):
        try:
            check(policy)
        except SkipTest as skipped:
            warnings.warn(str(skipped), SkipTestWarning, stacklevel=2)


def parametrize_policy_checks(policies: Iterable[ExitPolicy]) -> Any:
    """Decorate a test that runs every check of every policy under pytest.

    Parameters
    ----------
    policies : iterable of ExitPolicy
        As in `check_policy`.

    Returns
    -------
    pytest.MarkDecorator
        For a test with the arguments `policy` and `check`.

    See Also
    --------
    sklearn.utils.estimator_checks.parametrize_with_checks : Checks of all estimators.

    Examples
    --------
    >>> from skexit import ThresholdPolicy
    >>> from skexit.testing import parametrize_policy_checks
    >>> @parametrize_policy_checks([ThresholdPolicy(), ThresholdPolicy("entropy", budget=0.6)])
    ... def test_contract(policy, check):
    ...     check(policy)
    """
    import pytest

    return pytest.mark.parametrize(
        ("policy", "check"),
        [
            pytest.param(policy, check, id=f"{_name(policy)}-{check.__name__}")
            for one in policies
            for policy, check in policy_checks(one)
        ],
    )


def _bind(check: Callable[[PolicyFits], None], fits: PolicyFits) -> Callable[[ExitPolicy], None]:
    """The check as a function of the policy, with the shared fits."""

    @functools.wraps(check)
    def run(policy: ExitPolicy) -> None:
        try:
            check(fits if policy is fits.policy else PolicyFits(policy))
        except AssertionError as error:
            raise AssertionError(f"{_name(policy)} does not pass {check.__name__}: {error}") from error
        except SkipTest:
            raise
        except Exception as error:
            error.add_note(f"{_name(policy)} does not pass {check.__name__}.")
            raise

    return run


def _name(policy: ExitPolicy) -> str:
    """The policy on one line."""
    return " ".join(repr(policy).split())
