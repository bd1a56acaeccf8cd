"""Display of the shares of samples that leave at each exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, column_or_1d

from skexit.metrics import exit_distribution_by_class
from skexit.plotting._figures import exit_colors, new_axes
from skexit.policies._access import policy_and_data, policy_and_labelled_data
from skexit.utils._checks import check_exits
from skexit.utils._docstring import shared_docs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Smallest share that is written into its part of a bar; in smaller parts, there is no room.
_LEAST_WRITTEN = 0.1
#: With more bars than this, only some names are written, and no shares.
_MOST_NAMED = 30


@shared_docs
class ExitDistributionDisplay:
    """Share of the samples that leave at each exit, one stacked bar per policy or class.

    Parameters
    ----------
    shares : array-like of shape (n_bars, n_exits)
        Share of the samples of each bar that leave at each exit; NaN if a bar has no samples.
    names : sequence of str
        Name of each bar.

    Attributes
    ----------
    shares : ndarray of shape (n_bars, n_exits)
        As given.
    names : list of str
        As given.
    bars_ : list of matplotlib BarContainer
        Parts of all bars, one container per exit.
    ax_ : matplotlib Axes
        The axes that were drawn on.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    skexit.metrics.exit_distribution_by_class : The shares for each class.

    Examples
    --------
    >>> from skexit.plotting import ExitDistributionDisplay
    >>> display = ExitDistributionDisplay.from_predictions({"a policy": [0, 0, 0, 1]}, n_exits=3)
    >>> display.shares
    array([[0.75, 0.25, 0.  ]])
    """

    def __init__(self, shares: ArrayLike, names: Sequence[str]) -> None:
        self.shares = np.asarray(shares, dtype=np.float64)
        self.names = [str(name) for name in names]
        if self.shares.ndim != 2 or len(self.shares) != len(self.names) or not len(self.names):
            raise ValueError(
                f"shares has shape {self.shares.shape} and names {len(self.names)} entries; shares must be "
                "(n_bars, n_exits), with a name for each bar."
            )

    @classmethod
    def from_estimators(cls, estimators: Mapping[str, Any], X: Any, **plot_parameters: Any) -> ExitDistributionDisplay:
        """Compute the exits of fitted policies, and draw one bar per policy.

        Parameters
        ----------
        estimators : dict of str to ExitPolicy or Pipeline
            Fitted policies with the same number of exits; a Pipeline ends in a policy.
        %(X)s
        %(plotted)s
        """
        exits, n_exits = {}, 0
        for name, estimator in estimators.items():
            policy, data = policy_and_data(estimator, X)
            exits[name], n_exits = policy.predict_exit(data), max(n_exits, len(policy.costs_))
        return cls.from_predictions(exits, n_exits=n_exits, **plot_parameters)

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: ArrayLike, **plot_parameters: Any) -> ExitDistributionDisplay:
        """Compute the exits of one fitted policy, and draw a bar for all samples and one per class.

        Parameters
        ----------
        %(estimator_X_y)s
        %(plotted)s
        """
        policy, X, y = policy_and_labelled_data(estimator, X, y)
        return cls.from_predictions(policy.predict_exit(X), n_exits=len(policy.costs_), y_true=y, **plot_parameters)

    @classmethod
    def from_predictions(
        cls,
        exits: ArrayLike | Mapping[str, ArrayLike],
        *,
        n_exits: int,
        y_true: ArrayLike | None = None,
        **plot_parameters: Any,
    ) -> ExitDistributionDisplay:
        """Compute the share of each exit, and draw the shares.

        Parameters
        ----------
        exits : array-like of shape (n_samples,) of int, or dict of str to such
            Exit at which each sample leaves. A dict has the exits of several policies, and gives one bar per policy.
        n_exits : int
            Number of exits.
        y_true : array-like of shape (n_samples,), default=None
            Class labels. They add one bar per class to the bar of all samples.
        %(plotted)s

        Raises
        ------
        ValueError
            If an exit does not exist, or `y_true` is given with several policies.
        """
        if isinstance(exits, Mapping):
            if y_true is not None:
                raise ValueError("y_true adds bars for the exits of one policy, but exits is a dict; pass y_true=None.")
            shares = [_shares(of_policy, n_exits) for of_policy in exits.values()]
            return cls(np.reshape(shares, (len(shares), n_exits)), list(exits)).plot(**plot_parameters)
        of_all = _shares(exits, n_exits)[None]
        if y_true is None:
            return cls(of_all, ["all"]).plot(**plot_parameters)
        check_consistent_length(exits, y_true)
        by_class = exit_distribution_by_class(y_true, exits, n_exits=n_exits)
        names = ["all", *(str(label) for label in np.unique(column_or_1d(y_true)))]
        return cls(np.concatenate([of_all, by_class]), names).plot(**plot_parameters)

    def plot(self, ax: Axes | None = None) -> ExitDistributionDisplay:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default, those of a new figure.

        %(display)s
        """
        n_bars, n_exits = self.shares.shape
        self.ax_ = new_axes(ax, 7, 1.3 + 0.3 * min(n_bars, _MOST_NAMED))
        self.figure_: Any = self.ax_.figure
        shares = np.nan_to_num(self.shares)
        starts = np.cumsum(shares, axis=1) - shares
        positions = np.arange(n_bars)
        self.bars_ = []
        for k, color in enumerate(exit_colors(n_exits)):
            bars = self.ax_.barh(
                positions, 100 * shares[:, k], left=100 * starts[:, k], color=color, height=0.8, label=f"exit {k}"
            )
            self.bars_.append(bars)
            if n_bars <= _MOST_NAMED:
                written = [f"{100 * share:.0f} %" if share >= _LEAST_WRITTEN else "" for share in shares[:, k]]
                dark = color[:3].mean() < 0.5
                self.ax_.bar_label(
                    bars, written, label_type="center", fontsize="small", color="white" if dark else "black"
                )
        named = positions[:: -(-n_bars // _MOST_NAMED)]
        self.ax_.set_yticks(named, [self.names[position] for position in named])
        self.ax_.set(xlabel="Samples that leave (%)", xlim=(0, 100), ylim=(n_bars - 0.5, -0.5))
        # At the right edge, so that a wide legend can use the room above the names.
        self.ax_.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=min(n_exits, 6),
            fontsize="small",
            frameon=False,
            handlelength=1,
            handletextpad=0.4,
            columnspacing=1,
            borderaxespad=0.2,
        )
        return self


def _shares(exits: ArrayLike, n_exits: int) -> NDArray[np.float64]:
    stops = check_exits(exits, n_exits)
    return np.bincount(stops, minlength=n_exits) / len(stops)
