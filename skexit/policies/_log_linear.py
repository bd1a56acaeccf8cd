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

#: Prediction where the outcomes are not positive on average.
_NOTHING = 1e-12
_LARGEST_EXPONENT = 30.0
#: Up to this many parameters, their curvature is worth its computation.
_FEW_PARAMETERS = 200
#: Newton's method ends where a step would lower the loss by no more than half of this, or after so many steps.
_SMALLEST_DESCENT, _MOST_STEPS = 1e-10, 25


@set_module("skexit.persistence")
@dataclass(frozen=True)
class LogLinearModel:
    """Predicts ``exp(inputs @ coefficients + intercept)``."""

    #: Arrays that meet tensors in a live network.
    arrays_on_device: ClassVar[tuple[str, ...]] = ("coefficients",)

    coefficients: Floats
    intercept: float

    def predict(self, inputs: Any) -> Any:
        """Predictions, as an array of the inputs' namespace, dtype and device."""
        xp = array_namespace(inputs)
        # Those of a model that predicts the same for all rows may lack columns. Coefficients are not asked for their
        # values: on a GPU that would wait.
        if inputs.shape[1] != self.coefficients.shape[0]:
            exponent = self.intercept * xp.ones_like(inputs[:, 0])
        else:
            exponent = inputs @ as_like(self.coefficients, inputs) + self.intercept
        return xp.exp(xp.clip(exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))


def fit_log_linear(inputs: Floats, outcomes: Floats, sample_weight: Floats, l2: float) -> LogLinearModel:
    """Fit by the quasi-likelihood of Poisson regression, which needs the mean of an outcome alone.

    Outcomes may be negative, if they are not so on average: the loss ``exp(z) - outcome * z`` stays convex in the
    linear function z, and its gradient is that of a mean. The squared penalty is on the coefficients of standardised
    inputs, in the unit of the weights.
    """
    share = sample_weight / sample_weight.sum()
    mean_outcome = float(share @ outcomes)
    if mean_outcome <= _NOTHING:
        return LogLinearModel(np.zeros(inputs.shape[1]), float(np.log(_NOTHING)))
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
        # Logarithms of chances hang together, so that a method without curvature takes hundreds of steps.
        found = _newton(loss, curvature, start)
    else:
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    coefficients = found[:-1] / scale
    return LogLinearModel(coefficients, float(found[-1] - mean @ coefficients + np.log(mean_outcome)))


def _newton(loss: Callable[[Floats], tuple[float, Floats]], curvature: Callable[[Floats], Floats], x: Floats) -> Floats:
    """Minimum of a convex function by Newton's method; steps are halved until they lead far enough down."""
    value, gradient = loss(x)
    for _ in range(_MOST_STEPS):
        # Least squares: without a penalty on the intercept, the curvature can vanish.
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
