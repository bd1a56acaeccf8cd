"""Display of accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_consistent_length, column_or_1d

from skexit.metrics import AccuracyCostCurve, bootstrap_interval
from skexit.plotting._figures import label_level, label_lines, line_styles, new_axes
from skexit.policies import ExitPolicy, OracleResult
from skexit.policies._access import only_rows_with_labels, policy_and_data
from skexit.utils._docstring import shared_docs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@shared_docs
class AccuracyCostDisplay:
    """Accuracy against mean cost: a line for each method, or a marker for a method with one point.

    Parameters
    ----------
    curves : dict of str to (array-like of shape (n_points,), array-like of shape (n_points,))
        Mean costs and accuracies of each method. Costs include heads, and are fractions of the network without them.
    intervals : dict of str to (array-like of shape (n_points,), array-like of shape (n_points,)), default=None
        Lower and upper limits of the accuracy at each point, drawn as a band.
    deviations : dict of str to (array-like of shape (n_points,), array-like of shape (n_points,)), default=None
        Standard deviations of cost and accuracy at each point, drawn as error bars.
    oracle : OracleResult, default=None
        Upper bound for every policy, from :func:`skexit.oracle`; drawn as a star.
    head_cost : float, default=0.0
        Largest cost of the heads of all exits, as a fraction of the network's cost; written below
        the axis. `from_estimators` computes it.
    network_accuracy : float, default=None
        Accuracy of the plain network, in [0, 1], drawn as a horizontal line.

    Attributes
    ----------
    curves : dict of str to (ndarray of shape (n_points,), ndarray of shape (n_points,))
        Points of each method, in the order of rising cost.
    intervals, deviations : dict of str to (ndarray of shape (n_points,), ndarray of shape (n_points,))
        As given, in the order of the points.
    lines_ : dict of str to matplotlib Line2D
        Points of each method.
    hulls_ : dict of str to matplotlib Line2D
        Upper hull of each method, if ``plot`` was called with ``hull=True``.
    bands_ : dict of str to matplotlib artist
        Interval of each method that has one.
    error_bars_ : dict of str to matplotlib ErrorbarContainer
        Deviations of each method that has them.
    oracle_, network_ : matplotlib Line2D or None
        The star of the oracle and the line of the plain network's accuracy; None if they are not drawn.
    ax_ : matplotlib Axes
        The axes that were drawn on.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    skexit.metrics.accuracy_cost_curve : The points of one method.

    Examples
    --------
    >>> from skexit.plotting import AccuracyCostDisplay
    >>> display = AccuracyCostDisplay({"a policy": ([0.8, 0.4], [0.93, 0.88])})
    >>> display.curves["a policy"]
    (array([0.4, 0.8]), array([0.88, 0.93]))
    """

    def __init__(
        self,
        curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
        *,
        intervals: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
        deviations: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
        oracle: OracleResult | None = None,
        head_cost: float = 0.0,
        network_accuracy: float | None = None,
    ) -> None:
        if not curves:
            raise ValueError("curves is empty; give the costs and accuracies of at least one method.")
        orders = {name: _order(name, *curve) for name, curve in curves.items()}
        self.curves = _reorder(curves, orders)
        self.intervals = _reorder(intervals or {}, orders)
        self.deviations = _reorder(deviations or {}, orders)
        self.oracle = oracle
        self.head_cost = head_cost
        self.network_accuracy = network_accuracy

    @classmethod
    def from_estimators(
        cls,
        estimators: Mapping[str, Sequence[Any] | Any],
        X: Any,
        y: ArrayLike,
        *,
        n_resamples: int = 0,
        confidence_level: float = 0.95,
        random_state: int | np.random.RandomState | None = None,
        oracle: OracleResult | None = None,
        network_accuracy: float | None = None,
        **plot_parameters: Any,
    ) -> AccuracyCostDisplay:
        """Compute accuracies and costs of fitted policies on data, and draw a point for each.

        Parameters
        ----------
        estimators : dict of str to ExitPolicy or Pipeline, or to a list of these
            Fitted policies of each method, one per budget or price; a Pipeline ends in a policy. A list is drawn as a
            line through its points, and a single policy as one marker. For a line of one fit, give
            ``[policy.with_budget(budget) for budget in (0.4, 0.6, 0.8)]``.
        %(X_y)s
        %(bootstrap)s
        network_accuracy : float, default=None
            Accuracy of the plain network, drawn as a horizontal line.
        %(plotted)s
        """
        predictions: dict[str, tuple[ArrayLike, ArrayLike]] = {}
        head_cost = 0.0
        for name, policies in estimators.items():
            # A pipeline also has a length, the number of its steps, but is one policy.
            alone = isinstance(policies, BaseEstimator)
            of_method = [policies] if alone else list(policies)
            if not of_method:
                raise ValueError(f"estimators[{name!r}] is empty; give at least one fitted policy.")
            X, y = only_rows_with_labels(of_method[0], X, y)
            results = [_predictions_and_costs(policy, X) for policy in of_method]
            y_pred, costs, of_heads = zip(*results, strict=True)
            head_cost = max(head_cost, *of_heads)
            predictions[name] = np.column_stack(y_pred), np.column_stack(costs)
        return cls.from_predictions(
            y,
            predictions,
            n_resamples=n_resamples,
            confidence_level=confidence_level,
            random_state=random_state,
            oracle=oracle,
            head_cost=head_cost,
            network_accuracy=network_accuracy,
            **plot_parameters,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        predictions: Mapping[str, tuple[ArrayLike, ArrayLike]],
        *,
        n_resamples: int = 0,
        confidence_level: float = 0.95,
        random_state: int | np.random.RandomState | None = None,
        oracle: OracleResult | None = None,
        head_cost: float = 0.0,
        network_accuracy: float | None = None,
        **plot_parameters: Any,
    ) -> AccuracyCostDisplay:
        """Compute accuracies and costs of predictions, and draw them.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            Class labels.
        predictions : dict of str to (array-like, array-like), both of shape (n_samples, n_points)
            For each method, the predicted class of each sample at each point of the line, and the cost of this
            sample, as a fraction of the network without heads.
        %(bootstrap)s
        head_cost : float, default=0.0
            Largest cost of the heads of all exits, as a fraction of the network's cost.
        network_accuracy : float, default=None
            Accuracy of the plain network, drawn as a horizontal line.
        %(plotted)s

        Raises
        ------
        ValueError
            If classes and costs of a method do not have the same shape.
        """
        labels = column_or_1d(y_true)
        curves: dict[str, tuple[ArrayLike, ArrayLike]] = {}
        intervals: dict[str, tuple[ArrayLike, ArrayLike]] = {}
        for name, (classes, costs) in predictions.items():
            y_pred, sample_costs = np.asarray(classes), np.asarray(costs, dtype=np.float64)
            if y_pred.ndim != 2 or y_pred.shape != sample_costs.shape:
                raise ValueError(
                    f"predictions[{name!r}] has classes of shape {y_pred.shape} and costs of shape "
                    f"{sample_costs.shape}; both must be (n_samples, n_points)."
                )
            check_consistent_length(labels, y_pred)
            curves[name] = sample_costs.mean(axis=0), _accuracies(labels, y_pred)
            if n_resamples:
                intervals[name] = bootstrap_interval(
                    _accuracies,
                    labels,
                    y_pred,
                    confidence_level=confidence_level,
                    n_resamples=n_resamples,
                    method="share",
                    random_state=random_state,
                )
        return cls(
            curves, intervals=intervals, oracle=oracle, head_cost=head_cost, network_accuracy=network_accuracy
        ).plot(**plot_parameters)

    @classmethod
    def from_cv_results(
        cls, cv_results: Mapping[str, Any], *, by: str | None = None, **plot_parameters: Any
    ) -> AccuracyCostDisplay:
        """Draw the settings of a search, with their means and standard deviations over the folds.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of a search with ``scoring=accuracy_and_cost()``.
        by : str, default=None
            Parameter of the search that separates the lines, such as ``"policy"`` or ``"policy__lam"``.
            By default, all settings are on one line.
        %(plotted)s
            Settings that could not be fitted, whose scores are NaN, are left out.

        Raises
        ------
        ValueError
            If the search did not measure accuracy and mean cost, or has no parameter `by`.
        """
        keys = [f"{what}_test_{score}" for what in ("mean", "std") for score in ("mean_cost", "accuracy")]
        missing = [key for key in keys if key not in cv_results]
        if missing:
            raise ValueError(
                f"cv_results has no {missing[0]!r}: search with scoring=accuracy_and_cost() of skexit.model_selection."
            )
        costs, accuracies, cost_deviations, accuracy_deviations = (np.asarray(cv_results[key]) for key in keys)
        scored = np.isfinite(costs) & np.isfinite(accuracies)
        names = np.array(_names(cv_results, by), dtype=object)
        rows = {name: np.flatnonzero((names == name) & scored) for name in dict.fromkeys(names[scored])}
        return cls(
            {name: (costs[own], accuracies[own]) for name, own in rows.items()},
            deviations={name: (cost_deviations[own], accuracy_deviations[own]) for name, own in rows.items()},
        ).plot(**plot_parameters)

    def plot(self, ax: Axes | None = None, *, hull: bool = False, direct_labels: bool = False) -> AccuracyCostDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default, those of a new figure.
        hull : bool, default=False
            Whether to draw the upper hull of the points of a method, which mixtures of neighbouring
            policies reach, instead of a line through all points.
        direct_labels : bool, default=False
            Whether to write the name of each method beside its line, instead of in a legend. It is readable for up to
            four methods.

        %(display)s
        """
        self.ax_ = new_axes(ax, 7, 4.5)
        self.figure_: Any = self.ax_.figure
        self.lines_: dict[str, Any] = {}
        self.hulls_: dict[str, Any] = {}
        self.bands_: dict[str, Any] = {}
        self.error_bars_: dict[str, Any] = {}
        for (name, (costs, accuracies)), (color, marker) in zip(self.curves.items(), line_styles(), strict=False):
            linestyle = "-" if len(costs) > 1 and not hull else ""
            (self.lines_[name],) = self.ax_.plot(
                100 * costs, 100 * accuracies, marker=marker, linestyle=linestyle, markersize=6, label=name, color=color
            )
            if hull:
                upper = AccuracyCostCurve(costs, accuracies).hull()
                (self.hulls_[name],) = self.ax_.plot(100 * upper.costs, 100 * upper.accuracies, color=color)
            if name in self.intervals:
                self._plot_interval(name, color)
            if name in self.deviations:
                x_error, y_error = (100 * deviation for deviation in self.deviations[name])
                self.error_bars_[name] = self.ax_.errorbar(
                    100 * costs, 100 * accuracies, y_error, x_error, fmt="none", ecolor=color, elinewidth=1, alpha=0.6
                )
        self.oracle_: Any = None
        if self.oracle is not None:
            point = [100 * self.oracle.mean_cost], [100 * self.oracle.accuracy]
            (self.oracle_,) = self.ax_.plot(*point, "k*", markersize=11, label="oracle (knows the labels)")
        self.network_: Any = None
        if self.network_accuracy is not None:
            self.network_ = self.ax_.axhline(
                100 * self.network_accuracy, color="black", linestyle="--", linewidth=1, label="plain network"
            )
        heads = f", with heads of up to {100 * self.head_cost:.2g} %" if self.head_cost else ""
        self.ax_.set(xlabel=f"Mean cost (% of the plain network{heads})", ylabel="Accuracy (%)")
        self.ax_.grid(alpha=0.3)
        if direct_labels:
            label_lines(self.ax_, self.lines_.values())
            if self.network_ is not None:
                label_level(self.ax_, self.network_)
        else:
            self.ax_.legend(fontsize="small")
        return self

    def _plot_interval(self, name: str, color: str) -> None:
        costs, _ = self.curves[name]
        low, high = self.intervals[name]
        if len(costs) > 1:
            self.bands_[name] = self.ax_.fill_between(
                100 * costs, 100 * low, 100 * high, color=color, alpha=0.15, linewidth=0
            )
        else:  # a band at one point would have no width
            self.bands_[name] = self.ax_.vlines(100 * costs, 100 * low, 100 * high, color=color, alpha=0.5)


