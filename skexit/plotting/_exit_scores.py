"""Display of the scores of the exits and their thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from skexit.plotting._figures import COLORS, axes_of_exits, label_exits
from skexit.policies._access import policy_and_labelled_data
from skexit.utils._checks import right_answers
from skexit.utils._docstring import shared_docs
from skexit.utils._optional import import_pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: With more classes than this on an axis, only some names are written.
_MOST_NAMED = 10
#: Opacity of samples that are still running, and of samples that left at an earlier exit.
_RUNNING, _EXITED = 0.7, 0.15


@shared_docs
class ExitScoreDisplay:
    """Scores of each exit by class, with the thresholds from which samples leave.

    As in Figures 6 to 9 of EENet, correct and wrong predictions have different colours and markers, and
    samples that left at an earlier exit are faded.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Class labels.
    scores : array-like of shape (n_samples, n_exits)
        Scores of every exit, as if no sample left earlier.
    correct : array-like of shape (n_samples, n_exits) of bool
        Whether the prediction of each exit is correct.
    thresholds : array-like of shape (n_exits,)
        A sample leaves at the first exit whose score is at least the threshold. ``inf`` means that no
        sample leaves, ``-inf`` that all samples leave.

    Attributes
    ----------
    y_true, scores, correct, thresholds : ndarray
        As given.
    exits : ndarray of shape (n_samples,) of int
        Exit at which each sample leaves.
    points_ : list of list of matplotlib PathCollection
        For each exit, the correct and the wrong predictions.
    lines_ : list of matplotlib Line2D or None
        Threshold of each exit; None if it is infinite.
    axes_ : ndarray of shape (n_exits,) of matplotlib Axes
        The axes of each exit.
    figure_ : matplotlib Figure
        The figure of the axes.

    References
    ----------
    Ilhan et al. (2024), Adaptive Deep Neural Network Inference Optimization with EENet.

    Examples
    --------
    >>> from skexit.plotting import ExitScoreDisplay
    >>> display = ExitScoreDisplay([0, 1], [[0.9, 1], [0.2, 1]], [[True, True], [False, True]], [0.5, float("-inf")])
    >>> display.exits
    array([0, 1])
    """

    def __init__(self, y_true: ArrayLike, scores: ArrayLike, correct: ArrayLike, thresholds: ArrayLike) -> None:
        self.y_true: NDArray[Any] = column_or_1d(y_true)
        self.scores: NDArray[np.float64] = check_array(
            scores, dtype=np.float64, ensure_all_finite=False, input_name="scores"
        )
        self.correct = np.asarray(correct, dtype=bool)
        self.thresholds: NDArray[np.float64] = column_or_1d(thresholds)
        check_consistent_length(self.y_true, self.scores)
        if self.correct.shape != self.scores.shape or len(self.thresholds) != self.scores.shape[1]:
            raise ValueError(
                f"scores has shape {self.scores.shape}, correct {self.correct.shape} and thresholds "
                f"{self.thresholds.shape}; they must be (n_samples, n_exits) twice and (n_exits,)."
            )
        leaves = self.scores >= self.thresholds
        leaves[:, -1] = True
        self.exits = np.argmax(leaves, axis=1)

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: ArrayLike, **plot_parameters: Any) -> ExitScoreDisplay:
        """Compute the scores of a fitted policy, and draw them.

        Parameters
        ----------
        %(estimator_X_y)s
        %(plotted)s
        """
        policy, X, y = policy_and_labelled_data(estimator, X, y)
        return cls.from_predictions(
            y, policy.predict_at_exits(X), policy.exit_scores(X), thresholds=policy.thresholds_, **plot_parameters
        )

    @classmethod
    def from_predictions(
        cls, y_true: ArrayLike, y_pred: ArrayLike, scores: ArrayLike, *, thresholds: ArrayLike, **plot_parameters: Any
    ) -> ExitScoreDisplay:
        """Compare predictions with labels, and draw the scores.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            Class labels.
        y_pred : array-like of shape (n_samples, n_exits)
            Predicted class of each sample at each exit, as returned by ``predict_at_exits``.
        scores : array-like of shape (n_samples, n_exits)
            Scores of every exit, as returned by ``exit_scores``.
        thresholds : array-like of shape (n_exits,)
            Thresholds of the exits.
        %(plotted)s

        Raises
        ------
        ValueError
            If the shapes do not agree.
        """
        correct = right_answers(y_true, y_pred)
        return cls(y_true, scores, correct, thresholds).plot(**plot_parameters)

    def plot(self, axes: Sequence[Axes] | None = None, *, n_columns: int = 2) -> ExitScoreDisplay:
        """Draw one picture per exit.

        Parameters
        ----------
        axes : sequence of n_exits matplotlib Axes, default=None
            Axes to draw on; by default, those of a new figure.
        n_columns : int, default=2
            Number of pictures in a row of a new figure.

        %(display)s
        ValueError
            If the number of axes is not the number of exits.
        """
        n_samples, n_exits = self.scores.shape
        import_pyplot()
        from matplotlib.colors import to_rgb
        from matplotlib.lines import Line2D

        self.axes_ = axes_of_exits(axes, n_exits, n_columns=n_columns, width=7, height=2.5)
        self.figure_: Any = self.axes_[0].figure
        classes, columns = np.unique(self.y_true, return_inverse=True)
        # A fixed seed, so that the same data always give the same picture.
        places = columns + np.random.default_rng(0).uniform(-0.35, 0.35, size=n_samples)
        named = np.arange(len(classes))[:: -(-len(classes) // _MOST_NAMED)]
        self.points_: list[list[Any]] = []
        self.lines_: list[Any] = []
        for k, ax in enumerate(self.axes_):
            opacity = np.where(self.exits < k, _EXITED, _RUNNING)
            points = []
            for chosen, color, marker in ((self.correct[:, k], COLORS[0], "o"), (~self.correct[:, k], COLORS[1], "x")):
                shades = np.column_stack([np.tile(to_rgb(color), (chosen.sum(), 1)), opacity[chosen]])
                points.append(
                    ax.scatter(places[chosen], self.scores[chosen, k], s=10, c=shades, marker=marker, linewidths=0.7)
                )
            self.points_.append(points)
            finite = np.isfinite(self.thresholds[k])
            self.lines_.append(ax.axhline(self.thresholds[k], color="black", linestyle="--") if finite else None)
            ax.set_title(f"exit {k}: {100 * np.mean(self.exits == k):.1f} % leave", fontsize="medium")
            ax.set_xticks(named, [str(label) for label in classes[named]], fontsize="small")
            ax.grid(axis="y", alpha=0.3)
        handles = [
            Line2D([], [], color=COLORS[0], marker="o", markersize=4, linestyle="", label="correct"),
            Line2D([], [], color=COLORS[1], marker="x", markersize=4, linestyle="", label="wrong"),
            Line2D([], [], color=COLORS[0], alpha=0.25, marker="o", markersize=4, linestyle="", label="left earlier"),
            Line2D([], [], color="black", linestyle="--", label="threshold"),
        ]
        label_exits(self.axes_, "Class", "Exit score", handles, own_figure=axes is None)
        return self
