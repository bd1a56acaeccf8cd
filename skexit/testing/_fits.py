"""A policy and its fits, which the checks share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from sklearn.base import clone
from sklearn.utils.validation import has_fit_parameter

from skexit.policies import ExitPolicy
from skexit.testing._data import CheckData, make_data


@dataclass(frozen=True)
class Fit:
    """A fitted policy; checks leave it as it is.

    Parameters
    ----------
    policy : fitted ExitPolicy
    data : CheckData
        What was fitted.
    warned : bool
        Whether fitting gave a ``UserWarning``.
    """

    policy: Any
    data: CheckData
    warned: bool


class PolicyFits:
    """Fits a policy to the data of the checks, each at most once.

    Parameters
    ----------
    policy : ExitPolicy
        Not fitted, and never changed: copies are fitted, with 0 for each ``random_state`` that is no integer.
    """

    def __init__(self, policy: ExitPolicy) -> None:
        self.policy = policy
        self._fits: dict[str, Fit] = {}

    @property
    def takes_weights(self) -> bool:
        """Whether ``fit`` takes `sample_weight`."""
        return bool(has_fit_parameter(self.policy, "sample_weight"))

    def on(self, name: str = "main") -> Fit:
        """The fit on some data.

        Parameters
        ----------
        name : str, default="main"
            As in `make_data`.

        Returns
        -------
        Fit
        """
        if name not in self._fits:
            data = make_data(name)
            policy = self.unfitted()
            warned = fit_quietly(policy, data)
            self._fits[name] = Fit(policy, data, warned)
        return self._fits[name]

    def unfitted(self) -> Any:
        """A copy of the policy that is not fitted."""
        policy = clone(self.policy)
        seeds = {
            name: 0
            for name, value in policy.get_params().items()
            if name.split("__")[-1] == "random_state" and not isinstance(value, Integral)
        }
        return policy.set_params(**seeds)


def fit_quietly(policy: Any, data: CheckData) -> bool:
    """Fit a policy, and tell whether that gave a ``UserWarning``.

    Parameters
    ----------
    policy : ExitPolicy
        Changed in place.
    data : CheckData

    Returns
    -------
    bool
    """
    weights = {} if data.sample_weight is None else {"sample_weight": data.sample_weight}
    return count_warnings(lambda: policy.fit(data.X, data.y, **weights))[1] > 0


def count_warnings(call: Callable[[], Any]) -> tuple[Any, int]:
    """Call a function, and count its warnings in place of showing them.

    Parameters
    ----------
    call : callable

    Returns
    -------
    result : object
        What it returned.
    n_warnings : int
        Number of ``UserWarning``s.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = call()
    return result, sum(issubclass(warning.category, UserWarning) for warning in caught)
