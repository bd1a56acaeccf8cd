"""Convolutions of the map at each exit, trained on the cached features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from skexit._nn._conv import ConvNetwork
from skexit._nn._dense import DenseNetwork
from skexit.data import ExitArray, ExitLayout
from skexit.heads._conv_training import ConvHeadTrainer, ConvTraining
from skexit.heads._cross_fitting import CrossFittedHeads
from skexit.utils._module_names import set_module
from skexit.utils._sklearn import Interval, StrOptions
from skexit.utils._warnings import warn


@set_module("skexit")
class ConvExitHeads(CrossFittedHeads):
    """Train convolutions of the map at each exit, and add their logits to X.

    The layout of X tells where the features of an exit are a map: ``feature_maps`` of :class:`~skexit.ExitLayout`,
    which a cache has that was extracted with a grid, as ``pool=("avg", "grid8")``. A head is a few layers of 3 x 3
    convolutions with rectified linear units, and a linear layer that sees all of the last one and the features beside
    the map. An exit without a map gets the linear head of :class:`~skexit.ExitHeads`.

    Otherwise these heads are as :class:`~skexit.ExitHeads`: they learn from the network's own logits, too, and from
    rows without a label; an exit that has logits keeps them; the logits that ``fit_transform`` gives are cross-fitted.
    :doc:`/guide/heads` says what they cost, and compares them with hidden layers.

    Parameters
    ----------
    channels : tuple of int, default=(32, 64)
        Number of kernels in each layer of convolutions.
    strides : tuple of int, default=(2, 1)
        How far each layer moves its kernels; with 2, it gives a map of half the height and width.
    dropout : float or "auto", default=0.0
        Share of the inputs of the linear layer that are left out at random in a step of training. ``"auto"`` is 0.4 up
        to 5,000 rows, and beyond falls as one over the square root of the rows.
    distillation : float or "auto", default="auto"
        Share of the loss that compares a head with the network's own logits at the last exit, as for
        :class:`~skexit.ExitHeads`.
    temperature : float, default=4.0
        T in this part of the loss.
    temperature_scaling : bool, default=False
        Divide the logits of each head by the temperature that fits its cross-fitted logits best.
        ``fit`` then trains the heads `cv` more times, as ``fit_transform`` always does.
    l2 : float or "auto", default="auto"
        Strength of the squared penalty on kernels and weights, as for :class:`~skexit.ExitHeads`.
    learning_rate : float, default=0.003
        Highest learning rate of Adam; it rises over a tenth of the steps and falls to zero.
    max_epochs : int or "auto", default="auto"
        Passes over the rows. ``"auto"`` is 30 up to 16,000 rows, and beyond falls to 8 at 60,000 rows.
    batch_size : int, default=128
        Rows in a step; fewer where there would be less than 20 steps in an epoch.
    cv : int, cross-validation generator or iterable, default=3
        How ``fit_transform`` splits the rows. From three folds on, cross-fitted logits are made as confident as those
        of new rows, at the price of one more training; with two folds, they are not.
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds the splits, the initial weights and the batches.
    verbose : bool, default=False
        Show progress bars.

    Attributes
    ----------
    networks_ : list of ConvNetwork, DenseNetwork or None, one per exit
        The trained heads: a DenseNetwork where an exit has no map, None where it keeps its own logits.
    %(head_attributes)s

    Warns
    -----
    UserWarning
        If no exit that needs a head has a map.

    See Also
    --------
    ExitHeads : Linear heads, and heads with hidden layers, of any features.

    Notes
    -----
    Training needs torch, and uses as many threads as torch has. What is fitted needs NumPy alone, which convolves where
    torch has not been imported. All compute in single precision, and agree up to its rounding.

    In training, what each convolution gives is standardised over the batch (batch normalisation); afterwards this is
    part of its kernels.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ConvExitHeads, stack_exits
    >>> digits = load_digits()
    >>> upper, images = digits.images[:, None, :4], digits.images[:, None]  # maps of one channel
    >>> X = stack_exits(features=[upper, images])
    >>> X.layout.feature_maps
    ((0, 1, 4, 8), (0, 1, 8, 8))
    >>> heads = ConvExitHeads((16, 16), max_epochs=10, random_state=0).fit(X[:1200], digits.target[:1200])
    >>> logits = heads.transform(X[1200:])
    >>> [bool((logits.logits(k).argmax(axis=1) == digits.target[1200:]).mean() > 0.75) for k in range(2)]
    [True, True]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "channels": ["array-like"],
        "strides": ["array-like"],
        "dropout": [Interval(Real, 0, 1, closed="left"), StrOptions({"auto"})],
        "distillation": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "temperature_scaling": ["boolean"],
        "l2": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "cv": ["cv_object"],
        "layout": [ExitLayout, Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        channels: Sequence[int] = (32, 64),
        strides: Sequence[int] = (2, 1),
        *,
        dropout: float | str = 0.0,
        distillation: float | str = "auto",
        temperature: float = 4.0,
        temperature_scaling: bool = False,
        l2: float | str = "auto",
        learning_rate: float = 0.003,
        max_epochs: int | str = "auto",
        batch_size: int = 128,
        cv: Any = 3,
        layout: ExitLayout | int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.channels = channels
        self.strides = strides
        self.dropout = dropout
        self.distillation = distillation
        self.temperature = temperature
        self.temperature_scaling = temperature_scaling
        self.l2 = l2
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.cv = cv
        self.layout = layout
        self.random_state = random_state
        self.verbose = verbose

    def exit_logits(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        network = self.networks_[k]
        return logits if network is None else network(features)

    def earlier_exits(self, k: int) -> range:
        return range(0)

    def uses_features(self, k: int) -> bool:
        return self.networks_[k] is not None

    def _train(
        self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64]
    ) -> list[ConvNetwork | DenseNetwork | None]:
        random_state = check_random_state(self.random_state)
        return ConvHeadTrainer(X, labels, weight, len(self.classes_), self._training(), random_state).train()

    def _validate(self, X: Any, y: Any, sample_weight: Any, groups: Any) -> Any:
        validated = super()._validate(X, y, sample_weight, groups)
        warn_without_maps(validated[0].layout)
        return validated

    def _training(self) -> ConvTraining:
        check_convolutions(self.channels, self.strides)
        parameters = {field.name: getattr(self, field.name) for field in fields(ConvTraining)}
        own = {"channels": tuple(self.channels), "strides": tuple(self.strides), "distillation": self.distillation_}
        return ConvTraining(**parameters | own)

    def _describe_head(self, head: ConvNetwork | DenseNetwork) -> str:
        if isinstance(head, DenseNetwork):
            return f"{len(head.weights[0])} features, no map"
        kernels = ", ".join(f"{len(bias)} kernels" for bias in head.biases)
        return f"map of {' x '.join(map(str, head.place[1:]))}, {kernels}"


def check_convolutions(channels: Sequence[int], strides: Sequence[int]) -> None:
    """Raise a ValueError unless there are positive integers, as many of each."""
    for name, numbers in (("channels", channels), ("strides", strides)):
        if not len(numbers) or not all(isinstance(number, Integral) and number >= 1 for number in numbers):
            raise ValueError(f"{name}={numbers!r} must hold one positive integer for each layer, at least one.")
    if len(strides) != len(channels):
        raise ValueError(
            f"channels={channels!r} and strides={strides!r} must have as many numbers: one for each layer. For layers "
            f"that keep the size of the map, give strides={(1,) * len(channels)}."
        )


def warn_without_maps(layout: ExitLayout) -> None:
    """Warn where exits need heads, and none has a map."""
    places = [layout.feature_maps[k] for k in range(layout.n_exits) if not layout.has_logits(k)]
    if places and not any(places):
        warn(
            "no exit of X that needs a head has a map, so that all heads are linear. Extract with a grid, as "
            "ExitExtractor(..., pool=('avg', 'grid8')), or say where maps are: ExitLayout(..., feature_maps=...)."
        )
