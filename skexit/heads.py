"""A classifier at each exit, trained on the cached features."""

from __future__ import annotations

import copy
from numbers import Integral, Real
from typing import Any, ClassVar, cast

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_random_state
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from skexit._html import cost_column, exit_table
from skexit._sklearn import Interval, StrOptions, _fit_context
from skexit._transformer import LogitsTransformer
from skexit._validation import (
    cross_validation_splits,
    read_features,
    validate_new_data,
    validate_training_data,
)
from skexit.arrays import ExitArray, LogitsSource
from skexit.cascade import train_cascade
from skexit.layout import MULTIPLY_ADD_COST, ExitLayout
from skexit.networks import DenseNetwork, Training, train, weighted_scaling
from skexit.uncertainty import fit_temperature

#: Up to this many bytes of features, a linear head is solved for in memory.
_IN_MEMORY_BYTES = 2**31
#: From this many numbers on, the solver of a linear head uses several threads.
_WORTH_THREADS = 10**7
#: Logit of a class that the training rows lack. Logits of the others sum to zero.
_ABSENT_CLASS_LOGIT = -10.0


class ExitHeads(LogitsTransformer):
    """Train a classifier on the features of each exit, and add its logits to X.

    An exit that has logits already, such as the last exit of a frozen network, keeps them.

    The logits that ``fit_transform`` gives are cross-fitted: each row's come from heads that were
    trained without it. A policy that learns from the logits of heads trained on the same rows
    would take them for better than they are. ``transform`` uses the heads trained on all rows, so
    ``fit(X, y).transform(X)`` differs from ``fit_transform(X, y)``, as in
    :class:`sklearn.preprocessing.TargetEncoder`. With a single exit there is no decision to
    learn, and the two agree.

    Parameters
    ----------
    hidden : int, default=0
        Units in a hidden layer; 0 makes the heads linear.
    cascade : bool, default=False
        Let the head at exit k see what the heads before it saw. With a hidden layer, that is the
        hidden layer of the head before, and all heads are trained together; linear heads see the
        features of all exits up to k.
    dropout : float, default=0.0
        Share of the hidden units that are left out at random in a step of training.
    calibrated : bool, default=False
        Divide the logits of each head by the temperature that fits its cross-fitted logits best.
        ``fit`` then trains the heads `cv` times more, as ``fit_transform`` does anyhow.
    solver : {"auto", "lbfgs", "adam"}, default="auto"
        ``"lbfgs"`` fits linear heads by scikit-learn's logistic regression, in memory. ``"adam"``
        trains by mini-batches that are read when they are needed, so that the features may be
        larger than memory. ``"auto"`` takes ``"lbfgs"`` for linear heads whose features take at
        most 2 GiB.
    alpha : float, default=3e-3
        Strength of the squared penalty on the weights, for standardised features: the loss is the
        mean cross-entropy plus ``alpha / 2`` times their squared norm.
    learning_rate : float, default=0.01
        Highest learning rate of ``"adam"``.
    max_epochs : int, default=30
        Passes of ``"adam"`` over the rows.
    batch_size : int, default=128
        Rows in a step of ``"adam"``; fewer where there would be less than 20 steps in an epoch.
    cv : int, cross-validation generator or iterable, default=5
        How ``fit_transform`` splits the rows.
    layout : ExitLayout or int, default=None
        Layout of X, or the number of exits into which its columns split evenly. By default found
        in X: from an ExitArray, or from column names; else X is one exit of features.
    random_state : int, RandomState instance or None, default=None
        Seeds the splits, and the initial weights and batches of ``"adam"``.
    verbose : bool, default=False
        Show progress bars.

    Attributes
    ----------
    networks_ : list of DenseNetwork or None, one an exit
        The trained heads, None where an exit keeps its own logits.
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the logits.
    layout_ : ExitLayout
        Layout of the X that was fitted, its classes sorted.
    layout_out_ : ExitLayout
        Layout of the X that ``transform`` gives. Where costs are in FLOPs or MACs, each exit's
        include the heads up to it.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (n_columns,)
        Names of the columns, when X was a DataFrame.

    References
    ----------
    Phase 1 of "EM-Based Adaptive Computation in Multi-Exit Neural Networks": the sum of the
    cross-entropies of separate heads is least where each head's is.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ExitHeads
    >>> X, y = load_digits(return_X_y=True)
    >>> heads = ExitHeads(layout=2, random_state=0)  # the upper and the lower half of the images
    >>> X_with_logits = heads.fit_transform(X, y)
    >>> X_with_logits
    ExitArray(1797 rows, 84 columns, 2 exits, float64)
    >>> (X_with_logits.logits(0).argmax(axis=1) == y).mean().round(1)
    np.float64(0.9)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden": [Interval(Integral, 0, None, closed="left")],
        "cascade": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "calibrated": ["boolean"],
        "solver": [StrOptions({"auto", "lbfgs", "adam"})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "cv": ["cv_object"],
        "layout": [ExitLayout, Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        hidden: int = 0,
        *,
        cascade: bool = False,
        dropout: float = 0.0,
        calibrated: bool = False,
        solver: str = "auto",
        alpha: float = 3e-3,
        learning_rate: float = 0.01,
        max_epochs: int = 30,
        batch_size: int = 128,
        cv: Any = 5,
        layout: ExitLayout | int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden = hidden
        self.cascade = cascade
        self.dropout = dropout
        self.calibrated = calibrated
        self.solver = solver
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.cv = cv
        self.layout = layout
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> ExitHeads:
        """Train the heads on all rows.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        self : ExitHeads

        Raises
        ------
        ValueError
            If X does not fit its layout, is not finite, or y has a class that X does not know.
        """
        used, classes, labels, weight = validate_training_data(self, X, y, sample_weight)
        self._fit(used, classes, labels, weight)
        if self.calibrated:
            self._calibrate(self._cross_fit(used, labels, weight), labels, weight)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Any:
        """Train the heads, and add cross-fitted logits to X.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Rows of zero weight train nothing, and get the logits of ``transform``.

        Returns
        -------
        ExitArray of shape (n_samples, n_columns_out)
            A DataFrame after ``set_output(transform="pandas")``.
        """
        used, classes, labels, weight = validate_training_data(self, X, y, sample_weight)
        if used.layout.n_exits == 1:  # no decision will be learned from the logits
            return self.fit(X, y, sample_weight).transform(X)
        self._fit(used, classes, labels, weight)
        cross_fitted = self._cross_fit(used, labels, weight)
        if self.calibrated:
            self._calibrate(cross_fitted, labels, weight)
        new = validate_new_data(self, X)
        positions = np.arange(len(new)) if len(used) == len(new) else np.flatnonzero(np.asarray(sample_weight) > 0)
        logits = self._logits(new)
        for k, values in cross_fitted.items():
            logits[k][positions] = values
        return self._output(LogitsSource(new, logits), X)

    def exit_logits(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        """Logits of exit `k` for the samples that are still running.

        Parameters
        ----------
        k : int
            The exit.
        logits : array of shape (n_samples, n_classes) or None
            The exit's own logits, which are kept.
        features : array of shape (n_samples, n_features)
            Features of the exit, of any array-API namespace.
        memory : dict of str to array
            What earlier calls noted of these samples; changed in place.

        Returns
        -------
        array of shape (n_samples, n_classes)
        """
        network = self.networks_[k]
        if self.cascade and not self.hidden:
            features = memory["seen"] = _side_by_side(memory.get("seen"), features)
        if network is None:
            return logits
        if self.cascade and self.hidden:
            hidden = memory["hidden"] = network.last_hidden(_side_by_side(features, memory.get("hidden")))
            return network.last_layer(hidden)
        return network(features)

    @classmethod
    def _from_networks(cls, X: ExitArray, classes: NDArray[Any], networks: list[DenseNetwork | None]) -> ExitHeads:
        """Heads that were trained elsewhere, on an X with sorted classes."""
        heads = cls()
        heads._layout_in = heads.layout_ = X.layout
        heads.n_features_in_ = X.shape[1]
        heads.classes_, heads.networks_ = classes, networks
        heads.layout_out_ = heads._layout_with_heads()
        return heads

    def _fit(self, X: ExitArray, classes: NDArray[Any], labels: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        if len(classes) == 1:
            raise ValueError(f"y has 1 class, {classes.tolist()[0]!r}; a classifier needs two or more.")
        self.layout_ = X.layout
        self.classes_ = classes
        self.networks_ = self._train(X, labels, weight)
        self.layout_out_ = self._layout_with_heads()

    def _train(self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]) -> list[DenseNetwork | None]:
        random_state = check_random_state(self.random_state)
        networks: list[DenseNetwork | None] = [None] * X.layout.n_exits
        without_logits = [k for k in range(X.layout.n_exits) if not X.layout.has_logits(k)]
        if self.hidden and self.solver == "lbfgs":
            raise ValueError(f"solver='lbfgs' fits linear heads only, but hidden={self.hidden}; use solver='adam'.")
        # A hidden layer that goes on to the next exit is trained with the exits that see it.
        together = [without_logits] if self.hidden and self.cascade else [[k] for k in without_logits]
        for exits in tqdm(together, desc="heads", unit="exit", disable=not self.verbose, leave=False):
            if self.hidden:
                trained = self._train_hidden(X, exits, labels, weight, random_state)
            elif self._in_memory(X, exits[0]):
                trained = [self._solve(X, exits[0], labels, weight)]
            else:
                trained = [self._train_linear(X, exits[0], labels, weight, random_state)]
            for k, network in zip(exits, trained, strict=True):
                networks[k] = network
        return networks

    def _in_memory(self, X: ExitArray, k: int) -> bool:
        """Whether the linear head at exit `k` is solved for in memory."""
        n_bytes = 8 * len(X) * sum(X.layout.n_features[j] for j in (*self._earlier_exits(k), k))
        return self.solver == "lbfgs" or (self.solver == "auto" and n_bytes <= _IN_MEMORY_BYTES)

    def _solve(self, X: ExitArray, k: int, labels: NDArray[np.int64], weight: NDArray[np.float64]) -> DenseNetwork:
        inputs = self._linear_inputs(X, k)
        weights = np.zeros((inputs.shape[1], len(self.classes_)))
        biases = np.full(len(self.classes_), _ABSENT_CLASS_LOGIT)
        if (labels == labels[0]).all():
            biases[labels[0]] = 0
            return DenseNetwork((weights,), (biases,))
        mean, scale = weighted_scaling(iter([(inputs, weight)]))
        inputs = (inputs - mean) / scale
        strength = np.inf if self.alpha == 0 else 1 / (self.alpha * weight.sum())
        # On small matrices threads cost more than they bring, above all when others use the cores.
        n_threads = 1 if inputs.size < _WORTH_THREADS else None
        with threadpool_limits(n_threads, user_api="blas"):
            model = LogisticRegression(C=strength, max_iter=1000).fit(inputs, labels, sample_weight=weight)
        coefficients, intercepts = model.coef_, model.intercept_
        if len(model.classes_) == 2:
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        weights[:, model.classes_] = coefficients.T
        biases[model.classes_] = intercepts
        return DenseNetwork((weights,), (biases,)).after_scaling(mean, scale)

    def _train_linear(
        self,
        X: ExitArray,
        k: int,
        labels: NDArray[np.int64],
        weight: NDArray[np.float64],
        random_state: np.random.RandomState,
    ) -> DenseNetwork:
        return train(
            lambda rows: self._linear_inputs(X, k, rows),
            labels,
            weight,
            hidden=[],
            n_outputs=len(self.classes_),
            training=self._training(),
            random_state=random_state,
            description=f"head of exit {k}" if self.verbose else None,
        )

    def _linear_inputs(self, X: ExitArray, k: int, rows: Any = None) -> NDArray[np.float64]:
        return np.concatenate([read_features(X, j, rows) for j in (*self._earlier_exits(k), k)], axis=1)

    def _train_hidden(
        self,
        X: ExitArray,
        exits: list[int],
        labels: NDArray[np.int64],
        weight: NDArray[np.float64],
        random_state: np.random.RandomState,
    ) -> list[DenseNetwork]:
        return train_cascade(
            lambda rows: np.concatenate([read_features(X, k, rows) for k in exits], axis=1),
            labels,
            weight,
            widths=[X.layout.n_features[k] for k in exits],
            hidden=self.hidden,
            n_classes=len(self.classes_),
            dropout=self.dropout,
            training=self._training(),
            random_state=random_state,
            description=f"heads of exits {exits}" if self.verbose else None,
        )

    def _training(self) -> Training:
        return Training(self.learning_rate, self.alpha, self.max_epochs, self.batch_size)

    def _new_logits(self) -> list[int]:
        return [k for k, network in enumerate(self.networks_) if network is not None]

    def _earlier_exits(self, k: int) -> range:
        return range(k) if self.cascade else range(0)

    def _cross_fit(
        self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]
    ) -> dict[int, NDArray[np.float64]]:
        """Logits of every exit that has a head, each row's from heads that were trained without it."""
        logits = {k: np.empty((len(X), len(self.classes_))) for k in self._new_logits()}
        for train_rows, test_rows in cross_validation_splits(self.cv, labels, self.random_state):
            fold = copy.copy(self)
            fold.networks_ = self._train(X[train_rows], labels[train_rows], weight[train_rows])
            for k, values in fold._logits(X[test_rows]).items():
                logits[k][test_rows] = values
        return logits

    def _calibrate(
        self, cross_fitted: dict[int, NDArray[np.float64]], labels: NDArray[np.int64], weight: NDArray[np.float64]
    ) -> None:
        """Divide the logits of each head, those given too, by the temperature that fits these best."""
        for k, logits in cross_fitted.items():
            temperature = fit_temperature(logits, labels, weight)
            logits /= temperature
            self.networks_[k] = cast(DenseNetwork, self.networks_[k]).divided_by(temperature)

    def _layout_with_heads(self) -> ExitLayout:
        multiply_adds = np.cumsum([0 if head is None else head.n_multiply_adds for head in self.networks_])
        per_multiply_add = MULTIPLY_ADD_COST.get(self.layout_.cost_unit or "", 0)
        return self.layout_.replace(
            n_logits=[len(self.classes_)] * self.layout_.n_exits,
            costs=self.layout_.costs + per_multiply_add * multiply_adds,
            classes=self.classes_,
        )

    def _exit_table(self) -> str:
        if not hasattr(self, "layout_out_"):
            return ""
        heads = [_describe(head) for head in self.networks_]
        return exit_table(cost_column(self.layout_out_) | {"Head": heads})


