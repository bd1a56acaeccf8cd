"""The choice of exits with the best accuracy at a budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.data import ExitArray, ExitLayout
from skexit.data._selection import layout_of_exits
from skexit.data._validation import check_budget, cross_validation_splits
from skexit.data._walk import collect, correct_exits, no_features
from skexit.heads._fit_heads import fit_heads
from skexit.model_selection._subset_search import best_subsets
from skexit.policies import ThresholdPolicy
from skexit.policies._quotas import exits_from_scores, quota_thresholds
from skexit.uncertainty import log_odds
from skexit.utils._checks import at_least, is_integer

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ExitChoice:
    """The exits that `choose_exits` chose.

    Parameters
    ----------
    exits : ndarray of shape (n_chosen,) of int
        The exits, in rising order, for ``X.select_exits(exits)``. The last exit of X is the last of them.
    names : list of str or None
        Their names in the network, for ``ExitExtractor(network, exits=names)`` and ``EarlyExitModel``. None if X
        does not come from the cache of an extraction.
    table : pandas.DataFrame
        The best exits for each number of exits, which is the index ``n_exits``. ``accuracy`` is the mean over the
        folds at the budget, ``standard_error`` that of this mean, and ``exits`` a tuple. The accuracy is nan if the
        budget is below the cost of the first exit.
    """

    exits: NDArray[np.int64]
    names: list[str] | None
    table: pd.DataFrame


def choose_exits(
    X: Any,
    y: ArrayLike,
    n_exits: int | None = None,
    *,
    budget: float = 0.5,
    heads: Any = None,
    cv: Any = 5,
    layout: ExitLayout | int | None = None,
    random_state: int | np.random.RandomState | None = None,
    groups: ArrayLike | None = None,
) -> ExitChoice:
    """Choose the exits that have the best accuracy at a budget, from an X with all exits that a network could have.

    Heads are trained once, at all exits, and cross-fitted. Sets of exits are compared by cross-validation of
    ``ThresholdPolicy(budget=budget)``: its thresholds are set on all folds but one and measured on that fold, in turn.
    The sets are found by sequential floating forward selection [1]_. Each contains the last exit. Costs count the
    network, and the heads of the exits in the set.

    Parameters
    ----------
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Logits and features of all exits, such as the ``X`` of a cache that was extracted with ``exits`` of all blocks
        of the network. For costs in ms, give it the layout that :meth:`skexit.runtime.ExitLatency.layout` makes of
        times measured with all exits.
    y : array-like of shape (n_samples,)
        Class labels. Rows with the label -1 are left out.
    n_exits : int, default=None
        Number of exits to choose, the last one counted. By default the smallest number whose accuracy is at most one
        standard error below the best.
    budget : float, default=0.5
        Mean cost of a sample, a fraction in (0, 1] of the network's cost.
    heads : ExitHeads, default=None
        Heads to train at exits without logits; by default ``ExitHeads()`` with this `random_state`.
    cv : int, cross-validation generator or iterable, default=5
        The folds on which sets of exits are compared. With an int, rows are shuffled, and stratified if the classes
        have enough rows.
    layout : ExitLayout or int, default=None
        Layout of X, if X does not have one.
    random_state : int, RandomState instance or None, default=None
        Seeds heads and folds.
    groups : array-like of shape (n_samples,), default=None
        Group of each sample. Rows of a group are in the same fold.

    Returns
    -------
    ExitChoice
        The exits, their names, and a table of the accuracy by number of exits.

    Raises
    ------
    ValueError
        If X does not fit its layout, `n_exits` is not a number of exits of X, the budget is below the cost of the first
        exit, or of the last exit if `n_exits` is 1, or there are fewer groups than folds.

    See Also
    --------
    skexit.backbone.exit_points : Exits at about equal steps of cost, without data.
    skexit.runtime.pruned : Switches off exits of a fitted policy by measured times.

    Notes
    -----
    The accuracies in the table are slightly too high, because the exits were chosen on the same rows. Measure the
    chosen exits on other rows.

    Heads that depend on earlier exits, as with ``cascade=True``, are not trained again for each set of exits.

    References
    ----------
    .. [1] Pudil, Novovičová, Kittler. "Floating search methods in feature selection." Pattern Recognition Letters 15
       (1994).

    Examples
    --------
    The second of four exits has noise instead of logits.

    >>> import numpy as np
    >>> from skexit import stack_exits
    >>> from skexit.model_selection import choose_exits
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(3, size=600)
    >>> X = stack_exits([scale * np.eye(3)[y] + rng.normal(size=(600, 3)) for scale in (1, 0, 2, 4)])
    >>> choice = choose_exits(X, y, n_exits=3, budget=0.6, random_state=0)
    >>> choice.exits
    array([0, 2, 3])
    >>> choice.table["accuracy"].round(2).tolist()
    [nan, 0.85, 0.89]
    >>> X.select_exits(choice.exits)
    ExitArray(600 rows, 9 columns, 3 exits, float64)
    """
    policy = ThresholdPolicy(budget=budget, heads=heads, layout=layout)
    policy._validate_params()
    exits, classes, labels, weight, numbers = policy._validate_training_data(X, y, None, groups)
    n_all = exits.layout.n_exits
    _check_n_exits(n_exits, n_all)
    _, with_logits = fit_heads(heads, exits, classes, labels, weight, random_state, numbers)
    _check_budget(budget, n_exits, with_logits.layout)
    comparison = _Comparison(with_logits, labels, budget, cross_validation_splits(cv, labels, random_state, numbers))
    found = best_subsets(comparison.mean, range(n_all - 1), n_all - 1, n_exits or n_all)
    table = comparison.table(found)
    chosen = np.array(found[n_exits or _fewest_within_one_standard_error(table)])
    names = exits.exit_names
    return ExitChoice(chosen, None if names is None else [names[k] for k in chosen], table)


def _check_n_exits(n_exits: int | None, n_all: int) -> None:
    if n_exits is None or (is_integer(n_exits) and 1 <= n_exits <= n_all):
        return
    raise ValueError(f"n_exits={n_exits!r} must be from 1 to {n_all}, the number of exits of X, or None.")


def _check_budget(budget: float, n_exits: int | None, layout: ExitLayout) -> None:
    check_budget(budget, layout)
    last = layout_of_exits(layout, [layout.n_exits - 1]).cost_fractions[0]
    if n_exits == 1 and last > budget:
        raise ValueError(
            f"n_exits=1 is the last exit alone, which costs {at_least(last)} of the network, above budget={budget!r}. "
            "Choose 2 exits or more."
        )


class _Comparison:
    """Accuracies at a budget of sets of exits, on each fold."""

    def __init__(
        self, X: ExitArray, labels: NDArray[np.int64], budget: float, folds: list[tuple[NDArray[Any], NDArray[Any]]]
    ) -> None:
        self.layout, self.budget, self.folds = X.layout, budget, folds
        scores = collect(lambda k, logits, features, memory: log_odds(logits), X, uses_features=no_features)
        self.scores = np.stack(list(scores.values()), axis=1)
        self.correct = correct_exits(X, labels)
        self.accuracies = cache(self._accuracies)

    def mean(self, exits: tuple[int, ...]) -> float:
        """Mean accuracy over the folds; ``-inf`` if the budget is below the cost of the first exit."""
        return float(np.mean(self.accuracies(exits)))

    def table(self, found: dict[int, tuple[int, ...]]) -> pd.DataFrame:
        """Mean and standard error of the accuracies of the sets of each size."""
        import pandas as pd

        accuracies = np.array([self.accuracies(exits) for exits in found.values()])
        accuracies[np.isneginf(accuracies)] = np.nan
        columns = {
            "accuracy": accuracies.mean(axis=1),
            "standard_error": accuracies.std(axis=1, ddof=1) / np.sqrt(len(self.folds)),
            "exits": list(found.values()),
        }
        return pd.DataFrame(columns, index=pd.Index(list(found), name="n_exits"))

    def _accuracies(self, exits: tuple[int, ...]) -> Floats:
        costs = layout_of_exits(self.layout, exits).cost_fractions
        if costs[0] > self.budget:
            return np.full(len(self.folds), -np.inf)
        scores, correct = self.scores[:, exits], self.correct[:, exits]
        return np.array([self._accuracy(scores, correct, costs, *fold) for fold in self.folds])

    def _accuracy(
        self, scores: Floats, correct: NDArray[np.bool_], costs: Floats, train: NDArray[Any], test: NDArray[Any]
    ) -> float:
        thresholds = quota_thresholds(scores[train], costs, self.budget, warn=False)
        stops = exits_from_scores(scores[test], thresholds)
        return float(correct[test, stops].mean())


def _fewest_within_one_standard_error(table: pd.DataFrame) -> int:
    accuracies, errors = table["accuracy"].to_numpy(), table["standard_error"].to_numpy()
    best = int(np.nanargmax(accuracies))
    return int(table.index[accuracies >= accuracies[best] - errors[best]].min())
