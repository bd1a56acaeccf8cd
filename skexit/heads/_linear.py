"""Linear classifiers, fitted in memory by L-BFGS."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from skexit._nn._dense import DenseNetwork, weighted_scaling
from skexit.heads._boosting import fit_addition
from skexit.heads._distillation import Distillation, label_loss_and_errors
from skexit.utils._threads import one_blas_thread

#: The solver uses several threads if the inputs have at least this many values.
_ENOUGH_FOR_THREADS = 10**7
#: Logit of a class that no training row has. The logits of the other classes sum to zero.
_ABSENT_CLASS_LOGIT = -10.0


def solve_linear(
    inputs: NDArray[np.float64],
    labels: NDArray[np.int64],
    weight: NDArray[np.float64],
    *,
    n_classes: int,
    l2: float,
    offset: NDArray[np.float64] | None = None,
    distillation: Distillation | None = None,
) -> DenseNetwork:
    """Fit the linear classifier with the lowest penalised loss on standardised inputs.

    The penalty is ``l2 / 2`` times the squared norm of the weights. In the loss, the logits of the classifier are added
    to `offset`. Without distillation, a class that no row has gets a low constant logit.
    """
    weights, biases = np.zeros((inputs.shape[1], n_classes)), np.full(n_classes, _ABSENT_CLASS_LOGIT)
    if distillation is None and (labels == labels[0]).all():
        biases[labels[0]] = 0
        return DenseNetwork((weights,), (biases,))
    mean, scale = weighted_scaling(iter([(inputs, weight)]))
    inputs = (inputs - mean) / scale
    # For small matrices, threads take more time than they save, in particular if other processes use the cores.
    with one_blas_thread() if inputs.size < _ENOUGH_FOR_THREADS else nullcontext():
        if distillation is not None:
            present = np.arange(n_classes)
            loss = partial(
                distillation.loss_and_errors,
                labels=labels,
                soft_targets=distillation.soft_targets(np.arange(len(labels))),
            )
            start = np.zeros((len(labels), n_classes)) if offset is None else offset
            coefficients, intercepts = fit_addition(inputs, loss, weight, start, l2)
        elif offset is None:
            present, coefficients, intercepts = _fit_logistic_regression(inputs, labels, weight, l2)
        else:
            present, index = np.unique(labels, return_inverse=True)
            loss = partial(label_loss_and_errors, labels=index)
            coefficients, intercepts = fit_addition(inputs, loss, weight, offset[:, present], l2)
    weights[:, present] = coefficients
    biases[present] = intercepts
    return DenseNetwork((weights,), (biases,)).after_scaling(mean, scale)


def _fit_logistic_regression(
    inputs: NDArray[np.float64], labels: NDArray[np.int64], weight: NDArray[np.float64], l2: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Classes of the labels, and the weights and biases of these classes."""
    # Finite without a penalty, too: scikit-learn 1.8 warns if C is infinite.
    strength = 1 / max(l2 * weight.sum(), 1e-100)
    model = LogisticRegression(C=strength, max_iter=1000).fit(inputs, labels, sample_weight=weight)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    return model.classes_, coefficients.T, intercepts