def fit_heads(
    heads: Any,
    X: ExitArray,
    classes: NDArray[Any],
    labels: NDArray[np.int64],
    weight: NDArray[np.float64],
    random_state: int | np.random.RandomState | None = 0,
) -> tuple[Any, ExitArray]:
    """Fit what gives logits to exits.

    Parameters
    ----------
    heads : LogitsTransformer, one in a FrozenEstimator, or None
        Not changed. None takes ExitHeads where an exit has no logits.
    X : ExitArray of shape (n_samples, n_columns)
    classes : ndarray of shape (n_classes,)
        Sorted.
    labels : ndarray of shape (n_samples,)
        Index of the class.
    weight : ndarray of shape (n_samples,)
    random_state : int, RandomState instance or None, default=0
        Of the ExitHeads.

    Returns
    -------
    heads : LogitsTransformer, FrozenEstimator or None
        Fitted; None where no logits are missing and `heads` is None.
    X_with_logits : ExitArray of shape (n_samples, n_columns_out)
        Logits of heads that were trained here are cross-fitted.
    """
    X = X.with_layout(X.layout.replace(classes=classes))
    if heads is None:
        if all(X.layout.has_logits(k) for k in range(X.layout.n_exits)):
            return None, X
        heads = ExitHeads(random_state=random_state)
    heads = clone(heads)
    if hasattr(heads, "fit_transform"):
        return heads, heads.fit_transform(X, classes[labels], weight)
    return heads, heads.fit(X, classes[labels]).transform(X)


def _describe(head: DenseNetwork | None) -> str:
    if head is None:
        return "none: the exit has logits"
    hidden = "".join(f", {weight.shape[1]} hidden units" for weight in head.weights[:-1])
    return f"{head.weights[0].shape[0]} features{hidden}"


def _side_by_side(first: Any, second: Any) -> Any:
    """Columns of both arrays, either of which may be absent."""
    if first is None or second is None:
        return second if first is None else first
    return array_namespace(first).concat([first, second], axis=1)
