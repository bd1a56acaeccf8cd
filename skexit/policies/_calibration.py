"""Calibration of the probabilities and prediction sets of policies."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError

from skexit.data import ExitArray, ExitLayout
from skexit.data._arrays import enough_rows
from skexit.data._labels import encode_labels, labelled_rows
from skexit.policies._decision import ExitDecision
from skexit.uncertainty import softmax
from skexit.uncertainty._conformal import ConformalScores
from skexit.uncertainty._temperature import fit_exit_temperatures
from skexit.utils._docstring import shared_docs
from skexit.utils._warnings import warn

#: The default alpha of ``predict_set``.
_ALPHA = 0.05


@shared_docs
class CalibrationMixin:
    """Adds ``calibrate`` and ``predict_set`` to a policy."""

    classes_: NDArray[Any]
    layout_: ExitLayout
    temperatures_: NDArray[np.float64]
    conformal_scores_: ConformalScores | None = None

    @abstractmethod
    def _check_new(self, X: Any) -> ExitArray:
        """X as an ExitArray that matches the policy."""

    @abstractmethod
    def _stops(self, X: ExitArray) -> NDArray[np.int64]:
        """Exit at which each row stops."""

    @abstractmethod
    def _answers(self, X: ExitArray, exits: Iterable[int] | None = None) -> Iterator[tuple[int, slice, Any]]:
        """Logits of each exit's prediction, in batches of rows."""

    def calibrate(self, X: Any, y: ArrayLike, *, temperature: bool = True) -> Self:
        """Calibrate probabilities and prediction sets on rows that were not used in fitting.

        This changes the policy itself; to keep it, calibrate a copy: ``copy.deepcopy(policy).calibrate(X, y)``. A
        second call replaces the conformal scores of the first, and also its temperatures unless `temperature` is
        False.

        A temperature is fitted for each exit, on the rows that leave there. ``predict_proba`` and ``predict_set``
        then divide the logits of the exit by it. The fewer rows leave at an exit, the nearer its temperature is to
        the temperature of all rows; the fewer rows there are, the nearer that is to 1: see
        :func:`~skexit.uncertainty.fit_temperature`. The conformal scores of the rows are stored for ``predict_set``.
        Calibration does not change ``exit_scores``, ``predict_exit`` and ``predict``.

        Parameters
        ----------
        %(X)s
        y : array-like of shape (n_samples,)
            Class labels. Rows with the label -1 are left out, unless -1 is a class.
        temperature : bool, default=True
            Whether to fit temperatures. False keeps those of an earlier call, or 1. Prediction sets have
            their exact guarantee only if temperatures are fitted on other rows than the sets:
            ``policy.calibrate(X_1, y_1).calibrate(X_2, y_2, temperature=False)``.

        Returns
        -------
        self : ExitPolicy
            The same policy, calibrated. ``temperatures_``, an array of shape (n_exits,), is 1 before the first call.

        Raises
        ------
        ValueError
            If X does not match the layout of the policy or is not finite, y has a class that was not fitted, or no row
            has a label.

        Warns
        -----
        UserWarning
            If there are fewer than 19 rows with labels: ``predict_set`` then returns all classes for its default alpha.
        """
        exits, y = labelled_rows(self._check_new(X), y, self.classes_)
        _, labels = encode_labels(y, self.layout_, "Remove such rows, or fit the policy with all classes.")
        stops = self._stops(exits)
        temperatures = self._fit_temperatures(exits, labels, stops) if temperature else self.temperatures_.copy()
        scores = np.empty((len(exits), self.layout_.n_exits))
        for k, batch, logits in self._answers(exits):
            probabilities = softmax(logits / temperatures[k])
            scores[batch, k] = 1 - probabilities[np.arange(len(logits)), labels[batch]]
        _warn_of_few_rows(len(exits))
        self.temperatures_ = temperatures
        self.conformal_scores_ = ConformalScores(scores, stops, labels)
        return self

    def _fit_temperatures(
        self, X: ExitArray, labels: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Temperature of each exit, from enough of the rows that leave there."""
        n_exits, n_classes = self.layout_.n_exits, len(self.classes_)
        leaving_at = []
        for k in range(n_exits):
            leaving = np.flatnonzero(stops == k)
            rows = leaving[enough_rows(len(leaving), n_exits * n_classes)]
            logits = np.empty((len(rows), n_classes))
            for exit, batch, values in self._answers(X[rows], range(k + 1)) if len(rows) else ():
                if exit == k:
                    logits[batch] = values
            leaving_at.append((logits, labels[rows], np.ones(len(rows))))
        return fit_exit_temperatures(leaving_at)

    def predict_set(
        self,
        X: Any,
        alpha: float = _ALPHA,
        method: str = "gated",
        *,
        class_conditional: bool = False,
        allow_empty: bool = True,
    ) -> NDArray[np.bool_]:
        """Sets of classes that contain the true class with a probability of about ``1 - alpha``.

        A class is in the set of a sample if one minus its probability, at the exit where the sample stops, is at most
        the exit's conformal threshold (JEI-DNN, eq. 10). Call ``calibrate`` first.

        Parameters
        ----------
        %(X)s
        alpha : float, default=0.05
            Share of sets that may miss the true class; between 0 and 1, both excluded.
        method : {"general", "ims", "strict", "gated"}, default="gated"
            Rows from which the thresholds are computed (JEI-DNN, 9.3), and thereby the samples for which the guarantee
            of ``1 - alpha`` holds. ``"general"``: one threshold from all rows, each at the exit where it leaves; it
            holds over all samples together. ``"ims"``: one threshold per exit, from all rows at this exit; it holds if
            all samples go to this exit, but neither for the samples that leave there, nor over all samples.
            ``"strict"``: one threshold per exit, from the rows that leave there; it holds for the samples that leave at
            each exit. If no row leaves at an exit, sets there are empty. ``"gated"``: as ``"strict"``, but exits where
            fewer than 20 rows leave have the general threshold; it holds for the samples that leave at other exits.
        class_conditional : bool, default=False
            Whether each class has its own thresholds, from the calibration rows of the class (Mondrian sets). The
            guarantee then holds for the samples of each class. A class with too few rows, fewer than ``1 / alpha - 1``,
            is in every set. With ``"strict"``, rows are counted at each exit. With ``"gated"``, a class of which fewer
            than 20 rows leave at an exit has the general threshold of the class there.
        allow_empty : bool, default=True
            If False, the class of ``predict`` is added to empty sets. Sets only grow, and so does the
            coverage: it is above ``1 - alpha`` if that is below the accuracy.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) of bool
            All classes if there are too few calibration rows for the guarantee.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the policy is not calibrated.
        ValueError
            If alpha is not between 0 and 1, or the method does not exist.
        """
        exits = self._check_new(X)
        if self.conformal_scores_ is None:
            raise NotFittedError(
                f"This {type(self).__name__} is not calibrated. Call 'calibrate' on rows that were not used in fitting "
                "before 'predict_set'."
            )
        if class_conditional:
            thresholds = self.conformal_scores_.class_thresholds(alpha, method, len(self.classes_))
        else:
            thresholds = self.conformal_scores_.thresholds(alpha, method)[:, None]
        sets = np.empty((len(exits), len(self.classes_)), dtype=bool)
        for k, rows, logits in ExitDecision(self).departures(exits):
            own = 1 - softmax(logits / self.temperatures_[k]) <= thresholds[k]
            if not allow_empty:
                empty = np.flatnonzero(~own.any(axis=1))
                own[empty, np.argmax(logits[empty], axis=1)] = True
            sets[rows] = own
        return sets

    def _drop_calibration(self) -> None:
        self.temperatures_ = np.ones(self.layout_.n_exits)
        self.conformal_scores_ = None


def _rows_for(alpha: float) -> int:
    """The fewest rows for which a set of ``1 - alpha`` can lack a class."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def _warn_of_few_rows(n_rows: int) -> None:
    if n_rows < _rows_for(_ALPHA):
        warn(
            f"calibrate has {n_rows} rows with labels. predict_set(X, alpha={_ALPHA}) needs {_rows_for(_ALPHA)} to "
            "leave out any class, and temperatures of so few rows stay near 1. Calibrate on some hundred rows."
        )
