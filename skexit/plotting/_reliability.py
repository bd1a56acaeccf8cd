"""Display of confidence against accuracy at each exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from skexit.plotting._figures import COLORS, axes_of_exits, label_exits
from skexit.policies._access import policy_and_labelled_data
from skexit.uncertainty import expected_calibration_error
from skexit.uncertainty._labels import column_of_labels
from skexit.utils._checks import check_exits
from skexit.utils._docstring import shared_docs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@shared_docs
class ReliabilityDisplay:
    """Confidence against accuracy of the samples that leave at each exit.

    Samples are put into bins of equal width by the probability of the predicted class. On the diagonal,
    accuracy equals confidence; below it, the exit is over-confident. Grey bars show the share of the
    exit's samples in each bin.

    Parameters
    ----------
    confidences : array-like of shape (n_exits, n_bins)
        Mean confidence in each bin; NaN if the bin is empty.
    accuracies : array-like of shape (n_exits, n_bins)
        Share of correct predictions in each bin; NaN if the bin is empty.
    counts : array-like of shape (n_exits, n_bins) of int
        Number of samples in each bin.
    errors : array-like of shape (n_exits,)
        Expected calibration error of each exit; NaN if no sample leaves there.

    Attributes
    ----------
    confidences, accuracies, counts, errors : ndarray
        As given.
    lines_ : list of matplotlib Line2D
        Accuracy against confidence, for each exit.
    bars_ : list of matplotlib BarContainer
        Share of the samples in each bin, for each exit.
    axes_ : ndarray of shape (n_exits,) of matplotlib Axes
        The axes of each exit.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    skexit.uncertainty.expected_calibration_error : The error in the titles; here with bins of equal width.

    Examples
    --------
    >>> from skexit.plotting import ReliabilityDisplay
    >>> y_prob = [[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]]
    >>> display = ReliabilityDisplay.from_predictions([0, 0, 1], y_prob, [0, 0, 1], n_exits=2, n_bins=2)
    >>> display.errors.round(2)
    array([0.1, 0.2])
    """

    def __init__(self, *, confidences: ArrayLike, accuracies: ArrayLike, counts: ArrayLike, errors: ArrayLike) -> None:
        self.confidences = np.asarray(confidences, dtype=np.float64)
        self.accuracies = np.asarray(accuracies, dtype=np.float64)
        self.counts = np.asarray(counts)
        self.errors = np.asarray(errors, dtype=np.float64)

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: ArrayLike, *, n_bins: int = 10, **plot_parameters: Any
    ) -> ReliabilityDisplay:
        """Compute the probabilities of a fitted policy, and draw their reliability.

        Parameters
        ----------
        %(estimator_X_y)s
        n_bins : int, default=10
            Number of bins for each exit.
        %(plotted)s
        """
        policy, X, y = policy_and_labelled_data(estimator, X, y)
        return cls.from_predictions(
            y,
            policy.predict_proba(X),
            policy.predict_exit(X),
            n_exits=len(policy.costs_),
            labels=policy.classes_,
            n_bins=n_bins,
            **plot_parameters,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_prob: ArrayLike,
        exits: ArrayLike,
        *,
        n_exits: int,
        labels: ArrayLike | None = None,
        n_bins: int = 10,
        **plot_parameters: Any,
    ) -> ReliabilityDisplay:
        """Put predictions into bins, and draw the reliability.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            Class labels.
        y_prob : array-like of shape (n_samples, n_classes)
            Class probabilities of each sample, from the exit at which it leaves.
        exits : array-like of shape (n_samples,) of int
            Exit at which each sample leaves.
        n_exits : int
            Number of exits.
        labels : array-like of shape (n_classes,), default=None
            Class of each column of `y_prob`. By default, the sorted classes of `y_true`.
        n_bins : int, default=10
            Number of bins for each exit.
        %(plotted)s
        """
        true_labels, stops = column_or_1d(y_true), check_exits(exits, n_exits)
        probabilities = check_array(y_prob, dtype=np.float64, input_name="y_prob")
        check_consistent_length(true_labels, probabilities, stops)
        labelled, columns = column_of_labels(true_labels, labels, probabilities, "y_prob")
        probabilities, stops = probabilities[labelled], stops[labelled]
        classes = np.unique(true_labels) if labels is None else labels
        true_labels = true_labels[labelled]
        correct = np.argmax(probabilities, axis=1) == columns
        shape = n_exits, n_bins
        confidences, accuracies, counts = np.empty(shape), np.empty(shape), np.empty(shape, dtype=np.int64)
        errors = np.full(n_exits, np.nan)
        for k in range(n_exits):
            leaves = stops == k
            confidence = probabilities[leaves].max(axis=1)
            counts[k], confidences[k], accuracies[k] = _bins(confidence, correct[leaves], n_bins)
            if leaves.any():
                errors[k] = expected_calibration_error(
                    true_labels[leaves], probabilities[leaves], n_bins=n_bins, strategy="uniform", labels=classes
                )
        return cls(confidences=confidences, accuracies=accuracies, counts=counts, errors=errors).plot(**plot_parameters)

    def plot(self, axes: Sequence[Axes] | None = None, *, n_columns: int = 4) -> ReliabilityDisplay:
        """Draw one small picture per exit.

        Parameters
        ----------
        axes : sequence of n_exits matplotlib Axes, default=None
            Axes to draw on; by default, those of a new figure.
        n_columns : int, default=4
            Number of pictures in a row of a new figure.

        %(display)s
        ValueError
            If the number of axes is not the number of exits.
        """
        n_exits, n_bins = self.counts.shape
        self.axes_ = axes_of_exits(axes, n_exits, n_columns=n_columns, width=7, height=2.4)
        self.figure_: Any = self.axes_[0].figure
        middles = (np.arange(n_bins) + 0.5) / n_bins
        self.lines_, self.bars_ = [], []
        for k, ax in enumerate(self.axes_):
            shares = self.counts[k] / max(self.counts[k].sum(), 1)
            self.bars_.append(
                ax.bar(100 * middles, 100 * shares, width=92 / n_bins, color="0.8", label="samples (% of the exit's)")
            )
            ax.plot([0, 100], [0, 100], color="0.4", linestyle="--", linewidth=1, label="accuracy = confidence")
            filled = self.counts[k] > 0
            (line,) = ax.plot(
                100 * self.confidences[k, filled],
                100 * self.accuracies[k, filled],
                color=COLORS[0],
                marker="o",
                markersize=4,
                clip_on=False,
                label="accuracy",
            )
            line.set_in_layout(False)  # the layout cannot place an unclipped line without points
            self.lines_.append(line)
            error = f"ECE {100 * self.errors[k]:.1f} %" if filled.any() else "no sample leaves"
            ax.set_title(f"exit {k}, n = {self.counts[k].sum()}\n{error}", fontsize="small")
            ax.set(xlim=(0, 100), ylim=(0, 100), xticks=[0, 50, 100], yticks=[0, 50, 100])
        handles, _ = self.axes_[0].get_legend_handles_labels()
        label_exits(self.axes_, "Confidence (%)", "Accuracy (%)", handles, own_figure=axes is None)
        return self


def _bins(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], n_bins: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Number of samples, mean confidence and accuracy in each bin; bin b is ``(b / n_bins, (b + 1) / n_bins]``."""
    bins = np.searchsorted(np.arange(1, n_bins) / n_bins, confidence, side="left")
    counts = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        confidences = np.bincount(bins, weights=confidence, minlength=n_bins) / counts
        accuracies = np.bincount(bins, weights=correct, minlength=n_bins) / counts
    return counts, confidences, accuracies
