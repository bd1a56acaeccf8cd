"""A regression whose predictions are positive: the exponential of a linear function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray
from scipy.optimize import minimize

from skexit.networks import weighted_scaling

Floats = NDArray[np.float64]

#: Strength of the squared penalty on the coefficients of standardised inputs.
_PENALTY = 1e-3
#: Prediction where the outcomes are not positive on average.
_NOTHING = 1e-12
_LARGEST_EXPONENT = 30.0


@dataclass(frozen=True)
class LogLinearModel:
    """Predicts ``exp(inputs @ coefficients + intercept)``.

    Parameters
    ----------
    coefficients : ndarray of shape (n_inputs,)
    intercept : float
    """

    coefficients: Floats
    intercept: float

    def predict(self, inputs: Any) -> Any:
        """Predictions, as an array of the inputs' namespace, dtype and device.

        Parameters
        ----------
        inputs : array of shape (n_samples, n_inputs)

        Returns
        -------
        array of shape (n_samples,)
        """
        xp = array_namespace(inputs)
        coefficients = xp.asarray(self.coefficients, dtype=inputs.dtype, device=device(inputs))
        exponent = inputs @ coefficients + self.intercept
        return xp.exp(xp.clip(exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))


def fit_log_linear(inputs: Floats, outcomes: Floats, sample_weight: Floats) -> LogLinearModel:
    """Fit by the quasi-likelihood of Poisson regression, which needs the mean of an outcome alone.

    Outcomes may be negative, if they are not so on average: the loss ``exp(z) - outcome * z`` stays
    convex in the linear function z, and its gradient is that of a mean.

    Parameters
    ----------
    inputs : ndarray of shape (n_samples, n_inputs)
    outcomes : ndarray of shape (n_samples,)
    sample_weight : ndarray of shape (n_samples,)

    Returns
    -------
    LogLinearModel
    """
    share = sample_weight / sample_weight.sum()
    mean_outcome = float(share @ outcomes)
    if mean_outcome <= _NOTHING:
        return LogLinearModel(np.zeros(inputs.shape[1]), float(np.log(_NOTHING)))
    mean, scale = weighted_scaling(iter([(inputs, sample_weight)]))
    scaled = (inputs - mean) / scale
    relative = outcomes / mean_outcome

    def loss(parameters: Floats) -> tuple[float, Floats]:
        coefficients = parameters[:-1]
        exponent = np.minimum(scaled @ coefficients + parameters[-1], _LARGEST_EXPONENT)
        predicted = np.exp(exponent)
        slope = share * (predicted - relative)
        value = share @ (predicted - relative * exponent) + _PENALTY / 2 * coefficients @ coefficients
        return float(value), np.append(scaled.T @ slope + _PENALTY * coefficients, slope.sum())

    found = minimize(loss, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    coefficients = found[:-1] / scale
    return LogLinearModel(coefficients, float(found[-1] - mean @ coefficients + np.log(mean_outcome)))
