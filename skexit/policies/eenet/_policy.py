"""EENet: utilities and shares of the exits, learned together for a budget."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from skexit._nn._dense import DenseNetwork
from skexit._nn._mini_batches import Training, number_of_epochs
from skexit.data import ExitArray, ExitLayout
from skexit.data._unused_parameters import Unused
from skexit.data._walk import RowReader, correct_exits, no_features, walk
from skexit.policies._blending import blend
from skexit.policies._budgeted import BudgetedPolicy
from skexit.policies._quotas import quota_thresholds
from skexit.policies.eenet._network import SMALLEST_SHARE, SchedulerLoss, exit_inputs, train_scheduler, utility_input
from skexit.uncertainty import log_odds
from skexit.uncertainty._scores import count_votes
from skexit.utils._array_api import side_by_side
from skexit.utils._module_names import set_module
from skexit.utils._optional import check_torch
from skexit.utils._sklearn import Interval, StrOptions

#: Largest number of passes with ``max_epochs="auto"``.
_MOST_EPOCHS = 20


@set_module("skexit")
class EENetPolicy(BudgetedPolicy):
    """Learn the probability that each exit is correct, and the share of samples that should leave there.

    The inputs of a small network at each exit are the class probabilities, three confidences (the largest probability,
    the entropy and the agreement of the exits so far) and the utilities of earlier exits. Its outputs are the utility,
    which is the probability that the exit is correct, and a score for assigning the sample to this exit. Both are
    learned together, with a penalty that keeps the cost of the assignments near the budget. The mean assignment, tilted
    to meet the budget, is the quota of each exit. The samples with the highest utility leave until it is full.

    Parameters
    ----------
    budget : float, default=0.5
        Mean cost of a sample on the fitting data, as a fraction in (0, 1] of the network's cost.
    hidden_ratio : float, default=0.5
        Number of hidden units per input of a network; in the paper, 0.5 for images and 2 for text.
    budget_loss_weight : float, default=0.1
        Weight of the budget loss, α in the paper: 0.1 for images and 0.01 for text.
    assignment_loss_weight : float, default=1e-3
        Weight of the assignment loss, β in the paper: 1e-3 for images and 1e-4 for text.
    learn_scores : bool, default=True
        Whether samples leave by their utility (True), or by their largest probability (False).
    learn_distribution : bool, default=True
        Whether the quotas follow the mean assignment (True), or are geometric (False).
    confidence_weight : float, default=1.0
        Samples leave by the weighted geometric mean of their utility, with weight 1, and their largest class
        probability, with this weight; see Notes. 0 gives the order of the paper.
    init : {"confidence", "random"}, default="confidence"
        ``"confidence"``: at the start, utilities have the order of the largest probability, and assignments are
        geometric. ``"random"``: networks start with random weights, as in the paper.
    learning_rate : float, default=1e-2
        Highest learning rate of the networks; in the paper, 3e-5 for images and 1e-4 for text.
    l2 : float, default=1e-4
        Strength of the squared penalty on the networks' weights; in the paper, 0.01.
    max_epochs : int or "auto", default="auto"
        Passes over the rows; the epoch with the lowest loss on a held-out tenth of the rows is kept. With
        fewer than 200 rows, none are held out, and the last epoch is kept. ``"auto"`` is 20 up to 75,000
        rows, and falls to 1 at 1,500,000 rows.
    batch_size : int, default=512
        Number of rows in a step.
    patience : int, default=None
        Stop after so many epochs without a lower loss on the held-out rows. By default, never; in the paper, 50.
    %(use_most_confident)s
    %(heads)s
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds the training of heads and networks.
    verbose : bool, default=False
        Show the progress of the networks.

    Attributes
    ----------
    networks_ : list of DenseNetwork, one per exit
        Each gives the logits of utility and assignment. Empty if there is nothing to learn: with a single exit, or if
        neither scores nor shares are learned. With an infinite `confidence_weight`, scores are not learned.
    learned_distribution_ : ndarray of shape (n_exits,) or None
        Mean assignment of the fitting samples, before it is tilted to meet the budget. None if
        there are no networks.
    uses_networks_ : bool
        Whether scores depend on networks. False without `learn_scores`, and with an infinite
        `confidence_weight`; predictions then run no networks.
    losses_ : dict of str to float
        Losses on the fitting samples: ``"utility"`` (eq. 11), ``"budget"`` (eq. 14) and
        ``"assignment"`` (eq. 15). Empty if there are no networks.
    n_epochs_ : int
        Number of epochs after which the networks were best; 0 if they were best at the start.
    %(thresholds)s
    %(policy_attributes)s

    See Also
    --------
    ThresholdPolicy : Stops if the classifier is confident, without learning.
    EMExitAssigner : Learns exit assignments, also from features.

    Notes
    -----
    Scores and thresholds are log-odds of the utility times the power of the largest probability with the exponent
    `confidence_weight`, which have the order of the geometric mean.

    `with_budget` tilts the distribution that was learned for the first budget; nothing is trained again.

    With more than 1,000 classes, the inputs of a network are the 100 largest probabilities, in falling order, instead
    of the probability of each class. Its size, half the square of its inputs, then does not grow with the classes.

    The paper's networks have no biases. Here they have biases, because inputs are standardised in training.
    As probabilities sum to one, the weights of a hidden unit could also represent its bias.

    The paper's settings for images are ``init="random"``, ``confidence_weight=0``,
    ``learning_rate=3e-5``, ``l2=0.01``, ``patience=50`` and several thousand `max_epochs`.

    References
    ----------
    "EENet: Learning to Early Exit for Adaptive Inference".

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import EENetPolicy
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = EENetPolicy(budget=0.75, layout=2, random_state=0).fit(X, y)
    >>> policy.exit_distribution_.round(2)
    array([0.5, 0.5])
    >>> policy.with_budget(0.6).exit_distribution_.round(2)
    array([0.8, 0.2])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BudgetedPolicy._parameter_constraints,
        "budget": [Real],
        "hidden_ratio": [Interval(Real, 0, None, closed="neither")],
        "budget_loss_weight": [Interval(Real, 0, None, closed="left")],
        "assignment_loss_weight": [Interval(Real, 0, None, closed="left")],
        "learn_scores": ["boolean"],
        "learn_distribution": ["boolean"],
        "confidence_weight": [Interval(Real, 0, None, closed="both")],
        "init": [StrOptions({"confidence", "random"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "l2": [Interval(Real, 0, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "patience": [Interval(Integral, 1, None, closed="left"), None],
        "use_most_confident": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _unused_parameters: ClassVar[tuple[Unused, ...]] = (
        Unused(
            ("confidence_weight",),
            "learn_scores",
            lambda policy: not policy.learn_scores,
            "Scores are the confidence alone. Leave it out, or set learn_scores=True.",
        ),
        Unused(
            (
                "hidden_ratio",
                "budget_loss_weight",
                "assignment_loss_weight",
                "init",
                "learning_rate",
                "l2",
                "max_epochs",
                "batch_size",
                "patience",
            ),
            "learn_distribution",
            lambda policy: not policy.learn_distribution and not policy._learns_scores(),
            "Neither scores nor shares are learned. Keep the defaults, or set learn_distribution=True.",
        ),
    )

    def __init__(
        self,
        budget: float = 0.5,
        *,
        hidden_ratio: float = 0.5,
        budget_loss_weight: float = 0.1,
        assignment_loss_weight: float = 1e-3,
        learn_scores: bool = True,
        learn_distribution: bool = True,
        confidence_weight: float = 1.0,
        init: str = "confidence",
        learning_rate: float = 1e-2,
        l2: float = 1e-4,
        max_epochs: int | str = "auto",
        batch_size: int = 512,
        patience: int | None = None,
        use_most_confident: bool = False,
        heads: Any = None,
        layout: ExitLayout | int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.budget = budget
        self.hidden_ratio = hidden_ratio
        self.budget_loss_weight = budget_loss_weight
        self.assignment_loss_weight = assignment_loss_weight
        self.learn_scores = learn_scores
        self.learn_distribution = learn_distribution
        self.confidence_weight = confidence_weight
        self.init = init
        self.learning_rate = learning_rate
        self.l2 = l2
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.patience = patience
        self.use_most_confident = use_most_confident
        self.heads = heads
        self.layout = layout
        self.random_state = random_state
        self.verbose = verbose

    def fit_policy(
        self,
        X: ExitArray,
        labels: NDArray[np.int64],
        weight: NDArray[np.float64],
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        self.networks_: list[DenseNetwork] = []
        self.learned_distribution_: NDArray[np.float64] | None = None
        self.losses_: dict[str, float] = {}
        self.n_epochs_ = 0
        if len(self.costs_) > 1 and (self._learns_scores() or self.learn_distribution):
            self._train(X, labels, weight, groups)
        self.fit_thresholds(X, weight)

    def _train(
        self, X: ExitArray, labels: NDArray[np.int64], weight: NDArray[np.float64], groups: NDArray[np.int64] | None
    ) -> None:
        check_torch("EENetPolicy trains its networks with")
        self.networks_, self.learned_distribution_, self.losses_, self.n_epochs_ = train_scheduler(
            lambda rows: _read_inputs(X, rows),
            correct_exits(X, labels),
            weight,
            SchedulerLoss(self.costs_, self.budget, self.budget_loss_weight, self.assignment_loss_weight),
            n_classes=len(self.classes_),
            hidden_ratio=self.hidden_ratio,
            from_confidence=self.init == "confidence",
            training=Training(
                self.learning_rate,
                self.l2,
                number_of_epochs(self.max_epochs, len(X), 1, _MOST_EPOCHS),
                self.batch_size,
                early_stopping=True,
                patience=self.patience,
            ),
            random_state=check_random_state(self.random_state),
            groups=groups,
            description="utilities and assignments" if self.verbose else None,
        )

    def earlier_exits(self, k: int) -> range:
        return range(k if self.uses_networks_ else 0)

    def _learns_scores(self) -> bool:
        return self.learn_scores and self.confidence_weight < np.inf

    @property
    def uses_networks_(self) -> bool:
        """Whether scores depend on networks."""
        return len(self.networks_) > 0 and self._learns_scores()

    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        confidence = log_odds(logits)
        if not self.uses_networks_:
            return confidence
        memory["votes"] = count_votes(logits, memory.get("votes"))
        inputs = exit_inputs(logits, memory["votes"], memory.get("utilities"))
        utility = self.networks_[k](inputs)[..., 0]
        memory["utilities"] = side_by_side(memory.get("utilities"), utility_input(utility)[..., None])
        return blend(utility, confidence, self.confidence_weight)

    def choose_thresholds(self, scores: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.learned_distribution_ is None or not self.learn_distribution:
            return quota_thresholds(scores, self.costs_, self.budget, sample_weight=weight)
        return quota_thresholds(
            scores,
            self.costs_,
            self.budget,
            log_prior=np.log(np.maximum(self.learned_distribution_, SMALLEST_SHARE)),
            direction=self.costs_,
            sample_weight=weight,
        )


def _read_inputs(X: ExitArray, rows: Any) -> NDArray[np.float64]:
    """`exit_inputs` of all exits, side by side."""
    reader = RowReader(X, rows, no_features)
    return np.concatenate([inputs for _, _, inputs, _ in walk(_own_inputs, reader, range(X.layout.n_exits))], axis=1)


def _own_inputs(k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
    """`exit_inputs` without the utilities of earlier exits."""
    memory["votes"] = count_votes(logits, memory.get("votes"))
    return exit_inputs(logits, memory["votes"])
