"""Pictures of what a policy does. matplotlib is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.policies.base import ExitPolicy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class AccuracyCostDisplay:
    """Accuracy against mean cost, one line a method.

    Parameters
    ----------
    curves : dict of str to (array-like of shape (n_points,), array-like of shape (n_points,))
        Mean costs, as fractions of the whole network's, and accuracies of each method.

    Attributes
    ----------
    curves : dict of str to (ndarray of shape (n_points,), ndarray of shape (n_points,))
        Points of each method, by rising cost.
    lines_ : dict of str to matplotlib Line2D
        What was drawn for each method.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from skexit.plotting import AccuracyCostDisplay
    >>> display = AccuracyCostDisplay({"a policy": ([0.8, 0.4], [0.93, 0.88])})
    >>> display.curves["a policy"]
    (array([0.4, 0.8]), array([0.88, 0.93]))
    """

    def __init__(self, curves: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
        self.curves = {name: _by_cost(*curve) for name, curve in curves.items()}

    @classmethod
    def from_estimators(
        cls, estimators: Mapping[str, Sequence[ExitPolicy]], X: Any, y: ArrayLike, **plot_parameters: Any
    ) -> AccuracyCostDisplay:
        """Measure fitted policies on data, and draw.

        Parameters
        ----------
        estimators : dict of str to list of ExitPolicy
            Fitted policies of each method, one a budget or price.
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        y : array-like of shape (n_samples,)
            Class labels.
        **plot_parameters
            Passed to :meth:`plot`.

        Returns
        -------
        AccuracyCostDisplay
        """
        curves: dict[str, tuple[ArrayLike, ArrayLike]] = {
            name: (
                [policy.mean_cost(X) for policy in policies],
                [policy.score(X, y) for policy in policies],
            )
            for name, policies in estimators.items()
        }
        return cls(curves).plot(**plot_parameters)

    def plot(self, ax: Axes | None = None) -> AccuracyCostDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure by default.

        Returns
        -------
        AccuracyCostDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install 'skexit[plot]'") from error

        self.ax_: Axes = plt.subplots(figsize=(7, 4.5), layout="constrained")[1] if ax is None else ax
        self.figure_: Any = self.ax_.figure
        self.lines_ = {}
        for (name, (costs, accuracies)), marker in zip(self.curves.items(), _markers(), strict=False):
            linestyle = "-" if len(costs) > 1 else ""
            (self.lines_[name],) = self.ax_.plot(
                100 * costs, 100 * accuracies, marker=marker, linestyle=linestyle, markersize=6, label=name
            )
        self.ax_.set(xlabel="Mean cost (% of the whole network)", ylabel="Accuracy (%)")
        self.ax_.grid(alpha=0.3)
        self.ax_.legend(loc="lower right", fontsize="small")
        return self


def _by_cost(costs: ArrayLike, accuracies: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    costs, accuracies = np.asarray(costs, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    order = np.argsort(costs, kind="stable")
    return costs[order], accuracies[order]


def _markers() -> Iterator[str]:
    return cycle(["o", "s", "^", "D", "v", "P", "X", "<", ">", "*"])
