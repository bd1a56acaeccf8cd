"""Which columns of X belong to which exit, how they were computed, and what each exit costs."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.data._layout_checks import (
    FeatureMap,
    as_widths,
    check_classes,
    check_costs,
    check_exit_names,
    check_feature_maps,
    check_head_costs,
    check_network_cost,
    check_pools,
    check_unit,
    check_widths,
)
from skexit.utils._checks import check_positive
from skexit.utils._module_names import set_module

_COLUMN_NAME = re.compile(r"exit(\d+)__(logit|feature)(\d+)")

#: Cost of a multiply-add in the units that count operations.
MULTIPLY_ADD_COST = {"FLOPs": 2, "MACs": 1}


@set_module("skexit")
class ExitLayout:
    """Columns, classes and costs of the exits of a network.

    X has one row per sample and one block of columns per exit:
    ``[exit 0 | exit 1 | ... | exit K-1]``. Each block is ``[logits | features]``; either part may
    be absent, and the numbers of features may differ between exits.

    Parameters
    ----------
    n_logits : sequence of int, one per exit
        Number of logit columns of each exit: the number of classes, or 0 if the exit has no logits.
    n_features : sequence of int, one per exit, default=None
        Number of feature columns of each exit, 0 if the exit has none. By default no exit has any:
        ``ExitLayout([10] * 9)`` is nine exits with the logits of ten classes.
    costs : array-like of shape (n_exits,), default=None
        Cumulative cost of stopping at each exit, strictly increasing, in `cost_unit`. By default
        the fractions ``(k + 1) / n_exits``.
    cost_unit : str, default=None
        Unit of `costs`: ``"FLOPs"`` (a multiply-add counts as two), ``"MACs"`` (a multiply-add
        counts as one), ``"ms"``, or any other name. ``"fraction"`` when `costs` is None.
    classes : array-like of shape (n_classes,), default=None
        Class labels in the order of the logit columns.
    network_cost : float, default=None
        Cost of the network without added heads, in `cost_unit`. Fractions are relative to it. By
        default the last exit's cost without its `head_costs`.
    head_costs : array-like of shape (n_exits,), default=None
        The part of `costs` for added heads, such as those of :class:`~skexit.ExitHeads`; by default zeros.
    feature_maps : sequence of (int, int, int, int) or None, one per exit, default=None
        Which features of each exit are a map: the number of the first, and the map's channels, height and width, as
        ``(2, 16, 8, 8)`` for features 2 to 1,025, in the order of a C-contiguous array. None if an exit has no map.
    exit_names : sequence of str, one per exit, default=None
        Names of the exits' modules in the network. None if they are not known.
    pools : sequence of str or None, one per exit, default=None
        How the features of each exit are computed from the output of its module: the parameter `pool` of the
        extraction, for outputs of this shape, such as ``"avg+max+grid2"``. None if an exit is not pooled, or this is
        not known. If both poolings are known and differ, heads and policies raise an error.

    Attributes
    ----------
    n_exits : int
        Number of exits.
    n_columns : int
        Number of columns of X.
    n_classes : int or None
        Number of classes, None if there are neither logits nor `classes`.
    cost_fractions : ndarray of shape (n_exits,)
        `costs` as fractions of `network_cost`. With added heads they can be larger than 1.
    head_fractions : ndarray of shape (n_exits,)
        `head_costs` as fractions of `network_cost`.
    fingerprint : str
        Sixteen hexadecimal digits that identify the layout.

    Raises
    ------
    ValueError
        If the widths do not describe at least one column for each exit, the costs do not increase, network_cost is not
        positive, head_costs are negative or not below the costs, classes do not fit logits, maps do not fit features,
        or names or pools are not one per exit.

    Examples
    --------
    >>> from skexit import ExitLayout
    >>> layout = ExitLayout(n_logits=[0, 3], n_features=[2, 1], costs=[1e6, 4e6], cost_unit="MACs")
    >>> layout.column_names()
    ['exit0__feature0', 'exit0__feature1', 'exit1__logit0', 'exit1__logit1', 'exit1__logit2', 'exit1__feature0']
    >>> layout.logit_columns(1)
    slice(2, 5, None)
    >>> layout.cost_fractions.tolist()
    [0.25, 1.0]
    >>> layout.fingerprint
    'e2c67ebdf33eccd6'
    """

    #: The part that is a default, not given by X: ``"exits"``, or ``"costs"`` (costs and classes); None if X gave all.
    _guessed: str | None = None

    def __init__(
        self,
        n_logits: Sequence[int],
        n_features: Sequence[int] | None = None,
        *,
        costs: ArrayLike | None = None,
        cost_unit: str | None = None,
        classes: ArrayLike | None = None,
        network_cost: float | None = None,
        head_costs: ArrayLike | None = None,
        feature_maps: Sequence[Sequence[int] | None] | None = None,
        exit_names: Sequence[str] | None = None,
        pools: Sequence[str | None] | None = None,
    ) -> None:
        self.n_logits = as_widths("n_logits", n_logits)
        self.n_features = as_widths("n_features", [0] * len(n_logits) if n_features is None else n_features)
        check_widths(self.n_logits, self.n_features)
        self.costs = check_costs(costs, self.n_exits)
        self.head_costs = check_head_costs(head_costs, self.costs)
        self.network_cost = check_network_cost(network_cost, self.costs, self.head_costs)
        self.cost_unit = "fraction" if costs is None and cost_unit is None else check_unit(cost_unit)
        self.classes = check_classes(classes, max(self.n_logits))
        self.feature_maps: tuple[FeatureMap | None, ...] = check_feature_maps(feature_maps, self.n_features)
        self.exit_names = check_exit_names(exit_names, self.n_exits)
        self.pools = check_pools(pools, self.n_exits)
        widths = np.column_stack([self.n_logits, self.n_features]).ravel()
        self._edges = np.concatenate([[0], np.cumsum(widths)])

    @property
    def n_exits(self) -> int:
        """Number of exits."""
        return len(self.n_logits)

    @property
    def n_columns(self) -> int:
        """Number of columns of X."""
        return int(self._edges[-1])

    @property
    def n_classes(self) -> int | None:
        """Number of classes, None if there are neither logits nor classes."""
        if max(self.n_logits):
            return max(self.n_logits)
        return None if self.classes is None else len(self.classes)

    @property
    def cost_fractions(self) -> NDArray[np.float64]:
        """Costs as fractions of the cost of the network without added heads."""
        return self.costs / self.network_cost

    @property
    def head_fractions(self) -> NDArray[np.float64]:
        """Cost of the added heads up to each exit, as fractions of the network's cost."""
        return self.head_costs / self.network_cost

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that identify the layout.

        Equal layouts have equal fingerprints, in every process, on every platform and with every version of
        NumPy. Layouts that differ in a width, a class or the order of classes, a cost (in any digit,
        of an exit, its heads or the network), the unit, a map, a name or a pool have different ones. It does not
        protect against forgery.
        """
        classes = None if self.classes is None else [_plain_label(label) for label in self.classes.tolist()]
        description = json.dumps(self.to_dict() | {"classes": classes}, sort_keys=True, default=repr)
        return hashlib.sha256(description.encode()).hexdigest()[:16]

    def logit_columns(self, k: int) -> slice:
        """Columns of the logits of exit `k`.

        Parameters
        ----------
        k : int
            The exit, counted from 0.

        Returns
        -------
        slice
            Empty if the exit has no logits.
        """
        return slice(int(self._edges[2 * k]), int(self._edges[2 * k + 1]))

    def feature_columns(self, k: int) -> slice:
        """Columns of the features of exit `k`.

        Parameters
        ----------
        k : int
            The exit, counted from 0.

        Returns
        -------
        slice
            Empty if the exit has no features.
        """
        return slice(int(self._edges[2 * k + 1]), int(self._edges[2 * k + 2]))

    def has_logits(self, k: int) -> bool:
        """Whether exit `k` has logits.

        Parameters
        ----------
        k : int
            The exit, counted from 0.

        Returns
        -------
        bool
            True if it has one logit for each class.
        """
        return self.n_logits[k] > 0

    def column_names(self) -> list[str]:
        """Names of the columns of X: ``exit0__logit0``, ..., ``exit0__feature0``, ...

        Returns
        -------
        list of str
            One name for each column, in order.
        """
        return _column_names(self.n_logits, self.n_features)

    def replace(self, **changes: Any) -> ExitLayout:
        """A layout that differs from this one in the given parameters.

        Parameters
        ----------
        **changes
            Parameters of :class:`ExitLayout`.

        Returns
        -------
        ExitLayout
            All other parameters are those of this layout. If `costs` are given, `network_cost` and `head_costs` are
            the defaults, unless they are given too; the same holds for `n_features`, and `feature_maps` and `pools`.
        """
        if "costs" in changes:
            changes = {"network_cost": None, "head_costs": None} | changes
        if "n_features" in changes:
            changes = {"feature_maps": None, "pools": None} | changes
        parameters: dict[str, Any] = {
            "n_logits": self.n_logits,
            "n_features": self.n_features,
            "costs": self.costs,
            "cost_unit": self.cost_unit,
            "classes": self.classes,
            "network_cost": self.network_cost,
            "head_costs": self.head_costs,
            "feature_maps": self.feature_maps,
            "exit_names": self.exit_names,
            "pools": self.pools,
        }
        return ExitLayout(**(parameters | changes))._as_guess(self._guessed)

    def _as_guess(self, part: str | None) -> ExitLayout:
        """A copy that records which part is a default, not given by X."""
        layout = copy.copy(self)
        layout._guessed = part
        return layout

    def to_dict(self) -> dict[str, Any]:
        """The layout as a dict that JSON can hold; `from_dict` reads it back.

        Returns
        -------
        dict
            The parameters of :class:`ExitLayout`, as lists, numbers and strings; without those of heads
            if there are none and the last exit is the end of the network, and without maps, names and pools if there
            are none.
        """
        description: dict[str, Any] = {
            "n_logits": list(self.n_logits),
            "n_features": list(self.n_features),
            "costs": self.costs.tolist(),
            "cost_unit": self.cost_unit,
            "classes": None if self.classes is None else self.classes.tolist(),
        }
        if self.head_costs.any() or self.network_cost != self.costs[-1]:
            description |= {"network_cost": self.network_cost, "head_costs": self.head_costs.tolist()}
        if any(self.feature_maps):
            description["feature_maps"] = [None if place is None else list(place) for place in self.feature_maps]
        if self.exit_names is not None:
            description["exit_names"] = list(self.exit_names)
        if self.pools is not None:
            description["pools"] = list(self.pools)
        return description

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> ExitLayout:
        """The layout that `to_dict` returned as a dict.

        Parameters
        ----------
        description : dict
            A dict from `to_dict`.

        Returns
        -------
        ExitLayout
            A layout that equals the one that was described.
        """
        return cls(**description)

    @classmethod
    def even(cls, n_columns: int, n_exits: int) -> ExitLayout:
        """Layout of `n_columns` feature columns, split evenly into `n_exits` exits.

        Parameters
        ----------
        n_columns : int
            Number of columns of X, a multiple of `n_exits`.
        n_exits : int
            Number of exits.

        Returns
        -------
        ExitLayout
            Features of the same width at each exit, and no logits.

        Raises
        ------
        ValueError
            If `n_columns` is not a multiple of `n_exits`.
        """
        check_positive("n_exits", n_exits)
        if n_columns % n_exits:
            raise ValueError(
                f"{n_columns} columns cannot be split evenly into {n_exits} exits. Pass the width of each exit: "
                "layout=ExitLayout(n_logits, n_features)."
            )
        return cls(n_logits=[0] * n_exits, n_features=[n_columns // n_exits] * n_exits)

    @classmethod
    def from_column_names(cls, names: Sequence[Any]) -> ExitLayout | None:
        """Layout whose `column_names` are these names, None if no name has that form.

        Parameters
        ----------
        names : sequence of str
            Names of all columns, in order.

        Returns
        -------
        ExitLayout or None
            The layout, without costs and classes.

        Raises
        ------
        ValueError
            If only some names have that form, or they are out of order.
        """
        matches = [_COLUMN_NAME.fullmatch(name) if isinstance(name, str) else None for name in names]
        if not any(matches):
            return None
        for name, match in zip(names, matches, strict=True):
            if match is None:
                raise ValueError(
                    f"column {name!r} is among columns named like 'exit0__logit3' but belongs to no exit. Drop it."
                )
        n_exits = 1 + max(int(match[1]) for match in matches if match)
        widths = {"logit": [0] * n_exits, "feature": [0] * n_exits}
        for match in matches:
            if match:
                widths[match[2]][int(match[1])] += 1
        expected = _column_names(widths["logit"], widths["feature"])
        if absent := [name for name in expected if name not in names]:
            raise ValueError(
                f"the columns of X are named like 'exit0__logit3', but {absent[0]!r} is missing. Add "
                "it. To fit on fewer columns, pass layout=ExitLayout(n_logits, n_features) with the widths that X "
                "has, or number the columns of each exit from 0."
            )
        if expected != list(names):
            raise ValueError(
                "the columns exit<k>__logit<j> and exit<k>__feature<j> are out of order. Order them by exit, and each "
                f"exit's logits before its features: {expected[:4]} ..."
            )
        return cls(n_logits=widths["logit"], n_features=widths["feature"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExitLayout) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.n_logits, self.n_features, self.cost_unit, *self.costs.tolist()))

    def __repr__(self) -> str:
        costs = ", ".join(f"{cost:.4g}" for cost in self.costs)
        maps = f", feature_maps={list(self.feature_maps)}" if any(self.feature_maps) else ""
        names = "" if self.exit_names is None else f", exit_names={list(self.exit_names)}"
        pools = "" if self.pools is None else f", pools={list(self.pools)}"
        return (
            f"ExitLayout(n_logits={list(self.n_logits)}, n_features={list(self.n_features)}, "
            f"costs=[{costs}], cost_unit={self.cost_unit!r}, network_cost={self.network_cost:.4g}{maps}"
            f"{names}{pools})"
        )


def _column_names(n_logits: Sequence[int], n_features: Sequence[int]) -> list[str]:
    return [
        f"exit{k}__{part}{j}"
        for k, widths in enumerate(zip(n_logits, n_features, strict=True))
        for part, width in zip(("logit", "feature"), widths, strict=True)
        for j in range(width)
    ]


def add_heads(layout: ExitLayout, multiply_adds: ArrayLike) -> ExitLayout:
    """The layout with the cost of heads that take so many multiply-adds up to each exit, if its unit counts these."""
    added = MULTIPLY_ADD_COST.get(layout.cost_unit or "", 0) * np.asarray(multiply_adds, dtype=np.float64)
    return layout.replace(
        costs=layout.costs + added, head_costs=layout.head_costs + added, network_cost=layout.network_cost
    )


def _plain_label(label: Any) -> Any:
    """A class label in one form for equal labels: 1, 1.0 and True become 1."""
    label = label.item() if isinstance(label, np.generic) else label
    return int(label) if isinstance(label, bool | float) and float(label).is_integer() else label
