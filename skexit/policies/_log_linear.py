"""A regression whose predictions are positive: the exponential of a linear function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from skexit._nn._dense import weighted_scaling
from skexit.utils._array_api import array_namespace, as_like
from skexit.utils._module_names import set_module

Floats = NDArray[np.float64]

#: Prediction if the outcomes are not positive on average.
_SMALLEST_PREDICTION = 1e-12
_LARGEST_EXPONENT = 30.0
#: With at most this many parameters, Newton's method is used, which computes their curvature.
_FEW_PARAMETERS = 200
#: Newton's method ends if a step would lower the loss by at most half of this number, or after so many steps.
_SMALLEST_DESCENT, _MOST_STEPS = 1e-10, 25


@set_module("skexit.persistence")
@dataclass(frozen=True)
class LogLinearModel:
    """Predicts ``exp(inputs @ coefficients + intercept)``."""

    #: Arrays that are used with tensors in a live network.
    arrays_on_device: ClassVar[tuple[str, ...]] = ("coefficients",)

    coefficients: Floats
    intercept: float

    def predict(self, inputs: Any) -> Any:
        """Predictions, as an array with the namespace, dtype and device of the inputs."""
        xp = array_namespace(inputs)
        return xp.exp(xp.clip(self.predict_log(inputs), -_LARGEST_EXPONENT, _LARGEST_EXPONENT))

    def predict_log(self, inputs: Any) -> Any:
        """Logarithms of predictions."""
        # A model that predicts the same for all rows may have other inputs. Only shapes are compared: to read the
        # values of coefficients would wait for the GPU.
        if inputs.shape[1] != self.coefficients.shape[0]:
            return self.intercept * array_namespace(inputs).ones_like(inputs[:, 0])
        return inputs @ as_like(self.coefficients, inputs) + self.intercept


def fit_log_linear(inputs: Floats, outcomes: Floats, sample_weight: Floats, l2: float) -> LogLinearModel:
    """Fit by the quasi-likelihood of Poisson regression, which needs a model of the mean only.

    Outcomes may be negative if their mean is positive: the loss ``exp(z) - outcome * z`` is still convex in the
    linear function z, and is smallest if ``exp(z)`` is the mean outcome. The squared penalty is on the coefficients of
    standardised inputs, in the unit of the weights.
    """
    share = sample_weight / sample_weight.sum()
    mean_outcome = float(share @ outcomes)
    if mean_outcome <= _SMALLEST_PREDICTION:
        return LogLinearModel(np.zeros(inputs.shape[1]), float(np.log(_SMALLEST_PREDICTION)))
    mean, scale = weighted_scaling(iter([(inputs, sample_weight)]))
    scaled = (inputs - mean) / scale
    relative = outcomes / mean_outcome

    inputs_and_one = np.column_stack([scaled, np.ones(len(scaled))])
    penalty = np.append(np.full(inputs.shape[1], l2 / sample_weight.sum()), 0.0)

    def predict(parameters: Floats) -> tuple[Floats, Floats]:
        exponent = np.minimum(inputs_and_one @ parameters, _LARGEST_EXPONENT)
        return exponent, np.exp(exponent)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        exponent, predicted = predict(parameters)
        value = share @ (predicted - relative * exponent) + penalty @ parameters**2 / 2
        return float(value), inputs_and_one.T @ (share * (predicted - relative)) + penalty * parameters

    def curvature(parameters: Floats) -> Floats:
        _, predicted = predict(parameters)
        return inputs_and_one.T @ ((share * predicted)[:, None] * inputs_and_one) + np.diag(penalty)

    start = np.zeros(inputs.shape[1] + 1)
    if len(start) <= _FEW_PARAMETERS:
        # The logarithms of probabilities are correlated: without curvature, hundreds of steps are needed.
        found = _newton(loss, curvature, start)
    else:
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    coefficients = found[:-1] / scale
    return LogLinearModel(coefficients, float(found[-1] - mean @ coefficients + np.log(mean_outcome)))


def _newton(loss: Callable[[Floats], tuple[float, Floats]], curvature: Callable[[Floats], Floats], x: Floats) -> Floats:
    """Minimum of a convex function by Newton's method; a step is halved until it lowers the function enough."""
    value, gradient = loss(x)
    for _ in range(_MOST_STEPS):
        # Least squares, because the curvature can be singular: the intercept has no penalty.
        step = np.linalg.lstsq(curvature(x), gradient, rcond=None)[0]
        descent = float(gradient @ step)
        if descent < _SMALLEST_DESCENT:
            break
        length = 1.0
        while loss(x - length * step)[0] > value - length * descent / 4 and length > _SMALLEST_DESCENT:
            length /= 2
        x = x - length * step
        value, gradient = loss(x)
    return x
