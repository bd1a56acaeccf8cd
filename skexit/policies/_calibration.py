"""Calibrated probabilities and prediction sets of policies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_consistent_length

from skexit.data import ExitArray, ExitLayout
from skexit.data._arrays import enough_rows
from skexit.data._labels import encode_labels
from skexit.policies._decision import ExitDecision
from skexit.uncertainty import softmax
from skexit.uncertainty._conformal import ConformalScores
from skexit.uncertainty._temperature import fit_exit_temperatures
from skexit.utils._docstring import shared_docs


@shared_docs
class CalibrationMixin:
    """Gives a policy ``calibrate`` and ``predict_set``."""

    classes_: NDArray[Any]
    layout_: ExitLayout
    temperatures_: NDArray[np.float64]
    conformal_scores_: ConformalScores | None = None

    @abstractmethod
    def _check_new(self, X: Any) -> ExitArray:
        """X as an ExitArray that fits the policy."""

    @abstractmethod
    def _stops(self, X: ExitArray) -> NDArray[np.int64]:
        """Exit at which each row stops."""

    @abstractmethod
    def _answers(self, X: ExitArray, exits: Iterable[int] | None = None) -> Iterator[tuple[int, slice, Any]]:
        """Logits with which each exit answers."""

    def calibrate(self, X: Any, y: ArrayLike, *, temperature: bool = True) -> Self:
        """Learn how far the exits can be trusted, from rows that were not used in fitting.

        A temperature is fitted for each exit, on the rows that leave there, and from then on divides
        the exit's logits in ``predict_proba`` and ``predict_set``. The fewer rows leave at an exit, the
        nearer its temperature is to that of all rows, and this to 1: see
        :func:`~skexit.uncertainty.fit_temperature`. The conformal scores of the rows are kept for
        ``predict_set``. Decisions stay as they are: those of ``exit_scores``, ``predict_exit`` and ``predict``.

        Parameters
        ----------
        %(X_y)s
        temperature : bool, default=True
            Whether to fit temperatures. False keeps those of an earlier call, or 1. Sets have
            their exact guarantee where the temperatures are from other rows than the sets:
            ``policy.calibrate(X_1, y_1).calibrate(X_2, y_2, temperature=False)``.

        Returns
        -------
        self : ExitPolicy
            Its ``temperatures_``, an array of shape (n_exits,), are 1 before the first call.

        Raises
        ------
        ValueError
            If X does not fit the layout of the policy or is not finite, or y has a class that the policy does not know.
        """
        exits = self._check_new(X)
        check_consistent_length(exits, y)
        _, labels = encode_labels(y, self.layout_, "Leave such rows out, or fit the policy with all classes.")
        stops = self._stops(exits)
        temperatures = self._fit_temperatures(exits, labels, stops) if temperature else self.temperatures_.copy()
        scores = np.empty((len(exits), self.layout_.n_exits))
        for k, batch, logits in self._answers(exits):
            probabilities = softmax(logits / temperatures[k])
            scores[batch, k] = 1 - probabilities[np.arange(len(logits)), labels[batch]]
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
        alpha: float = 0.05,
        method: str = "gated",
        *,
        class_conditional: bool = False,
        allow_empty: bool = True,
    ) -> NDArray[np.bool_]:
        """Classes that contain the true one with a probability of about ``1 - alpha``.

        A class is in the set of a sample if one minus its probability, at the exit where the sample stops, is at most
        the exit's conformal threshold (JEI-DNN, eq. 10). Needs ``calibrate``.

        Parameters
        ----------
        %(X)s
        alpha : float, default=0.05
            Share of sets that may miss the true class; between 0 and 1, both excluded.
        method : {"general", "ims", "strict", "gated"}, default="gated"
            Which calibration rows make the thresholds (JEI-DNN, 9.3), and so for whom the true class is in the set with
            ``1 - alpha``. ``"general"``: one threshold from all rows, each at the exit where it leaves; over all
            samples together. ``"ims"``: one per exit, from all rows at that exit; over samples that all go to one exit,
            so that nothing is guaranteed for those whom the policy lets leave there, nor for all samples. ``"strict"``:
            one per exit, from the rows that leave there; among those who leave at an exit. Where no row does, sets are
            empty. ``"gated"``: as strict, but the general one where fewer than 20 rows leave; among those who leave at
            an exit, at the others.
        class_conditional : bool, default=False
            Whether each class has thresholds of its own, from the calibration rows of that class (Mondrian sets): the
            guarantee then holds for the samples of each class. A class with too few rows, less than ``1 / alpha - 1``,
            is in every set. With ``"strict"`` that is counted at each exit; with ``"gated"``, a class of which fewer
            than 20 rows leave at an exit has its general threshold there.
        allow_empty : bool, default=True
            False adds to a set that would be empty the class of ``predict``. Sets only grow, and so does
            the coverage, beyond ``1 - alpha`` where that is below the accuracy.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) of bool
            All classes where there are too few calibration rows for the guarantee.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the policy is not calibrated.
        ValueError
            If alpha is not between 0 and 1, or there is no such method.
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
