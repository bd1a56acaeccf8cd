"""Exits that use the predictions of earlier exits."""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.data import ExitArray, ExitLayout
from skexit.data._estimator import cost_columns
from skexit.data._labels import enough_labelled_rows
from skexit.data._layout import add_heads
from skexit.data._lazy import MergedLogits, TransformedLogits, answer_from_exits
from skexit.data._validation import read_logits, validate_groups, validate_new_data, validate_training_data
from skexit.heads._cross_fitting import check_two_classes
from skexit.heads._fit_heads import fit_heads
from skexit.heads._transformer import LogitsTransformer
from skexit.uncertainty import fit_mixture
from skexit.uncertainty._scores import log_softmax
from skexit.utils._array_api import array_namespace, as_like
from skexit.utils._html import exit_table
from skexit.utils._module_names import set_module
from skexit.utils._sklearn import HasMethods, Interval, _fit_context

Floats = NDArray[np.float64]


@set_module("skexit")
class ExitEnsemble(LogitsTransformer):
    """Predict at each exit with a weighted product of the probabilities of this exit and of earlier exits.

    This is the geometric ensemble of Zero Time Waste [1]_: at exit k, the probability of class c is proportional to
    ``exp(b_kc) * prod_j p_jc ** w_kj`` over the exits j up to k. The weights ``w``, which are not negative, and the
    biases ``b`` minimise the cross-entropy on the training rows. The probabilities are calibrated, and the last exit is
    often more accurate than the network alone. Put an ensemble before any policy: as a step of a pipeline, or as the
    parameter `heads` of the policy.

    By default, the ensemble trains the heads on the same rows and learns from their cross-fitted logits. Fitted heads
    in a :class:`sklearn.frozen.FrozenEstimator` must have been trained on other rows, because heads are too confident
    on their training rows. The ensemble itself does not learn from rows without a label, -1 in y; its heads do.

    Parameters
    ----------
    heads : ExitHeads, default=None
        Heads to fit if exits have no logits; by default ``ExitHeads(random_state=0)``. Heads in a FrozenEstimator are
        used as they are.
    %(layout)s

    Attributes
    ----------
    weights_ : ndarray of shape (n_exits, n_exits)
        Row k has the weight of each exit j in the prediction of exit k; zero above the diagonal.
    biases_ : ndarray of shape (n_exits, n_classes)
        The bias of each class at each exit.
    heads_ : ExitHeads, FrozenEstimator or None
        The fitted heads; None if every exit has logits and `heads` is None.
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the logits.
    layout_ : ExitLayout
        Layout of the X that was fitted, its classes sorted.
    layout_out_ : ExitLayout
        Layout of the X that ``transform`` returns. If costs are in FLOPs or MACs, the cost of each exit includes the
        heads and the products up to it, and ``head_costs`` has their part.
    %(columns)s

    References
    ----------
    .. [1] Wołczyk et al. "Zero Time Waste: Recycling predictions in early exit neural networks."
       NeurIPS 2021, eq. 3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.pipeline import make_pipeline
    >>> from skexit import ExitEnsemble, ThresholdPolicy
    >>> X, y = load_digits(return_X_y=True)
    >>> ensemble = ExitEnsemble(layout=4).fit(X, y)  # four exits, each with a quarter of the image's rows
    >>> ensemble.weights_.round(1)
    array([[1.1, 0. , 0. , 0. ],
           [0.7, 1. , 0. , 0. ],
           [0.7, 0.7, 0.9, 0. ],
           [0.5, 0.8, 0.8, 0.6]])
    >>> pipeline = make_pipeline(ExitEnsemble(layout=4), ThresholdPolicy(budget=0.8)).fit(X, y)
    >>> policy = ThresholdPolicy(budget=0.8, heads=ExitEnsemble(), layout=4).fit(X, y)
    >>> bool((policy.predict(X) == pipeline.predict(X)).all())
    True
    """

    #: Arrays that a live network combines with tensors.
    arrays_on_device: ClassVar[tuple[str, ...]] = ("weights_", "biases_")

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "heads": [HasMethods(["fit", "transform", "exit_logits"]), None],
        "layout": [ExitLayout, Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(self, heads: Any = None, *, layout: ExitLayout | int | None = None) -> None:
        self.heads = heads
        self.layout = layout

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> ExitEnsemble:
        """Fit the heads, if exits need them, and the weights and biases of each exit.

        Parameters
        ----------
        %(X_y_weight)s
        groups : array-like of shape (n_samples,), default=None
            Group of each sample. The heads are cross-fitted with all rows of a group in the same fold.

        Returns
        -------
        self : ExitEnsemble
            The fitted transformer.

        Raises
        ------
        ValueError
            If X does not match its layout or is not finite, or if y has a class that is unknown to X or only one class.
        """
        self._fit(X, y, sample_weight, groups)
        return self

    @_fit_context(prefer_skip_nested_validation=False)
    def fit_transform(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Any:
        """Fit, and return X with the logits of the ensemble. They come from cross-fitted logits of the heads.

        Parameters
        ----------
        %(X_y)s
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; equal by default. Rows of weight zero are not used in training, and get the logits of
            ``transform``.
        groups : array-like of shape (n_samples,), default=None
            Group of each sample. The heads are cross-fitted with all rows of a group in the same fold.

        Returns
        -------
        ExitArray of shape (n_samples, n_columns_out)
            A DataFrame after ``set_output(transform="pandas")`` or ``"polars"``.
        """
        with_logits = self._fit(X, y, sample_weight, groups)
        new = validate_new_data(self, X)
        # The logits may be computed later, and a later fit must not change them.
        mixed = answer_from_exits(with_logits, len(self.classes_), copy.copy(self)._mix)
        if len(with_logits) == len(new):
            return self._output(mixed, X)
        is_used = np.asarray(sample_weight) > 0
        position = np.where(is_used, np.cumsum(is_used) - 1, np.arange(len(new)))
        sources = [TransformedLogits(new, self), mixed]
        return self._output(MergedLogits(new, sources, is_used.astype(np.intp), position), X)

    def exit_logits(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        if self.heads_ is not None:
            logits = self.heads_.exit_logits(k, logits, features, memory)
        return self._mix(k, logits, memory)

    def _mix(self, k: int, logits: Any, memory: dict[str, Any]) -> Any:
        xp = array_namespace(logits)
        own = log_softmax(logits)[:, None]
        seen = xp.concat([memory["log_probabilities"], own], axis=1) if k else own
        memory["log_probabilities"] = seen
        weights = as_like(self.weights_[k, : k + 1], logits)
        return weights @ seen + as_like(self.biases_[k], logits)

    def _fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None, groups: ArrayLike | None) -> ExitArray:
        """Fit on the rows of positive weight; return these rows with the logits of the heads."""
        used, self.classes_, labels, weight = validate_training_data(self, X, y, sample_weight)
        check_two_classes(self.classes_)
        self.layout_ = used.layout
        numbers = validate_groups(groups, y, sample_weight)
        self.heads_, with_logits = fit_heads(self.heads, used, self.classes_, labels, weight, groups=numbers)
        n_exits = self.layout_.n_exits
        self.weights_ = np.zeros((n_exits, n_exits))
        self.biases_ = np.empty((n_exits, len(self.classes_)))
        rows = enough_labelled_rows(labels, sum(with_logits.layout.n_logits))
        seen = log_probabilities(with_logits, rows)
        for k in range(n_exits):
            self.weights_[k, : k + 1], self.biases_[k] = fit_mixture(seen[:, : k + 1], labels[rows], weight[rows])
        multiply_adds = np.cumsum(len(self.classes_) * np.arange(1, n_exits + 1))
        self.layout_out_ = add_heads(with_logits.layout, multiply_adds)
        return with_logits

    def new_logits(self) -> range:
        return range(self.layout_.n_exits)

    def uses_features(self, k: int) -> bool:
        if isinstance(self.heads_, LogitsTransformer):
            return self.heads_.uses_features(k)
        return self.heads_ is not None

    def earlier_exits(self, k: int) -> range:
        return range(k)

    def _exit_table(self) -> str:
        if not hasattr(self, "layout_out_"):
            return ""
        weights = [", ".join(f"{weight:.2g}" for weight in row[: k + 1]) for k, row in enumerate(self.weights_)]
        return exit_table(cost_columns(self.layout_out_) | {"Weights of the exits so far": weights})


def log_probabilities(X: ExitArray, rows: slice | NDArray[np.intp]) -> Floats:
    """Logarithms of the class probabilities of every exit, of shape (n_rows, n_exits, n_classes)."""
    return np.stack([log_softmax(read_logits(X, k, rows)) for k in range(X.layout.n_exits)], axis=1)
