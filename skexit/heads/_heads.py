"""Classifiers at the exits, trained on cached features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if

from skexit._nn._dense import DenseNetwork, check_hidden_layer_sizes
from skexit.data import ExitArray, ExitLayout
from skexit.data._labels import UNLABELLED_ROWS, only_labelled
from skexit.data._unused_parameters import Unused
from skexit.data._validation import validate_partial_data
from skexit.heads._boosting import PREDICTION_REWEIGHTING
from skexit.heads._cross_fitting import CrossFittedHeads, Rows, check_two_classes
from skexit.heads._distillation import UNUSED_TEMPERATURE, Distillation, network_teaches, resolve_share_of_network
from skexit.heads._overfitting_trial import TrialRows, heads_overfit
from skexit.heads._partial_fit import PartialFit, train_further
from skexit.heads._training import HeadTrainer, HeadTraining
from skexit.utils._array_api import side_by_side
from skexit.utils._module_names import set_module
from skexit.utils._optional import check_torch
from skexit.utils._sklearn import Interval, StrOptions, _fit_context

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@set_module("skexit")
class ExitHeads(CrossFittedHeads):
    """Train a classifier on the features of each exit, and add its logits to X.

    An exit that already has logits, such as the last exit of a frozen network, keeps them.

    For rows without a label, y is -1, as in scikit-learn's semi-supervised estimators. From these rows, heads learn the
    logits of the teacher, see `distillation`. Heads that learn from labels alone leave them out. -1 is a class if it is
    among the classes of the layout of X, or if X has neither logits nor classes. An array of strings with -1 must have
    the dtype object.

    ``fit_transform`` returns cross-fitted logits: the logits of each row come from heads that were trained without this
    row. If a policy learned from logits of heads that were trained on the same rows, it would overestimate their
    accuracy. A temperature for each exit, which is extrapolated from heads of fewer rows, makes the cross-fitted logits
    as confident as the logits of new rows, so that a policy meets its budget on new rows, too. ``transform`` uses the
    heads trained on all rows, so ``fit(X, y).transform(X)`` differs from ``fit_transform(X, y)``, as in
    :class:`sklearn.preprocessing.TargetEncoder`. With a single exit, there is no decision to learn, and the two agree.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=()
        Width of each hidden layer of a head; ``()`` makes the heads linear, and ``(256,)`` gives them one hidden layer.
    cascade : bool, default=False
        Whether heads use the inputs of earlier heads. With hidden layers, the last hidden layer of a head is also an
        input of the next head, and all heads are trained together. Linear heads get the features of all exits up to
        their own.
    training : {"separate", "boosted"}, default="separate"
        The loss of each head. ``"separate"``: its own cross-entropy on all samples.
        ``"boosted"``: the cross-entropy of the sum of its output and half of the sum of the heads before it, so that it
        learns to correct these. Its logits are this sum. Exits that have logits are not part of the sum.
    dropout : float or "auto", default=0.0
        Share of the hidden units that a training step leaves out at random. ``"auto"`` is 0.4 up to 5,000 rows, or 0.7
        if `overfits_`. Beyond, it is proportional to one over the square root of the number of rows.
    distillation : float or "auto", default="auto"
        Share d of the loss that compares a head with a teacher, instead of the labels:
        ``(1 - d) CE(y, softmax(z)) + d T² CE(softmax(t / T), softmax(z / T))``, with the logits z of the head and t of
        the teacher.

        If the last exit has logits, which are the network's own, these are the teacher. The logits of a head are then
        divided by the temperature that fits the labels of the training rows best. ``"auto"`` is 0.9. It is 0, so that
        heads learn from labels alone, if the network's logits are clearly worse than a linear classifier on the deepest
        features that get a head.

        If the last exit has no logits, its head is the teacher. It learns from the labels and the features of the last
        exit. Its logits for a row come from one of three heads, which has not seen this row or its group. d is then
        `distillation` times the fraction of the last exit's cost that comes after the exit, so the last exit learns
        from labels alone. ``"auto"`` is 0.65 if this clearly helps in a trial: least-squares classifiers of each exit
        are fitted on half of the rows, with and without the teacher, and measured on the other half. On average over
        the exits, accuracy and squared error must both improve by two standard errors. Otherwise it is 0. The trial
        uses at most 8,000 rows with labels and as many without.
        ``partial_fit`` does not train this teacher: its heads learn from labels alone.
    temperature : float, default=4.0
        T in the loss of `distillation`; a higher value gives more weight to the classes that are not predicted.
    temperature_scaling : bool, default=False
        Divide the logits of each head by the temperature that minimises the cross-entropy of its cross-fitted logits.
        ``fit`` then also trains the heads of the folds, as ``fit_transform`` always does.
    solver : {"auto", "lbfgs", "adam"}, default="auto"
        ``"lbfgs"`` fits linear heads in memory. ``"adam"`` trains by mini-batches that are read when they are needed,
        so that the features may be larger than memory. ``"auto"`` is ``"lbfgs"`` for linear heads whose features and
        logits take at most 256 MiB, otherwise ``"adam"``.
    l2 : float or "auto", default="auto"
        Strength of the squared penalty on the weights, for standardised features: the loss is the mean cross-entropy
        plus ``l2 / 2`` times their squared norm. ``"auto"`` is 3e-3 up to 5,000 rows, and 15 / n_samples for more rows.
        It is ten times as strong if `overfits_`.

        A trial decides whether heads with hidden layers overfit, if `l2` or `dropout` is ``"auto"``. The first, the
        middle and the last head are trained on three quarters of the rows, with the usual values and with the strong
        ones, and measured on the others. The strong values must have the smaller mean cross-entropy, by one standard
        error, and no less accuracy. The trial uses at most 8,000 rows with labels. With fewer than 100 such rows or
        groups, there is none, nor if heads learn from the network's own logits, nor in ``partial_fit``.
    learning_rate : float, default=0.01
        Highest learning rate of ``"adam"``.
    max_epochs : int or "auto", default="auto"
        Passes of ``"adam"`` over the rows. ``"auto"`` is 30 up to 16,000 rows, and falls to 8 at 60,000 rows.
    batch_size : int, default=128
        Number of rows in a step of ``"adam"``; smaller if an epoch would have fewer than 20 steps.
    cv : int, cross-validation generator or iterable, default=5
        How ``fit_transform`` splits the rows. With three folds or more, cross-fitted logits are made as confident as
        the logits of new rows, which takes one more training. With two folds, they are not.
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds the splits, and the initial weights and batches of ``"adam"``.
    verbose : bool, default=False
        Show progress bars.

    Attributes
    ----------
    networks_ : list of DenseNetwork or None, one per exit
        The trained heads; None for an exit that keeps its own logits.
    overfits_ : bool
        Whether heads overfit with the usual `l2` and `dropout`, so that ``"auto"`` is stronger; False without a trial.
    %(head_attributes)s

    References
    ----------
    Separate: phase 1 of "EM-Based Adaptive Computation in Multi-Exit Neural Networks". To minimise the sum of the
    cross-entropies, it is enough to minimise that of each head.

    Boosted: Yu, Li, Hua, Huang, Shi. "Boosted dynamic neural networks." AAAI 2023.

    Distilled: Hinton, Vinyals, Dean. "Distilling the knowledge in a neural network." 2015. Phuong, Lampert.
    "Distillation-based training for multi-exit architectures." ICCV 2019. The deepest head as the teacher: Zhang et
    al. "Be your own teacher." ICCV 2019.

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
        "hidden_layer_sizes": ["array-like"],
        "cascade": ["boolean"],
        "training": [StrOptions({"separate", "boosted"})],
        "dropout": [Interval(Real, 0, 1, closed="left"), StrOptions({"auto"})],
        "distillation": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "temperature_scaling": ["boolean"],
        "solver": [StrOptions({"auto", "lbfgs", "adam"})],
        "l2": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "cv": ["cv_object"],
        "layout": [ExitLayout, Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _unused_parameters: ClassVar[tuple[Unused, ...]] = (
        UNUSED_TEMPERATURE,
        Unused(
            ("dropout",),
            "hidden_layer_sizes",
            lambda heads: len(heads.hidden_layer_sizes) == 0,
            "Linear heads have no hidden units to leave out. Leave it out, or set hidden_layer_sizes, such as (256,).",
        ),
        Unused(
            ("learning_rate", "max_epochs", "batch_size"),
            "solver",
            lambda heads: heads.solver == "lbfgs",
            "Only 'adam' has such settings. Keep the defaults, or set solver='adam'.",
        ),
    )

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (),
        *,
        cascade: bool = False,
        training: str = "separate",
        dropout: float | str = 0.0,
        distillation: float | str = "auto",
        temperature: float = 4.0,
        temperature_scaling: bool = False,
        solver: str = "auto",
        l2: float | str = "auto",
        learning_rate: float = 0.01,
        max_epochs: int | str = "auto",
        batch_size: int = 128,
        cv: Any = 5,
        layout: ExitLayout | int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.cascade = cascade
        self.training = training
        self.dropout = dropout
        self.distillation = distillation
        self.temperature = temperature
        self.temperature_scaling = temperature_scaling
        self.solver = solver
        self.l2 = l2
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.cv = cv
        self.layout = layout
        self.random_state = random_state
        self.verbose = verbose

    fit_state_: PartialFit | None = None
    overfits_: bool = False

    def _check_learns_in_calls(self) -> bool:
        """Raise where the parameters need all rows at once; then there is no ``partial_fit``."""
        for name, allowed in (
            ("training", ["separate"]),
            ("solver", ["auto", "adam"]),
            ("temperature_scaling", [False]),
        ):
            if getattr(self, name) not in allowed:
                raise AttributeError(
                    f"partial_fit is not available with {name}={getattr(self, name)!r}, which needs all rows at once. "
                    f"Set {name}={allowed[0]!r}, or call fit."
                )
        return True

    @available_if(lambda heads: heads._check_learns_in_calls())
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> ExitHeads:
        """Continue the training of the heads with a batch of rows, which need not be stored afterwards.

        A call makes one pass over the rows in steps of `batch_size`, with Adam's state from the last call. The learning
        rate falls as one over the square root of the steps. The weights of the heads are averages over the steps, in
        which late steps count more. `max_epochs` is not used: for a second pass, call again with the same rows.
        Features are standardised by all rows so far. ``l2="auto"`` depends on the number of rows so far, in which
        repeated rows count repeatedly. Heads learn from labels and from the network's own logits. If the last exit has
        none, they learn from labels alone.

        ``fit`` starts again from the beginning. It stores no state of training, so ``partial_fit`` after ``fit`` starts
        from the beginning, too. Heads that need all rows at once have no ``partial_fit``: those with
        ``solver="lbfgs"``, ``temperature_scaling=True``, or `training` other than ``"separate"``.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits. Logits alone may have the shape (n_samples, n_exits, n_classes).
        y : array-like of shape (n_samples,)
            Class labels; -1 for rows without one.
        classes : array-like of shape (n_classes,), default=None
            In the first call, all classes that may occur. By default those of the layout of X, or else those of the
            first y.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; equal by default.

        Returns
        -------
        self : ExitHeads
            The heads, trained on these rows as well.

        Raises
        ------
        ValueError
            If X does not match its layout or that of the first call, or is not finite; y has an unknown class; no row
            has a label and heads learn from labels alone; `distillation` is a number above 0 and the last exit has no
            logits; or `classes` differ from those of the first call.
        AttributeError
            If the parameters need all rows at once.
        """
        is_first = self.fit_state_ is None
        self.overfits_ = False
        used, known, labels, weight = validate_partial_data(self, X, y, classes, sample_weight, is_first=is_first)
        check_two_classes(known)
        if is_first:
            self.distillation_ = resolve_share_of_network(self.distillation, used, labels)
            self._softness = np.ones(used.layout.n_exits)
        if self.distillation_ == 0:
            if (labels < 0).all():
                raise ValueError(f"{UNLABELLED_ROWS} Heads that learn from labels alone, as here, need some.")
            used, labels, weight, _ = only_labelled(used, labels, weight)
        state = (self.fit_state_ or PartialFit.start(check_random_state(self.random_state))).next_call(weight)
        distillation = Distillation.from_network(used, self.distillation_, self.temperature)
        check_torch("ExitHeads.partial_fit trains with")
        self.fit_state_, networks = train_further(
            used, labels, weight, state, len(known), self._head_training(), distillation
        )
        self._keep(used, known, networks)
        self._undo_softening(used, labels, weight)
        return self

    def exit_logits(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        network = self.networks_[k]
        if self.cascade and not len(self.hidden_layer_sizes) and self.uses_features(k):
            features = memory["seen"] = side_by_side(memory.get("seen"), features)
        if network is None:
            return logits
        if self.cascade and len(self.hidden_layer_sizes):
            hidden = memory["hidden"] = network.last_hidden(side_by_side(features, memory.get("hidden")))
            return network.last_layer(hidden)
        if self.training == "boosted":
            return self._add_to_sum(network(features), memory) / float(self._temperatures[k])
        return network(features)

    @staticmethod
    def _add_to_sum(logits: Any, memory: dict[str, Any]) -> Any:
        """Sum of the heads up to this exit; `memory` stores it for the next exit."""
        if "boosted" in memory:
            logits = logits + PREDICTION_REWEIGHTING * memory["boosted"]
        memory["boosted"] = logits
        return logits

    @classmethod
    def _from_networks(cls, X: ExitArray, classes: NDArray[Any], networks: list[DenseNetwork | None]) -> ExitHeads:
        """Heads that were trained elsewhere, on an X with sorted classes."""
        heads = cls(distillation=0)
        heads.distillation_ = 0.0
        heads._layout_in = heads.layout_ = X.layout
        heads.n_features_in_ = X.shape[1]
        heads.classes_, heads.networks_ = classes, networks
        heads.layout_out_ = heads._layout_with_heads()
        return heads

    @property
    def _has_hidden_layers(self) -> bool:
        return len(self.hidden_layer_sizes) > 0

    @property
    def _trains_in_one_thread(self) -> bool:
        return self._has_hidden_layers

    def _fit(
        self, X: ExitArray, labels: Integers, weight: Floats, groups: Integers | None, parts: Sequence[Rows] = ()
    ) -> list[Self]:
        self.fit_state_ = None
        self.overfits_ = self._needs_trial(X.layout) and heads_overfit(
            self._train_in_trial, TrialRows(*only_labelled(X, labels, weight, groups))
        )
        return super()._fit(X, labels, weight, groups, parts)

    def _needs_trial(self, layout: ExitLayout) -> bool:
        """Whether a trial decides how strongly heads are regularised."""
        # A network that teaches has learned from many more rows, and heads that learn from it hardly overfit.
        learn_from_labels = self.distillation_ == 0 or not network_teaches(layout)
        has_heads = not all(layout.has_logits(k) for k in range(layout.n_exits))
        return self._has_hidden_layers and has_heads and "auto" in (self.l2, self.dropout) and learn_from_labels

    def _train_in_trial(self, rows: TrialRows, strong: bool) -> Callable[[ExitArray], dict[int, Floats]]:
        """Train heads, strongly regularised or not, and return a function that gives their logits by exit."""
        heads = self._seeded()
        heads.overfits_ = strong
        heads.distillation_ = 0.0  # the deepest head as a teacher would take as long again
        heads._set_networks(heads._train(rows.X, rows.labels, rows.weight, None))
        return heads._logits

    def _set_networks(self, networks: list[DenseNetwork | None]) -> None:
        super()._set_networks(networks)
        self._temperatures = np.ones(len(networks))

    def _train(
        self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64], distillation: Distillation | None
    ) -> list[DenseNetwork | None]:
        settings, random_state = self._head_training(), check_random_state(self.random_state)
        return HeadTrainer(X, labels, weight, len(self.classes_), settings, random_state, distillation).train()

    def _head_training(self) -> HeadTraining:
        given = {field.name: getattr(self, field.name) for field in fields(HeadTraining) if field.name != "overfits"}
        sizes = check_hidden_layer_sizes(self.hidden_layer_sizes, "hidden_layer_sizes")
        return HeadTraining(**given | {"hidden_layer_sizes": sizes}, overfits=self.overfits_)

    def uses_features(self, k: int) -> bool:
        # Linear heads of a cascade see the features of earlier exits, also of those that have no head.
        hands_on_features = self.cascade and not len(self.hidden_layer_sizes)
        return any(network is not None for network in self.networks_[k : None if hands_on_features else k + 1])

    def earlier_exits(self, k: int) -> range:
        depends = self.networks_[k] is not None and (self.cascade or self.training == "boosted")
        return range(k) if depends else range(0)

    def _divide_logits(self, k: int, temperature: float) -> None:
        if self.training == "boosted":  # later heads add to the sum as it was
            self._temperatures[k] *= temperature
        else:
            super()._divide_logits(k, temperature)

    def _describe_head(self, head: DenseNetwork) -> str:
        hidden = "".join(f", {weight.shape[1]} hidden units" for weight in head.weights[:-1])
        return f"{head.weights[0].shape[0]} features{hidden}"
