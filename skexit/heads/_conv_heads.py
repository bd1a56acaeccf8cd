"""Convolutional heads, trained on the feature maps of a cache."""

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
from skexit.heads._distillation import UNUSED_TEMPERATURE, Distillation
from skexit.utils._checks import is_integer
from skexit.utils._module_names import set_module
from skexit.utils._sklearn import Interval, StrOptions
from skexit.utils._warnings import warn


@set_module("skexit")
class ConvExitHeads(CrossFittedHeads):
    """Train a convolutional head on the feature map of each exit, and add its logits to X.

    ``X.layout.feature_maps`` tells which columns of an exit form a map. A cache has maps if it was extracted with a
    grid, such as ``pool=("avg", "grid8")``. A head has a few layers of 3 x 3 convolutions with rectified linear units,
    followed by a linear layer. The inputs of the linear layer are all outputs of the last convolution, and the features
    of the exit that are not part of the map. An exit without a map gets the linear head of :class:`~skexit.ExitHeads`.

    In all other respects, these heads work like :class:`~skexit.ExitHeads`: they also learn from the network's own
    logits or from the deepest head, and from rows without a label, an exit that has logits keeps them, and
    ``fit_transform`` returns cross-fitted logits. :doc:`/guide/heads` shows their cost, and :doc:`/benchmarks/heads`
    compares them with hidden layers.

    Parameters
    ----------
    channels : tuple of int, default=(32, 64)
        Number of kernels in each convolutional layer.
    strides : tuple of int, default=(2, 1)
        Stride of each convolutional layer. A stride of 2 halves the height and the width of the map.
    dropout : float or "auto", default=0.0
        Share of the inputs of the linear layer that a training step leaves out at random. ``"auto"`` is 0.4 up to 5,000
        rows. Beyond, it is proportional to one over the square root of the number of rows.
    distillation : float or "auto", default="auto"
        Share of the loss that compares a head with the network's own logits at the last exit, or with the deepest head
        if there are none, as in :class:`~skexit.ExitHeads`.
    temperature : float, default=4.0
        The temperature T in this part of the loss.
    temperature_scaling : bool, default=False
        Divide the logits of each head by the temperature that minimises the cross-entropy of its cross-fitted logits.
        ``fit`` then also trains the heads of the folds, as ``fit_transform`` always does.
    l2 : float or "auto", default="auto"
        Strength of the squared penalty on kernels and weights, as in :class:`~skexit.ExitHeads`.
    learning_rate : float, default=0.003
        Highest learning rate of Adam. The rate rises over the first tenth of the steps, and then falls to zero.
    max_epochs : int or "auto", default="auto"
        Passes over the rows. ``"auto"`` is 30 up to 16,000 rows, and falls to 8 at 60,000 rows.
    batch_size : int, default=128
        Number of rows in a step; smaller if an epoch would have fewer than 20 steps.
    cv : int, cross-validation generator or iterable, default=3
        How ``fit_transform`` splits the rows. With three folds or more, cross-fitted logits are made as confident as
        the logits of new rows, which takes one more training. With two folds, they are not.
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds the splits, the initial weights and the batches.
    verbose : bool, default=False
        Show progress bars.

    Attributes
    ----------
    networks_ : list of ConvNetwork, DenseNetwork or None, one per exit
        The trained heads: a DenseNetwork for an exit without a map, None for an exit that keeps its own logits.
    %(head_attributes)s

    Warns
    -----
    UserWarning
        If no exit that needs a head has a map.

    See Also
    --------
    ExitHeads : Linear heads, and heads with hidden layers, for features of any kind.

    Notes
    -----
    Training needs torch, and uses as many threads as torch is set to. Fitted heads need NumPy alone: they compute
    convolutions with torch if the process has imported it, otherwise with NumPy. Both use single precision, and their
    results agree up to its rounding.

    In training, batch normalisation follows each convolution. After training, it is merged into the kernels.

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

    _unused_parameters: ClassVar = (UNUSED_TEMPERATURE,)

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
        self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64], distillation: Distillation | None
    ) -> list[ConvNetwork | DenseNetwork | None]:
        settings, random_state = self._training(), check_random_state(self.random_state)
        trainer = ConvHeadTrainer(X, labels, weight, len(self.classes_), settings, random_state, distillation)
        return trainer.train()

    def _validate(self, X: Any, y: Any, sample_weight: Any, groups: Any) -> Any:
        validated = super()._validate(X, y, sample_weight, groups)
        warn_without_maps(validated[0].layout)
        return validated

    def _training(self) -> ConvTraining:
        check_convolutions(self.channels, self.strides)
        parameters = {field.name: getattr(self, field.name) for field in fields(ConvTraining)}
        return ConvTraining(**parameters | {"channels": tuple(self.channels), "strides": tuple(self.strides)})

    def _describe_head(self, head: ConvNetwork | DenseNetwork) -> str:
        if isinstance(head, DenseNetwork):
            return f"{len(head.weights[0])} features, no map"
        kernels = ", ".join(f"{len(bias)} kernels" for bias in head.biases)
        return f"map of {' x '.join(map(str, head.place[1:]))}, {kernels}"


def check_convolutions(channels: Sequence[int], strides: Sequence[int]) -> None:
    """Raise a ValueError unless both hold positive integers, and equally many."""
    for name, numbers in (("channels", channels), ("strides", strides)):
        if not len(numbers) or not all(is_integer(number) and number >= 1 for number in numbers):
            raise ValueError(f"{name}={numbers!r} must hold one positive integer for each layer, at least one.")
    if len(strides) != len(channels):
        raise ValueError(
            f"channels={channels!r} and strides={strides!r} must have the same length, one number for each layer. For "
            f"layers that keep the size of the map, pass strides={(1,) * len(channels)}."
        )


def warn_without_maps(layout: ExitLayout) -> None:
    """Warn if exits need heads and none of them has a map."""
    places = [layout.feature_maps[k] for k in range(layout.n_exits) if not layout.has_logits(k)]
    if places and not any(places):
        warn(
            "no exit of X that needs a head has a map, so all heads are linear. Extract with a grid, such as "
            "ExitExtractor(..., pool=('avg', 'grid8')), or declare the maps: ExitLayout(..., feature_maps=...). "
            "ExitTransformer removes maps, unless it returns one feature for each feature, as StandardScaler does."
        )
