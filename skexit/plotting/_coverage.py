"""Display of the coverage and the size of prediction sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import column_or_1d

from skexit.plotting._figures import line_styles
from skexit.policies._access import policy_and_labelled_data
from skexit.uncertainty import coverage_score, inefficiency_score
from skexit.utils._docstring import shared_docs
from skexit.utils._optional import import_pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@shared_docs
class CoverageDisplay:
    """Coverage and mean size of the sets of ``predict_set`` against the requested coverage.

    Parameters
    ----------
    alphas : array-like of shape (n_alphas,)
        Shares of sets that may miss the true class.
    coverages : dict of str to array-like of shape (n_alphas,)
        Share of sets that contain the true class, for each method.
    sizes : dict of str to array-like of shape (n_alphas,)
        Mean number of classes in a set, for each method.

    Attributes
    ----------
    alphas : ndarray of shape (n_alphas,)
        As given.
    coverages, sizes : dict of str to ndarray of shape (n_alphas,)
        As given.
    coverage_lines_, size_lines_ : dict of str to matplotlib Line2D
        Lines of each method.
    axes_ : ndarray of shape (2,) of matplotlib Axes
        Axes of the coverages and axes of the sizes.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    skexit.uncertainty.coverage_score : Share of sets that contain the true class.
    skexit.uncertainty.inefficiency_score : Mean number of classes in a set.

    Examples
    --------
    >>> from skexit.plotting import CoverageDisplay
    >>> sets = {"gated": [[[True, False], [True, True]]]}  # at one alpha, of two samples
    >>> display = CoverageDisplay.from_predictions([0, 1], sets, alphas=[0.1])
    >>> display.coverages, display.sizes
    ({'gated': array([1.])}, {'gated': array([1.5])})
    """

    def __init__(self, alphas: ArrayLike, coverages: Mapping[str, ArrayLike], sizes: Mapping[str, ArrayLike]) -> None:
        self.alphas: NDArray[np.float64] = column_or_1d(alphas)
        self.coverages = {method: np.asarray(values, dtype=np.float64) for method, values in coverages.items()}
        self.sizes = {method: np.asarray(values, dtype=np.float64) for method, values in sizes.items()}

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        alphas: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
        methods: Sequence[str] = ("general", "ims", "strict", "gated"),
        **plot_parameters: Any,
    ) -> CoverageDisplay:
        """Compute the prediction sets of a calibrated policy, and draw their coverage and size.

        Parameters
        ----------
        estimator : ExitPolicy or Pipeline
            A fitted and calibrated policy, or a Pipeline that ends in one.
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Rows that were not used in calibration.
        y : array-like of shape (n_samples,)
            Class labels.
        alphas : sequence of float, default=(0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
            Shares of sets that may miss the true class.
        methods : sequence of str, default=("general", "ims", "strict", "gated")
            Methods of ``predict_set``.
        %(plotted)s

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the policy is not calibrated.
        """
        policy, X, y = policy_and_labelled_data(estimator, X, y)
        sets = {method: [policy.predict_set(X, alpha, method) for alpha in alphas] for method in methods}
        return cls.from_predictions(y, sets, alphas=alphas, labels=policy.classes_, **plot_parameters)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_sets: Mapping[str, Sequence[ArrayLike]],
        *,
        alphas: ArrayLike,
        labels: ArrayLike | None = None,
        **plot_parameters: Any,
    ) -> CoverageDisplay:
        """Compute the coverage and size of prediction sets, and draw them.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            Class labels.
        y_sets : dict of str to sequence of n_alphas arrays of shape (n_samples, n_classes) of bool
            Sets of each method, one array per alpha.
        alphas : array-like of shape (n_alphas,)
            Shares of sets that may miss the true class.
        labels : array-like of shape (n_classes,), default=None
            Class of each column of the sets. By default, the sorted classes of `y_true`.
        %(plotted)s

        Raises
        ------
        ValueError
            If a method does not have one array of sets per alpha.
        """
        levels = column_or_1d(alphas)
        for method, sets in y_sets.items():
            if len(sets) != len(levels):
                raise ValueError(f"y_sets[{method!r}] has {len(sets)} arrays; give {len(levels)}, one per alpha.")
        return cls(
            levels,
            {method: [coverage_score(y_true, own, labels=labels) for own in sets] for method, sets in y_sets.items()},
            {method: [inefficiency_score(own) for own in sets] for method, sets in y_sets.items()},
        ).plot(**plot_parameters)

    def plot(self, axes: Sequence[Axes] | None = None) -> CoverageDisplay:
        """Draw coverages and sizes.

        Parameters
        ----------
        axes : sequence of two matplotlib Axes, default=None
            Axes of the coverages and axes of the sizes; by default, those of a new figure.

        %(display)s
        ValueError
            If the number of axes is not two.
        """
        if axes is None:
            axes = import_pyplot().subplots(1, 2, figsize=(7, 3.4), layout="constrained")[1]
        self.axes_ = np.asarray(axes, dtype=object).ravel()
        if len(self.axes_) != 2:
            raise ValueError(f"axes has {len(self.axes_)} Axes; give two, for coverages and for sizes.")
        self.figure_: Any = self.axes_[0].figure
        self.coverage_lines_: dict[str, Any] = {}
        self.size_lines_: dict[str, Any] = {}
        requested = 100 * (1 - self.alphas)
        for (method, coverage), (color, marker) in zip(self.coverages.items(), line_styles(), strict=False):
            # Hollow markers, so that equal points of several methods are all visible.
            style: dict[str, Any] = {"color": color, "marker": marker, "fillstyle": "none", "label": method}
            (self.coverage_lines_[method],) = self.axes_[0].plot(requested, 100 * coverage, **style)
            (self.size_lines_[method],) = self.axes_[1].plot(requested, self.sizes[method], **style)
        self.axes_[0].axline((100, 100), slope=1, color="0.4", linestyle="--", linewidth=1, label="requested")
        self.axes_[0].set_ylabel("Coverage (%)")
        self.axes_[1].set_ylabel("Mean classes in a set")
        for ax in self.axes_:
            ax.set_xlabel(r"Requested coverage $1 - \alpha$ (%)")
            ax.grid(alpha=0.3)
        self.axes_[0].legend(fontsize="small")
        return self