def _order(name: str, costs: ArrayLike, accuracies: ArrayLike) -> NDArray[np.intp]:
    if np.ndim(costs) != 1 or np.shape(costs) != np.shape(accuracies):
        raise ValueError(
            f"curves[{name!r}] has costs of shape {np.shape(costs)} and accuracies of shape {np.shape(accuracies)}; "
            "both must be (n_points,)."
        )
    return np.argsort(np.asarray(costs), kind="stable")


def _reorder(
    pairs: Mapping[str, tuple[ArrayLike, ArrayLike]], orders: Mapping[str, NDArray[np.intp]]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    return {
        name: (np.asarray(first, dtype=np.float64)[orders[name]], np.asarray(second, dtype=np.float64)[orders[name]])
        for name, (first, second) in pairs.items()
    }


def _predictions_and_costs(estimator: Any, X: Any) -> tuple[NDArray[Any], NDArray[np.float64], float]:
    """Predictions and costs of the samples, and the cost of the heads of all exits."""
    policy: ExitPolicy
    policy, X = policy_and_data(estimator, X)
    return policy.predict(X), policy.costs_[policy.predict_exit(X)], float(policy.layout_.head_fractions[-1])


def _accuracies(y_true: NDArray[Any], y_pred: NDArray[Any]) -> NDArray[np.float64]:
    return (y_pred == y_true[:, None]).mean(axis=0)


def _names(cv_results: Mapping[str, Any], by: str | None) -> list[str]:
    """Name of the line of each setting."""
    if by is None:
        return ["settings"] * len(cv_results["params"])
    if f"param_{by}" not in cv_results:
        searched = sorted(key.removeprefix("param_") for key in cv_results if key.startswith("param_"))
        raise ValueError(f"by={by!r} is not a parameter of the search, which has the parameters {searched}.")
    settings = [params.get(by) for params in cv_results["params"]]
    names = ["not set" if setting is None else " ".join(str(setting).split()) for setting in settings]
    kinds = [type(setting).__name__ if isinstance(setting, BaseEstimator) else None for setting in settings]
    # The name of its class is enough for an estimator, unless two settings have the same class.
    short = None not in kinds and len(set(kinds)) == len(set(names))
    return [str(kind) for kind in kinds] if short else names
