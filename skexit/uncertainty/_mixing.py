"""A weighted product of the probabilities of several classifiers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from skexit.uncertainty._labels import check_indices_of_classes

Floats = NDArray[np.float64]

#: Strength of the squared penalty on the biases of the classes. It keeps a bias finite if no row has the class.
_BIAS_PENALTY = 1e-4


def fit_mixture(
    log_probabilities: Floats, labels: NDArray[np.int64], sample_weight: Floats | None = None
) -> tuple[Floats, Floats]:
    """Fit the weights of a product of classifiers to labels.

    This is the ensemble of Zero Time Waste [1]_. The probability of class c is proportional to ``exp(b_c) * prod_j
    p_jc ** w_j``, with weights w_j of at least 0. The mean cross-entropy is minimised; it is convex in weights and
    biases.

    Parameters
    ----------
    log_probabilities : ndarray of shape (n_samples, n_classifiers, n_classes)
        Logarithms of the probabilities, for rows that the classifiers were not trained on.
    labels : ndarray of shape (n_samples,) of int
        Index of the true class of each row.
    sample_weight : ndarray of shape (n_samples,), default=None
        Weight of each sample; equal by default.

    Returns
    -------
    weights : ndarray of shape (n_classifiers,)
        Exponent of each classifier, at least 0.
    biases : ndarray of shape (n_classes,)
        Number that is added to the logit of each class.

    Raises
    ------
    ValueError
        If a label is not the index of a class, or there are more or fewer labels than rows.

    References
    ----------
    .. [1] Wołczyk et al. "Zero Time Waste: Recycling predictions in early exit neural networks."
       NeurIPS 2021, eq. 3.

    Examples
    --------
    The first of two classifiers is mostly correct, and the second one guesses:

    >>> import numpy as np
    >>> first = np.log([[0.8, 0.2], [0.2, 0.8], [0.8, 0.2], [0.2, 0.8], [0.2, 0.8]])
    >>> second = np.log(np.full((5, 2), 0.5))
    >>> weights, _ = fit_mixture(np.stack([first, second], axis=1), np.array([0, 1, 0, 1, 0]))
    >>> bool(weights[0] > 0)
    True
    """
    n_samples, n_classifiers, n_classes = log_probabilities.shape
    labels = check_indices_of_classes(labels, log_probabilities)
    share = np.full(n_samples, 1 / n_samples) if sample_weight is None else sample_weight / sample_weight.sum()
    rows = np.arange(n_samples)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        biases = parameters[n_classifiers:]
        log_mixed = log_softmax(mix(log_probabilities, parameters[:n_classifiers], biases), axis=1)
        error = np.exp(log_mixed)
        error[rows, labels] -= 1
        error *= share[:, None]
        gradient = np.concatenate(
            [np.einsum("nc,njc->j", error, log_probabilities), error.sum(axis=0) + _BIAS_PENALTY * biases]
        )
        return float(-share @ log_mixed[rows, labels] + _BIAS_PENALTY / 2 * biases @ biases), gradient

    start = np.zeros(n_classifiers + n_classes)
    start[n_classifiers - 1] = 1
    bounds = [(0.0, None)] * n_classifiers + [(None, None)] * n_classes
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    return found.x[:n_classifiers], found.x[n_classifiers:]


def mix(log_probabilities: Floats, weights: Floats, biases: Floats) -> Floats:
    """Logits of the weighted product of classifiers.

    Parameters
    ----------
    log_probabilities : ndarray of shape (n_samples, n_classifiers, n_classes)
        Logarithms of the probabilities of each classifier.
    weights : ndarray of shape (n_classifiers,)
        Exponent of each classifier.
    biases : ndarray of shape (n_classes,)
        Number that is added to the logit of each class.

    Returns
    -------
    ndarray of shape (n_samples, n_classes)
        Logits of the product. They are not normalised.
    """
    return np.einsum("j,njc->nc", weights, log_probabilities) + biases
