"""Detect changes of inputs from exits, costs, confidence and, if there are any, labels."""

from __future__ import annotations

import copy
from threading import RLock
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, column_or_1d

from skexit.monitoring._eprocess import DriftEvidence
from skexit.monitoring._reference import mean_interval
from skexit.policies._access import check_fits, policy_and_data
from skexit.utils._labels import has_label
from skexit.utils._warnings import warn

Floats = NDArray[np.float64]

#: Recent means are exponential averages over about this many samples.
_N_RECENT = 500
#: Most rows of the history.
_N_HISTORY = 512


class ExitMonitor:
    r"""Detects whether inputs have changed compared with reference rows, after every sample.

    The monitor compares the share of samples at each exit, the mean cost, the mean confidence and, if there are labels,
    the accuracy with their values on reference rows. It collects evidence for a rise and for a fall of each quantity as
    e-values [1]_, and raises an alarm if the mean of these e-values reaches :math:`2 / \text{level}`. If nothing
    changes, the probability of an alarm is at most `level`, for any number of samples and of checks. Half of this
    probability is for the uncertainty of the reference means, which are estimated from the reference rows. Memory does
    not grow with the number of samples.

    Parameters
    ----------
    policy : fitted policy, or pipeline or search that ends in one
        The policy that runs in production.
    X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        Reference rows: unchanged inputs on which policy and heads were not fitted. With more rows, smaller changes are
        detected.
    y : array-like of shape (n_samples,), default=None
        Labels of the reference rows. Without them, accuracy is not monitored. The label -1 means that a row has no
        label, unless -1 is a class; such rows do not count in the accuracy.
    level : float, default=0.01
        Largest probability of a false alarm over all samples, in (0, 1).

    Attributes
    ----------
    changed : bool
        Whether there was an alarm.
    e_value : float
        Evidence for a change now.
    advice : str
        What changed, and what to do.
    changed_at : int or None
        Number of samples at the first alarm.
    first_changed : str or None
        The quantity with the most evidence at the first alarm, such as ``"exit 0"`` or ``"mean cost"``.
    n_samples : int
        Number of samples so far.
    history : DataFrame
        Recent means and the evidence over time, at most 512 rows.

    Raises
    ------
    ValueError
        If `level` is out of range, X does not fit the policy, or y has another length than X, a class that the policy
        does not know, or no label.

    Warns
    -----
    UserWarning
        At the first alarm.

    References
    ----------
    .. [1] Ramdas et al. "Game-theoretic statistics and safe anytime-valid inference." Statistical Science 38 (2023).

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> from skexit.monitoring import ExitMonitor
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = ThresholdPolicy(budget=0.7, layout=2).fit(X[:600], y[:600])
    >>> monitor = ExitMonitor(policy, X[600:1200], y[600:1200])
    >>> noisy = X[1200:] + np.random.default_rng(0).normal(scale=6, size=X[1200:].shape)
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # that inputs have changed
    ...     monitor.update(policy.predict_exit(noisy), correct=policy.predict(noisy) == y[1200:])
    >>> monitor.changed
    True
    """

    def __init__(self, policy: Any, X: Any, y: ArrayLike | None = None, *, level: float = 0.01) -> None:
        if isinstance(level, bool) or not 0 < level < 1:
            raise ValueError(f"level={level!r} must be in (0, 1). It is the probability of a false alarm.")
        self.level = level
        labels = None if y is None else column_or_1d(y)
        check_consistent_length(X, labels)
        check_fits(policy, X, labels)
        own, exits = policy_and_data(policy, X)
        self._costs: Floats = own.costs_
        stops = own.predict_exit(exits)
        confidence = own.predict_proba(exits).max(axis=1)
        correct = None if labels is None else _correct(own.predict(exits), labels, own.classes_)
        values = self._values(len(stops), stops, confidence, correct)
        self._names = [f"exit {k}" for k in range(len(self._costs))] + ["mean cost", "confidence", "accuracy"]
        self._watched: NDArray[np.bool_] = np.any(~np.isnan(values), axis=0)
        intervals = np.full((len(self._names), 2), np.nan)
        for column in np.flatnonzero(self._watched):
            known = values[~np.isnan(values[:, column]), column]
            intervals[column] = mean_interval(known, level / 2 / self._watched.sum())
        self._evidence = DriftEvidence(*intervals[self._watched].T)
        self._intervals, self._expected = intervals, _means(values)
        self.n_samples = 0
        self.changed_at: int | None = None
        self.first_changed: str | None = None
        self._sums, self._counts = np.zeros(len(self._names)), np.zeros(len(self._names), dtype=np.int64)
        self._recent = np.full(len(self._names), np.nan)
        self._history: list[tuple[float, ...]] = []
        self._stride, self._next = 1, 1
        self._lock = RLock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return copy.deepcopy({name: value for name, value in self.__dict__.items() if name != "_lock"})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=RLock())

    @property
    def changed(self) -> bool:
        """Whether there was an alarm."""
        return self.changed_at is not None

    @property
    def e_value(self) -> float:
        """Evidence for a change now: the mean of the e-values of all quantities, 1 before the first sample."""
        with self._lock:
            return float(self._evidence.e_values().mean())

    def update(
        self, exits: ArrayLike | None = None, *, confidence: ArrayLike | None = None, correct: ArrayLike | None = None
    ) -> None:
        """Add samples, in the order in which they arrived.

        If labels arrive later, pass `exits` and `confidence` first, and `correct` in a later call.

        Parameters
        ----------
        exits : array-like of shape (n_samples,) of int, default=None
            The exit at which each sample stopped, counted from 0.
        confidence : array-like of shape (n_samples,), default=None
            The largest probability of each sample: ``probabilities.max(axis=1)``.
        correct : array-like of shape (n_samples,) of bool, default=None
            Whether each prediction was correct. If some samples have no label, pass the others in a separate call.

        Raises
        ------
        ValueError
            If no array is passed, arrays differ in length, an exit or a probability is out of range, `correct` has
            other values than True and False, or `correct` is passed and the reference rows had no labels.
        """
        given = {
            name: np.asarray(array)
            for name, array in (("exits", exits), ("confidence", confidence), ("correct", correct))
            if array is not None
        }
        if not given:
            raise ValueError("pass exits, confidence or correct, with one value per sample.")
        lengths = {name: array.shape for name, array in given.items()}
        if len(set(lengths.values())) > 1 or len(next(iter(lengths.values()))) != 1:
            raise ValueError(f"the arrays have the shapes {lengths}; each must have the shape (n_samples,).")
        if "correct" in given and not self._watched[-1]:
            raise ValueError(
                "correct was passed, but the reference rows had no labels. Pass y to ExitMonitor, or leave out correct."
            )
        n_samples = len(next(iter(given.values())))
        if n_samples == 0:
            return
        self._check(given)
        rows = self._values(n_samples, *(given.get(name) for name in _GIVEN))
        with self._lock:
            for values in rows:
                self._take(values)

    def to_frame(self) -> pd.DataFrame:
        """The monitored quantities, one row per quantity.

        Returns
        -------
        DataFrame
            Columns: ``expected`` is the mean on the reference rows, with the interval from ``low`` to ``high``;
            ``mean`` is the mean of all samples so far; ``recent`` is an exponential average over about 500 samples;
            ``e_rise`` and ``e_fall`` are the evidence for a rise and for a fall.
        """
        e_values = np.full((2, len(self._names)), np.nan)
        with self._lock, np.errstate(invalid="ignore"):
            e_values[:, self._watched] = self._evidence.e_values()
            means, recent = self._sums / self._counts, self._recent.copy()
        columns = {
            "expected": self._expected,
            "low": self._intervals[:, 0],
            "high": self._intervals[:, 1],
            "mean": means,
            "recent": recent,
        }
        frame = pd.DataFrame(columns, index=self._names)
        frame.loc["mean cost"] = self._as_costs(frame.loc["mean cost"].to_numpy())
        frame["e_rise"], frame["e_fall"] = e_values
        return frame.loc[np.array(self._names)[self._watched].tolist()]

    @property
    def history(self) -> pd.DataFrame:
        """Recent means and evidence over time: at most 512 rows, at equal distances of samples."""
        columns = ["n_samples", "mean cost", "confidence", "accuracy", "e_value"]
        with self._lock:
            return pd.DataFrame(self._history, columns=columns)

    @property
    def advice(self) -> str:
        """What changed, and what to do."""
        if not self.changed:
            return "No change was found."
        with self._lock:
            rises, falls = self._evidence.e_values() >= 1 / self.level
        names = np.array(self._names)[self._watched]
        text = f"Changed after {self.changed_at} samples, first {self.first_changed}. "
        if "accuracy" in names[falls]:
            return text + (
                "Accuracy has fallen: fit policy, heads or network again on recent rows. Until then, a larger budget "
                "or RiskController sends more samples to later exits."
            )
        label = "The accuracy is unknown without labels: label some rows to measure it."
        if "mean cost" in names[rises | falls]:
            direction = "risen" if "mean cost" in names[rises] else "fallen"
            return text + (
                f"The mean cost has {direction}. Unless a BudgetController sets the thresholds, use one, or call "
                f"policy.meet_budget(X) with recent rows, to spend the budget again. {label}"
            )
        return text + f"The mean cost has not changed so far. {label}"

    def _check(self, given: dict[str, NDArray[Any]]) -> None:
        exits, confidence, correct = (given.get(name) for name in _GIVEN)
        n_exits = len(self._costs)
        if exits is not None and (exits.dtype.kind not in "iu" or not (0 <= exits.min() <= exits.max() < n_exits)):
            raise ValueError(f"exits has values from {exits.min()} to {exits.max()}; exits are 0 to {n_exits - 1}.")
        if confidence is not None and not ((confidence >= 0) & (confidence <= 1)).all():
            raise ValueError(
                f"confidence has values from {confidence.min()} to {confidence.max()}; pass probabilities, which are "
                "in [0, 1]."
            )
        others = [] if correct is None else correct[~np.isin(correct, (0, 1))].tolist()
        if others:
            raise ValueError(
                f"correct has the value {others[0]!r}; pass True or False for each answer, and leave out samples "
                "without a label."
            )

    def _values(
        self, n: int, exits: NDArray[Any] | None, confidence: NDArray[Any] | None, correct: NDArray[Any] | None
    ) -> Floats:
        """One row per sample and one column per quantity. Costs are scaled to [0, 1]; missing values are NaN."""
        n_exits, values = len(self._costs), np.full((n, len(self._costs) + 3), np.nan)
        if exits is not None:
            values[:, :n_exits] = exits[:, None] == np.arange(n_exits)
            values[:, n_exits] = (self._costs[exits] - self._costs[0]) / max(np.ptp(self._costs), 1e-12)
        if confidence is not None:
            values[:, n_exits + 1] = confidence
        if correct is not None:
            values[:, n_exits + 2] = correct
        return values

    def _as_costs(self, scaled: Floats) -> Floats:
        return self._costs[0] + scaled * np.ptp(self._costs)

    def _take(self, values: Floats) -> None:
        seen = ~np.isnan(values)
        self.n_samples += bool(seen[: len(self._costs)].all())
        self._counts[seen] += 1
        self._sums[seen] += values[seen]
        fading = np.maximum(1 / self._counts[seen], 1 / _N_RECENT)
        recent = np.where(np.isnan(self._recent[seen]), 0.0, self._recent[seen])
        self._recent[seen] = recent + fading * (values[seen] - recent)
        self._evidence.update(values[self._watched])
        e_value = self.e_value
        if self.changed_at is None and e_value >= 2 / self.level:
            strongest = self._evidence.e_values().max(axis=0).argmax()
            self.changed_at = self.n_samples
            self.first_changed = self._names[np.flatnonzero(self._watched)[strongest]]
            warn(
                f"inputs have changed, first {self.first_changed}. The monitor's attribute advice says what to do; "
                "to_frame() has the numbers."
            )
        self._remember(e_value)

    def _remember(self, e_value: float) -> None:
        if self.n_samples < self._next:
            return
        n_exits = len(self._costs)
        cost = float(self._as_costs(self._recent[n_exits : n_exits + 1])[0])
        self._history.append((self.n_samples, cost, *self._recent[n_exits + 1 :].tolist(), e_value))
        if len(self._history) > _N_HISTORY:
            self._history, self._stride = self._history[1::2], 2 * self._stride
        self._next = self.n_samples + self._stride


_GIVEN = ("exits", "confidence", "correct")


def _correct(answers: NDArray[Any], y: NDArray[Any], classes: NDArray[Any]) -> Floats:
    """1 for correct predictions, 0 for wrong ones, NaN for rows without a label."""
    return np.where(has_label(y, classes), answers == y, np.nan)


def _means(values: Floats) -> Floats:
    counts = (~np.isnan(values)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        means: Floats = np.nansum(values, axis=0) / np.where(counts, counts, np.nan)
    return means
