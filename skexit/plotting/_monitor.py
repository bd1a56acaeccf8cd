"""Display of the history of a monitor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from skexit.plotting._figures import COLORS, new_axes
from skexit.utils._docstring import shared_docs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTITIES = ("mean cost", "accuracy", "confidence")


@shared_docs
class MonitorDisplay:
    """Recent means of cost, accuracy and confidence over the samples, and the alarm of the monitor.

    Parameters
    ----------
    history : DataFrame
        ``history`` of an :class:`~skexit.monitoring.ExitMonitor`.
    changed_at : int, default=None
        Number of samples at the alarm, drawn as a vertical line.
    budget : float, default=None
        Fraction of the network's cost, drawn as a horizontal line.

    Attributes
    ----------
    lines_ : dict of str to matplotlib Line2D
        One for each quantity that was monitored.
    ax_ : matplotlib Axes
        The axes that were drawn on.
    figure_ : matplotlib Figure
        The figure of the axes.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> from skexit.monitoring import ExitMonitor
    >>> from skexit.plotting import MonitorDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = ThresholdPolicy(budget=0.7, layout=2).fit(X[:600], y[:600])
    >>> monitor = ExitMonitor(policy, X[600:1200], y[600:1200])
    >>> monitor.update(policy.predict_exit(X[1200:]))
    >>> list(MonitorDisplay.from_monitor(monitor).lines_)
    ['mean cost']
    """

    def __init__(self, history: pd.DataFrame, *, changed_at: int | None = None, budget: float | None = None) -> None:
        self.history = history
        self.changed_at = changed_at
        self.budget = budget

    @classmethod
    def from_monitor(cls, monitor: Any, *, budget: float | None = None, **plot_parameters: Any) -> MonitorDisplay:
        """Draw the history of a monitor.

        Parameters
        ----------
        monitor : ExitMonitor
            A monitor that has seen some samples.
        budget : float, default=None
            Fraction of the network's cost, drawn as a horizontal line.
        %(plotted)s
        """
        return cls(monitor.history, changed_at=monitor.changed_at, budget=budget).plot(**plot_parameters)

    def plot(self, ax: Axes | None = None) -> MonitorDisplay:
        """Draw the means.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default, those of a new figure.

        %(display)s
        """
        self.ax_ = new_axes(ax, 6, 3.6)
        self.figure_: Any = self.ax_.figure
        self.lines_: dict[str, Any] = {}
        for name, color in zip(_QUANTITIES, COLORS, strict=False):
            values = self.history[name]
            if values.notna().any():
                (self.lines_[name],) = self.ax_.plot(self.history["n_samples"], 100 * values, color=color, label=name)
        if self.budget is not None:
            self.ax_.axhline(100 * self.budget, color="black", linestyle="--", linewidth=1, label="budget")
        if self.changed_at is not None:
            self.ax_.axvline(self.changed_at, color="gray", linestyle=":", label="alarm")
        self.ax_.set(xlabel="Samples", ylabel="Recent mean (%)")
        self.ax_.grid(alpha=0.3)
        self.ax_.legend(fontsize="small")
        return self
