"""Warnings of skexit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "ExpensiveHeadsWarning",
    "InconsistentVersionWarning",
    "LayoutLostWarning",
    "RoutersUnusedWarning",
    "UncountedWorkWarning",
    "UnprofitableExitsWarning",
    "UnusedParameterWarning",
]


class ExpensiveHeadsWarning(UserWarning):
    """The heads of a policy cost more than 5 % of the network, in addition to the network itself.

    Parameters
    ----------
    share : float
        Cost of the heads of all exits, as a fraction of the network's cost.

    Examples
    --------
    >>> from skexit.exceptions import ExpensiveHeadsWarning
    >>> print(ExpensiveHeadsWarning(0.123))
    the heads of all exits add 12.3 % to the cost of the network. To leave more of a budget to the network, use fewer
    features per exit (pool="avg" for feature maps, "mean" for sequences), fewer or no hidden units in ExitHeads
    (hidden_layer_sizes), or fewer exits.
    """

    def __init__(self, share: float) -> None:
        super().__init__(share)
        self.share = share

    def __str__(self) -> str:
        return (
            f"the heads of all exits add {100 * self.share:.3g} % to the cost of the network. To leave more of a "
            'budget to the network, use fewer features per exit (pool="avg" for feature maps, "mean" for sequences), '
            "fewer or no hidden units in ExitHeads (hidden_layer_sizes), or fewer exits."
        )


class InconsistentVersionWarning(UserWarning):
    """An estimator was saved by another version of skexit than the one that loads it.

    Parameters
    ----------
    estimator_name : str
        Class of the estimator.
    saved_version : str
        Version of skexit that saved it, ``"unknown"`` if it was not recorded.
    current_version : str
        Version of skexit that loads it.

    Examples
    --------
    >>> from skexit.exceptions import InconsistentVersionWarning
    >>> print(InconsistentVersionWarning("ThresholdPolicy", "0.9.0", "0.1.0"))
    ThresholdPolicy was saved by skexit 0.9.0 and is loaded by skexit 0.1.0. It may fail or make different decisions.
    Load it with the version that saved it, or fit it again with this one.
    """

    def __init__(self, estimator_name: str, saved_version: str, current_version: str) -> None:
        super().__init__(estimator_name, saved_version, current_version)
        self.estimator_name = estimator_name
        self.saved_version = saved_version
        self.current_version = current_version

    def __str__(self) -> str:
        return (
            f"{self.estimator_name} was saved by skexit {self.saved_version} and is loaded by skexit "
            f"{self.current_version}. It may fail or make different decisions. Load it with the version that "
            "saved it, or fit it again with this one."
        )


class LayoutLostWarning(UserWarning):
    """The layout of X was lost, and the meaning of its columns had to be guessed.

    A scaler, ``numpy.asarray``, ``numpy.vstack`` or a file drops the layout of an :class:`~skexit.ExitArray`.
    An estimator that gets X without a layout warns if it assumes one exit or default costs, or if it uses
    columns that look like logits as features. Pass ``layout=X.layout``, apply transformers by
    :class:`~skexit.ExitTransformer`, or let :class:`~skexit.ExitHeads` standardise the features.

    Examples
    --------
    >>> import warnings
    >>> from skexit.exceptions import LayoutLostWarning
    >>> warnings.simplefilter("error", LayoutLostWarning)  # an error instead of a guess
    """


class RoutersUnusedWarning(UserWarning):
    """:class:`~skexit.EMExitAssigner` decides without its routers, because they add nothing to the confidence.

    Examples
    --------
    >>> import warnings
    >>> from skexit.exceptions import RoutersUnusedWarning
    >>> warnings.simplefilter("ignore", RoutersUnusedWarning)  # if you expect it
    """


class UncountedWorkWarning(UserWarning):
    """The costs of a network do not count operators whose FLOPs are not known.

    Parameters
    ----------
    operators : sequence of tuple of (str, str)
        Name of each operator, and of the module that called it.

    Examples
    --------
    >>> from skexit.exceptions import UncountedWorkWarning
    >>> print(UncountedWorkWarning([("mylib::attend", "layers.0")]))
    costs do not count 'mylib::attend' in the module 'layers.0', whose FLOPs are not known. Decorate a function of the
    shapes of its arguments with torch.utils.flop_counter.register_flop_formula(torch.ops.mylib.attend), or measure
    costs in 'ms' (cost_unit= of an extractor, unit= of exit_costs).
    """

    def __init__(self, operators: Sequence[tuple[str, str]]) -> None:
        super().__init__(operators)
        self.operators = operators

    def __str__(self) -> str:
        modules: dict[str, list[str]] = {}
        for operator, module in self.operators:
            modules.setdefault(operator, []).append(module)
        work = "; ".join(
            f"{operator!r} in the " + (f"module {_some(names)}" if any(names) else "network's own code")
            for operator, names in modules.items()
        )
        return (
            f"costs do not count {work}, whose FLOPs are not known. Decorate a function of the shapes of its arguments "
            "with torch.utils.flop_counter.register_flop_formula(torch.ops."
            f"{next(iter(modules)).replace('::', '.')}), or measure costs in 'ms' (cost_unit= of an extractor, unit= "
            "of exit_costs)."
        )


class UnprofitableExitsWarning(UserWarning):
    """A live network has exits whose decisions take longer than they save.

    Parameters
    ----------
    exits : sequence of str
        Names of the exits.
    batch_sizes : sequence of int
        The batch sizes that were measured; the exits do not pay at any of them.

    Examples
    --------
    >>> from skexit.exceptions import UnprofitableExitsWarning
    >>> print(UnprofitableExitsWarning(["layer1", "layer2"], [1, 8]))
    the decisions at the exits 'layer1', 'layer2' take longer than they save, in batches of 1 and 8. Switch these exits
    off: pass pruned(policy, latency, batch_size=1) of skexit.runtime instead of the policy, for the batch size that you
    run.
    """

    def __init__(self, exits: Sequence[str], batch_sizes: Sequence[int]) -> None:
        super().__init__(exits, batch_sizes)
        self.exits = exits
        self.batch_sizes = batch_sizes

    def __str__(self) -> str:
        sizes = [str(size) for size in self.batch_sizes]
        listed = " and ".join([", ".join(sizes[:-1]), sizes[-1]]) if len(sizes) > 1 else sizes[0]
        return (
            f"the decisions at the exits {', '.join(map(repr, self.exits))} take longer than they save, in batches of "
            f"{listed}. Switch these exits off: pass pruned(policy, latency, batch_size={sizes[0]}) of skexit.runtime "
            "instead of the policy, for the batch size that you run."
        )


class UnusedParameterWarning(UserWarning):
    """Parameters that were set have no effect, because another parameter has a value for which they are not used.

    Parameters
    ----------
    estimator_name : str
        Class of the estimator.
    unused : dict of str to object
        The parameters without effect, and their values.
    other : dict of str to object
        The parameter for which they have none, and its value.
    cure : str
        A sentence on what to do.

    Examples
    --------
    >>> from skexit.exceptions import UnusedParameterWarning
    >>> print(UnusedParameterWarning("ExitHeads", {"temperature": 2.0}, {"distillation": 0}, "Raise distillation."))
    temperature=2.0 of ExitHeads has no effect with distillation=0. Raise distillation.
    """

    def __init__(self, estimator_name: str, unused: dict[str, Any], other: dict[str, Any], cure: str) -> None:
        super().__init__(estimator_name, unused, other, cure)
        self.estimator_name = estimator_name
        self.unused = unused
        self.other = other
        self.cure = cure

    def __str__(self) -> str:
        names = _with_values(self.unused)
        verb = "has" if len(self.unused) == 1 else "have"
        return f"{names} of {self.estimator_name} {verb} no effect with {_with_values(self.other)}. {self.cure}"


def _with_values(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in parameters.items())


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
