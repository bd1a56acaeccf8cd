"""Temperature scaling: logits are divided by one number, so that confidence agrees with accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from sklearn.utils import check_array

from skexit.uncertainty._labels import check_indices_of_classes
from skexit.uncertainty._scores import softmax
from skexit.utils._checks import check_sample_weight
from skexit.utils._warnings import warn

Floats = NDArray[np.float64]

#: Range of temperatures that is searched.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
#: A prior counts as at least this many rows, which keep a temperature finite if all rows are correct, or all wrong.
_FEWEST_PRIOR_ROWS = 20
#: A temperature leaves the prior only if the mean squared score is above this; by chance, the mean is 1.
_PENALTY = 3.0


def fit_temperature(logits: ArrayLike, labels: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Fit the temperature of ``softmax(logits / temperature)`` to labels; near 1 if there are few rows.

    Temperature scaling [1]_ minimises the cross-entropy. This function minimises the cross-entropy of the n rows and
    of m additional rows, whose labels follow the probabilities of the logits: a prior at temperature 1. m is
    ``max(20, n / (Q - 3))``, where Q is the squared score of temperature 1 divided by its variance; Q is near 1 if
    the logits are calibrated. If Q is at most 3, the temperature is 1. With this prior, calibration on few rows does
    no harm on new rows, on average.

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_classes)
        Logits of rows that the classifier was not trained on.
    labels : array-like of shape (n_samples,) of int
        Index of the true class of each row.
    sample_weight : array-like of shape (n_samples,), default=None
        Weight of each sample; equal by default. The smallest positive weight counts as one sample,
        so that a common factor of all weights changes nothing.

    Returns
    -------
    float
        Between 0.05 and 20.

    Raises
    ------
    ValueError
        If the shapes do not agree, a label is not the index of a class, or no weight is positive.

    Warns
    -----
    UserWarning
        If the temperature would be below 0.05 or above 20.

    References
    ----------
    .. [1] Guo et al. "On calibration of modern neural networks." ICML 2017.

    Examples
    --------
    Predictions have log-odds of 3, but three of four are correct, so that the odds should be three to one.
    With more samples, the odds come closer to this:

    >>> logits = np.array([[3.0, 0], [3, 0], [3, 0], [3, 0]])
    >>> temperature = fit_temperature(logits, [0, 0, 0, 1])
    >>> softmax(logits[0] / temperature).round(2)
    array([0.92, 0.08])
    >>> temperature = fit_temperature(np.tile(logits, (250, 1)), [0, 0, 0, 1] * 250)
    >>> softmax(logits[0] / temperature).round(2)
    array([0.75, 0.25])
    """
    weight = check_sample_weight(sample_weight, check_array(logits, dtype=np.float64, input_name="logits"))
    return _checked_range(temperature_within_bounds(logits, labels, weight))


def temperature_within_bounds(logits: ArrayLike, labels: ArrayLike, weight: ArrayLike) -> float:
    """`fit_temperature` for checked weights, without the warning at a bound."""
    return _shared_temperature(_as_rows([(logits, labels, weight)]))


def fit_exit_temperatures(exits: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]]) -> Floats:
    """Temperature of each of several exits; exits with few rows also use the rows of the other exits.

    First, one temperature is fitted to the rows of all exits, as by `fit_temperature`. It is the prior of the
    temperatures of the exits. The less the exits differ, the more rows the prior counts as. If they differ by no more
    than chance, all exits have the shared temperature. An exit without rows also has it.

    `exits` has the logits, labels and weights of the rows of each exit.
    """
    groups = _as_rows(exits)
    shared = _shared_temperature(groups)
    own = [group for group in groups if len(group.margins)]
    n_prior_rows = _prior_rows(own, shared)
    fitted = iter(_posterior_temperature(group, n_prior_rows, shared) for group in own)
    return np.array([_checked_range(next(fitted) if len(group.margins) else shared) for group in groups])


@dataclass(frozen=True)
class _Rows:
    """Margins (logits minus the row's largest logit), the margin of the label, and the weight of each row."""

    margins: Floats
    of_label: Floats
    weight: Floats

    def expectation(self, temperature: float) -> Floats:
        """Mean margin of a class that is drawn from the probabilities."""
        return np.sum(softmax(self.margins / temperature) * self.margins, axis=1)

    def squared_score(self, temperature: float) -> float:
        """Squared score of the temperature divided by its variance: 1 on average if the temperature is correct."""
        probabilities = softmax(self.margins / temperature)
        mean = np.sum(probabilities * self.margins, axis=1)
        variance = np.sum(probabilities * self.margins**2, axis=1) - mean**2
        score = self.weight @ (self.of_label - mean)
        # If all probabilities are 0 or 1, the variance is 0, and so is the score if all rows are correct.
        return float(score**2 / max(self.weight @ variance, 1e-100 * max(score**2, 1.0)))


