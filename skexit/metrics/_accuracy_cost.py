"""Accuracy against cost: the curve that a method's settings make, and numbers read off it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_consistent_length

from skexit.utils._checks import answers_with_labels, at_least, at_most
from skexit.utils._docstring import shared_docs

#: Costs and accuracies are means of many numbers; they are compared up to this rounding error.
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class AccuracyCostCurve:
    """Accuracies of a method at the mean costs of its settings.

    A budget between the costs of two settings is met by a mixture: each sample is given to one of
    the two by chance. Cost and accuracy of mixtures lie on the line between the settings, and so
    everything on the upper concave hull of the points can be reached. Numbers are read off this hull.

    Parameters
    ----------
    costs : array-like of shape (n_points,)
        Mean costs of a sample, as fractions of the network's cost.
    accuracies : array-like of shape (n_points,)
        Share of right answers at each point.

    Attributes
    ----------
    costs : ndarray of shape (n_points,)
        Rising.
    accuracies : ndarray of shape (n_points,)
        In the order of `costs`; rising where costs are equal.

    Raises
    ------
    ValueError
        If there is no point, the shapes differ, or a value is not finite.

    See Also
    --------
    accuracy_cost_curve : The curve from answers and costs of samples.

    Examples
    --------
    >>> from skexit.metrics import AccuracyCostCurve
    >>> curve = AccuracyCostCurve([1.0, 0.2, 0.6, 0.5], [0.9, 0.5, 0.7, 0.8])
    >>> curve.hull().costs
    array([0.2, 0.5, 1. ])
    >>> round(curve.accuracy_at(0.35), 3), round(curve.cost_at(0.85), 3), round(curve.area(), 3)
    (0.65, 0.75, 0.775)
    """

    costs: NDArray[np.float64]
    accuracies: NDArray[np.float64]

    def __post_init__(self) -> None:
        costs, accuracies = (np.asarray(values, dtype=np.float64) for values in (self.costs, self.accuracies))
        if costs.ndim != 1 or costs.shape != accuracies.shape or len(costs) == 0:
            raise ValueError(
                f"costs has shape {costs.shape} and accuracies {accuracies.shape}; both must be (n_points,), with one "
                "point or more."
            )
        if not (np.isfinite(costs).all() and np.isfinite(accuracies).all()):
            raise ValueError("costs and accuracies must be finite; leave out the settings that could not be measured.")
        order = np.lexsort((accuracies, costs))
        object.__setattr__(self, "costs", costs[order])
        object.__setattr__(self, "accuracies", accuracies[order])

    def hull(self) -> AccuracyCostCurve:
        """Points that no mixture of others beats: the upper concave hull.

        Returns
        -------
        AccuracyCostCurve
            From the cheapest point to the most accurate one; costs and accuracies both rise
            strictly, and the gain in accuracy for cost falls strictly.
        """
        kept: list[int] = []
        for point in range(len(self.costs)):
            if kept and self.accuracies[point] <= self.accuracies[kept[-1]]:
                continue  # not cheaper, and not better
            while kept and not self._bends_down(kept, point):
                kept.pop()
            kept.append(point)
        return AccuracyCostCurve(self.costs[kept], self.accuracies[kept])

    def _bends_down(self, kept: list[int], point: int) -> bool:
        """Whether the last of the kept points stays on the hull now that `point`, which is better, follows."""
        last = kept[-1]
        cost, gain = self.costs[point] - self.costs[last], self.accuracies[point] - self.accuracies[last]
        if len(kept) == 1:
            return bool(cost > 0)
        earlier_cost = self.costs[last] - self.costs[kept[-2]]
        earlier_gain = self.accuracies[last] - self.accuracies[kept[-2]]
        return bool(earlier_gain * cost > gain * earlier_cost)

    def accuracy_at(self, cost: Any) -> Any:
        """Accuracy that is reached at a mean cost.

        Parameters
        ----------
        cost : float or array-like
            Mean cost of a sample, as a fraction of the network's cost.

        Returns
        -------
        float or ndarray of the shape of `cost`
            On the hull; beyond its last point, the accuracy of that.

        Raises
        ------
        ValueError
            If the cost is below that of the cheapest point.
        """
        wanted = np.asarray(cost, dtype=np.float64)
        if not (wanted >= self.costs[0] - _TOLERANCE).all():
            raise ValueError(
                f"cost={np.min(wanted):.4g} cannot be reached: the cheapest point costs {at_least(self.costs[0])} of "
                "the network's cost. Ask for that or more."
            )
        hull = self.hull()
        return _as_given(np.interp(wanted, hull.costs, hull.accuracies))

    def cost_at(self, accuracy: Any) -> Any:
        """Mean cost at which an accuracy is reached.

        Parameters
        ----------
        accuracy : float or array-like
            What is to be reached, between 0 and 1.

        Returns
        -------
        float or ndarray of the shape of `accuracy`
            On the hull, as a fraction of the network's cost; at most the accuracy of the
            cheapest point, the cost of that.

        Raises
        ------
        ValueError
            If the accuracy is above that of the most accurate point.
        """
        wanted = np.asarray(accuracy, dtype=np.float64)
        hull = self.hull()
        if not (wanted <= hull.accuracies[-1] + _TOLERANCE).all():
            raise ValueError(
                f"accuracy={np.max(wanted):.4g} cannot be reached: the most accurate point has "
                f"{at_most(hull.accuracies[-1])}. Ask for that or less."
            )
        return _as_given(np.interp(wanted, hull.accuracies, hull.costs))

    def area(self, max_cost: float = 1.0) -> float:
        """Mean accuracy over the budgets from the cheapest point's cost to `max_cost`.

        Parameters
        ----------
        max_cost : float, default=1.0
            Highest budget, as a fraction of the network's cost.

        Returns
        -------
        float
            Area under the hull, divided by the length of the range; where that is zero, the accuracy at `max_cost`.

        Raises
        ------
        ValueError
            If max_cost is below the cost of the cheapest point.
        """
        highest = self.accuracy_at(max_cost)
        hull = self.hull()
        length = max_cost - hull.costs[0]
        if length <= 0:
            return float(highest)
        inside = hull.costs < max_cost
        costs, accuracies = np.append(hull.costs[inside], max_cost), np.append(hull.accuracies[inside], highest)
        return float(np.diff(costs) @ (accuracies[1:] + accuracies[:-1]) / 2 / length)


def _as_given(values: NDArray[np.float64]) -> Any:
    return float(values) if np.ndim(values) == 0 else values


@shared_docs
def accuracy_cost_curve(y_true: ArrayLike, y_pred: ArrayLike, sample_costs: ArrayLike) -> AccuracyCostCurve:
    """Accuracies and mean costs of a method's settings, measured on samples.

    Parameters
    ----------
    %(settings)s

    Returns
    -------
    AccuracyCostCurve
        One point for each setting.

    Raises
    ------
    ValueError
        If the shapes do not agree, a value is NaN, or a cost is not positive.

    Examples
    --------
    >>> from skexit.metrics import accuracy_cost_curve
    >>> y_pred = [[0, 0], [0, 1], [1, 1], [0, 1]]  # four samples, two settings
    >>> costs = [[0.25, 0.25], [0.25, 1.0], [0.25, 0.25], [0.25, 0.5]]
    >>> curve = accuracy_cost_curve([0, 1, 1, 1], y_pred, costs)
    >>> curve.costs, curve.accuracies
    (array([0.25, 0.5 ]), array([0.5, 1. ]))
    """
    if np.ndim(y_pred) == 1 and np.ndim(sample_costs) == 1:
        y_pred, sample_costs = np.asarray(y_pred)[:, None], np.asarray(sample_costs)[:, None]
    right, labelled = answers_with_labels(y_true, y_pred)
    costs, shape = _check_sample_costs(sample_costs), np.shape(y_pred)
    if costs.shape != shape:
        raise ValueError(
            f"sample_costs has shape {costs.shape} and y_pred {shape}; pass one cost for each answer, such as "
            "policy.costs_[policy.predict_exit(X)]."
        )
    return AccuracyCostCurve(costs[labelled].mean(axis=0), right.mean(axis=0))


def _check_sample_costs(sample_costs: ArrayLike) -> NDArray[np.float64]:
    costs = check_array(sample_costs, dtype=np.float64, ensure_2d=False, input_name="sample_costs")
    if costs.min() <= 0:
        raise ValueError(
            f"sample_costs has the cost {costs.min():.4g}; pass costs above 0, such as policy.costs_[exits], not exits."
        )
    return costs


@shared_docs
def accuracy_at_budget(y_true: ArrayLike, y_pred: ArrayLike, sample_costs: ArrayLike, *, budget: float) -> float:
    """Accuracy of a method at a mean cost, interpolated on the hull of its settings.

    Parameters
    ----------
    %(settings)s
    budget : float
        Mean cost of a sample, as a fraction of the network's cost.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If the budget is below the cost of the cheapest setting, or the arrays are not as for
        :func:`accuracy_cost_curve`.

    Examples
    --------
    >>> from skexit.metrics import accuracy_at_budget
    >>> accuracy_at_budget([0, 1], [[1, 0], [1, 1]], [[0.5, 1.0], [0.5, 1.0]], budget=0.75)
    0.75
    """
    return accuracy_cost_curve(y_true, y_pred, sample_costs).accuracy_at(budget)


@shared_docs
def cost_at_accuracy(y_true: ArrayLike, y_pred: ArrayLike, sample_costs: ArrayLike, *, accuracy: float) -> float:
    """Mean cost at which a method reaches an accuracy, interpolated on the hull of its settings.

    Parameters
    ----------
    %(settings)s
    accuracy : float
        What is to be reached, between 0 and 1.

    Returns
    -------
    float
        As a fraction of the network's cost.

    Raises
    ------
    ValueError
        If no setting is as accurate, or the arrays are not as for :func:`accuracy_cost_curve`.

    Examples
    --------
    >>> from skexit.metrics import cost_at_accuracy
    >>> cost_at_accuracy([0, 1], [[1, 0], [1, 1]], [[0.5, 1.0], [0.5, 1.0]], accuracy=0.75)
    0.75
    """
    return accuracy_cost_curve(y_true, y_pred, sample_costs).cost_at(accuracy)


@shared_docs
def area_under_accuracy_cost(
    y_true: ArrayLike, y_pred: ArrayLike, sample_costs: ArrayLike, *, max_cost: float = 1.0
) -> float:
    """Mean accuracy of a method over budgets, from its cheapest setting's cost to `max_cost`.

    Methods are compared fairly where their cheapest settings cost the same, as with all samples at the first exit.

    Parameters
    ----------
    %(settings)s
    max_cost : float, default=1.0
        Highest budget, as a fraction of the network's cost.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If max_cost is below the cost of the cheapest setting, or the arrays are not as for
        :func:`accuracy_cost_curve`.

    Examples
    --------
    >>> from skexit.metrics import area_under_accuracy_cost
    >>> area_under_accuracy_cost([0, 1], [[1, 0], [1, 1]], [[0.5, 1.0], [0.5, 1.0]])
    0.75
    """
    return accuracy_cost_curve(y_true, y_pred, sample_costs).area(max_cost)


def speedup(sample_costs: ArrayLike) -> Any:
    """How many times less than the whole network the samples cost: one over their mean cost.

    Parameters
    ----------
    sample_costs : array-like of shape (n_samples,) or (n_samples, n_points)
        What each sample cost, as a fraction of the network's cost.

    Returns
    -------
    float or ndarray of shape (n_points,)
        At least 1 where no sample costs more than the whole network.

    Raises
    ------
    ValueError
        If a cost is NaN or not positive.

    Examples
    --------
    >>> from skexit.metrics import speedup
    >>> speedup([0.25, 0.75])
    2.0
    """
    costs = _check_sample_costs(sample_costs)
    check_consistent_length(costs)
    return _as_given(1 / costs.mean(axis=0))