def _as_rows(exits: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]]) -> list[_Rows]:
    """The rows of each exit. Weights are numbers of copies, up to a common factor: the smallest is scaled to 1."""
    checked = [_check_rows(*exit_) for exit_ in exits]
    weights = np.concatenate([weight for _, _, weight in checked])
    scale = 1 / weights[weights > 0].min()
    return [
        _Rows(margins, margins[np.arange(len(margins)), labels], scale * weight) for margins, labels, weight in checked
    ]


def _shared_temperature(groups: list[_Rows]) -> float:
    columns = zip(
        *((group.margins, group.of_label, group.weight) for group in groups if len(group.margins)), strict=True
    )
    together = _Rows(*map(np.concatenate, columns))
    return _posterior_temperature(together, _prior_rows([together], 1.0), 1.0)


def _prior_rows(groups: list[_Rows], temperature: float) -> float:
    """Number of rows of the prior: its variance is then that of the groups' temperatures around it."""
    excess = sum(group.squared_score(temperature) - _PENALTY for group in groups)
    n_rows = sum(group.weight.sum() for group in groups)
    return max(_FEWEST_PRIOR_ROWS, n_rows / excess) if excess > 0 else math.inf


def _posterior_temperature(group: _Rows, n_prior_rows: float, prior: float) -> float:
    """Temperature that fits the rows and the prior best, within the bounds.

    The loss is convex in the inverse of the temperature, so that its derivative has at most one root.
    """
    if math.isinf(n_prior_rows):
        return prior
    share = group.weight / group.weight.sum()
    n_rows = group.weight.sum()
    wanted = (n_rows * (share @ group.of_label) + n_prior_rows * (share @ group.expectation(prior))) / (
        n_rows + n_prior_rows
    )

    def slope(log_temperature: float) -> float:
        """Derivative of the loss with respect to the inverse temperature; it falls as the temperature rises."""
        return float(share @ group.expectation(math.exp(log_temperature)) - wanted)

    return _temperature_of_zero(slope)


def match_confidence(
    logits: NDArray[np.float64], others: NDArray[np.float64], sample_weight: NDArray[np.float64]
) -> float:
    """Temperature at which the mean of the largest probability equals that for other logits of the same rows.

    Between 0.05 and 20; 1 if the temperature does not change the probabilities.
    """
    margins = logits - logits.max(axis=1, keepdims=True)
    if not margins.any():
        return 1.0
    target = np.average(softmax(others).max(axis=1), weights=sample_weight)

    def excess(log_temperature: float) -> float:
        """Mean confidence minus the target; it falls as the temperature rises."""
        confidence = 1 / np.exp(margins * math.exp(-log_temperature)).sum(axis=1)
        return float(np.average(confidence, weights=sample_weight) - target)

    return _temperature_of_zero(excess)


def _temperature_of_zero(falling: Callable[[float], float]) -> float:
    """Temperature at which a falling function of its logarithm is zero; a bound if it is zero nowhere in between."""
    low, high = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    if falling(low) <= 0:
        return LOWEST_TEMPERATURE
    if falling(high) >= 0:
        return HIGHEST_TEMPERATURE
    return math.exp(brentq(falling, low, high))


def _checked_range(temperature: float) -> float:
    if temperature in (LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE):
        is_lowest = temperature == LOWEST_TEMPERATURE
        what = "are far too small" if is_lowest else "contain little information on the labels, or are far too large"
        warn(
            f"the fitted temperature lies at the bound {temperature}: the logits {what}. Check that the labels have "
            "the same rows and classes as the logits. If they do, pass logits / numpy.std(logits)."
        )
    return temperature


def _check_rows(logits: ArrayLike, labels: ArrayLike, weight: ArrayLike) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Checked margins (logits minus the row's largest), labels and weights of the rows; there may be no rows."""
    checked = check_array(logits, dtype=np.float64, input_name="logits", ensure_min_samples=0)
    true_columns = check_indices_of_classes(labels, checked)
    # Larger margins would overflow when squared; their probabilities are 0.
    margins = np.maximum(checked - checked.max(axis=1, keepdims=True), -1e100)
    return margins, true_columns, np.asarray(weight, dtype=np.float64)
