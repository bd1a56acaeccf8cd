"""Jointly learned exits and inference: the modules and gates of JEI-DNN."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.utils import check_array, check_random_state

from skexit._nn._dense import DenseNetwork
from skexit.data import ExitArray, ExitLayout
from skexit.data._arrays import enough_rows
from skexit.data._estimator import warn_of_expensive_heads
from skexit.data._lazy import MergedLogits, TransformedLogits, fit_in_memory
from skexit.data._overlays import LogitsSource, OverlaidSource
from skexit.data._validation import cross_validation_splits, read_logits
from skexit.data._walk import no_features, own_logits, walk_batches
from skexit.heads import ExitHeads
from skexit.heads._training import check_two_classes
from skexit.policies._blending import break_ties, sigmoid
from skexit.policies._budgeted import BudgetedPolicy
from skexit.policies._draws import SampleDraws
from skexit.policies._quotas import equal_thresholds, exits_from_scores, shared_threshold
from skexit.policies.jei._gate_fitting import GateFitState, fit_gate
from skexit.policies.jei._gates import N_STATISTICS, balanced_weight, gate_statistics, gate_targets, leaving_log_odds
from skexit.policies.jei._lambda_path import LambdaPath
from skexit.policies.jei._training import JointTrainer, JointTraining
from skexit.uncertainty import fit_temperature, log_odds, softmax
from skexit.utils._array_api import array_namespace
from skexit.utils._module_names import set_module
from skexit.utils._optional import check_torch
from skexit.utils._sklearn import Interval, StrOptions
from skexit.utils._warnings import silenced

Floats = NDArray[np.float64]

#: Prices from which that for a budget is chosen, in nats for the whole network.
_PRICES = np.geomspace(0.01, 30, 18)
#: A sample stops where it is more probable than not that it should: log-odds.
_THRESHOLD = 0.0


@set_module("skexit")
class JEIGatedEnsemble(BudgetedPolicy):
    """Classifiers at the exits and gates between them, learned together for a price of compute.

    At each exit a linear inference module, one of ``heads_``, classifies, and a linear gate decides
    from how sure the modules are whether to stop. Both are to minimise the cross-entropy plus `lam` times the cost
    that is expected of a sample (JEI-DNN, eq. 6): a module weighs the samples by the probability
    that they leave at its exit, a gate learns for which samples no later exit is worth its price.

    Parameters
    ----------
    lam : float, default=1.0
        Price of the whole network, in nats of cross-entropy: larger means earlier exits. Values
        between 0.01 and 10 span the useful costs. Not used with `budget`, which finds it.
    budget : float, default=None
        Mean cost of a sample on the data that was fitted, a fraction in (0, 1] of the network's
        cost. Finds the price at which the gates come nearest to it, and moves the threshold that
        they share from even odds to where the cost is met.
    targets : {"exit_if_min", "exit_subsequent"}, default="exit_if_min"
        What the gates learn. ``"exit_if_min"``: to open where no later exit is cheaper (section 9.15).
        ``"exit_subsequent"``: to open from the cheapest exit on (eq. 31), which is the paper's.
    gate_reading : {"stop", "exit"}, default="stop"
        What an open gate means. ``"stop"``: that a sample that got here should stop here, which
        is what the targets say. ``"exit"``: that this is the exit of the sample, P(G = l), as in
        the paper (eq. 7 and 8); samples then leave earlier than the targets ask for.
    gate_class_weight : {"balanced"} or None, default=None
        ``"balanced"`` weighs the zeros and the ones of a gate's targets alike. This moves the gate's
        probabilities, and samples no longer stop where it pays.
    temperature_scaling : bool, default=True
        Divide the logits of each exit by a temperature before gates and prices see them. Where a module is
        over-confident, as a network's own classifier mostly is, its cross-entropies are too large to be compared with
        those of others. Joint training takes the modules as they are. The paper does not scale.
    decision : {"deterministic", "sampled"}, default="deterministic"
        Stop where the gate says more probably than not, or with the gate's probability. The draws
        follow from the sample and the seed, so that the same sample always stops at the same exit.
    joint : bool, default=True
        Whether to go on training the modules with the gates. False keeps them as they are trained on all rows, by
        `heads`. Exits that have logits, such as the last exit of a frozen network, keep them in any case.
    gradient : {"partial", "full"}, default="partial"
        Whether the gradient for the modules leaves out that the gates depend on them (eq. 14, left
        term) or not (section 9.7).
    learning_rate : float, default=0.01
        Highest learning rate of Adam, in the warm-up times the number of exits to go (eq. 17).
    l2 : float, default=3e-3
        Strength of the squared penalty on the weights of modules and gates, for standardised inputs; in joint training,
        times the share of the samples that leave at the module. The paper's is 5e-4.
    warm_up_epochs : int, default=10
        Passes over the rows in which the modules learn from all samples alike.
    max_epochs : int, default=15
        Passes over the rows in which steps of modules and gates alternate.
    early_stopping : bool, default=True
        Keep the modules and gates of the epoch at which the loss (eq. 6) is lowest on rows that the modules have not
        learned from; the start, gates fitted to the modules of the warm-up, counts as epoch 0. False keeps the last.
    patience : int, default=5
        With early stopping, stop after so many epochs without a lower loss.
    batch_size : int, default=128
        Rows in a step; fewer where there would be less than 80 steps in an epoch. The paper's is 64.
    bilevel_switch : int, default=5
        Steps of the gates before it is the modules' turn, and the other way round.
    cv : int, cross-validation generator or iterable, default=3
        How rows are split. Gates learn what modules say of rows that they have not learned from.
    heads : ExitHeads, default=None
        With ``joint=False``, heads to fit where exits have no logits; by default ``ExitHeads()`` with
        this `random_state`.
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds splits, batches, draws and heads.
    verbose : bool, default=False
        Show progress bars.

    Attributes
    ----------
    lam_ : float
        `lam`, or the price that was found for `budget`.
    gates_ : list of DenseNetwork, one per exit but the last
        Each gives the logit of the probability of stopping.
    gate_temperatures_ : ndarray of shape (n_exits,)
        What the logits of each exit are divided by before the gates see them; 1 without `temperature_scaling`.
    n_epochs_ : int
        Epochs of joint training that were kept; 0 where the gates did best on the modules of the
        warm-up, or where nothing was trained jointly.
    thresholds_ : ndarray of shape (n_exits,)
        A sample stops where its score is at least the threshold; 0, even odds, without a budget, and ``-inf`` at the
        last exit. Scores are the log-odds of what the gates say; where draws decide, what they say less the draw.
    %(policy_attributes)s

    See Also
    --------
    EMExitAssigner : Learns from features which exit a sample belongs to.
    ThresholdPolicy : Stops where the classifier is confident; learns nothing.

    Notes
    -----
    The modules are trained in as many copies as there are folds, and one that learns from all rows.
    The gates learn from what each copy says of the rows that it has not seen.

    With `budget`, the gates are fitted for 18 prices from 0.01 to 30, of which `with_budget` takes
    another; the modules stay those of the price that was trained for. A policy that was fitted
    without a budget has gates for one price, and `with_budget` only moves their threshold.

    References
    ----------
    Regol, Chataoui, Coates. "Jointly-learned exit and inference for a dynamic neural network: JEI-DNN." ICLR 2024.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import JEIGatedEnsemble
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = JEIGatedEnsemble(budget=0.75, layout=2, random_state=0).fit(X, y)
    >>> policy.exit_distribution_.round(2)
    array([0.5, 0.5])
    >>> policy.with_budget(0.6).lam_ > policy.lam_
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BudgetedPolicy._parameter_constraints,
        "lam": [Interval(Real, 0, None, closed="left")],
        "targets": [StrOptions({"exit_if_min", "exit_subsequent"})],
        "gate_reading": [StrOptions({"stop", "exit"})],
        "gate_class_weight": [StrOptions({"balanced"}), None],
        "temperature_scaling": ["boolean"],
        "decision": [StrOptions({"deterministic", "sampled"})],
        "joint": ["boolean"],
        "gradient": [StrOptions({"partial", "full"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "l2": [Interval(Real, 0, None, closed="neither")],
        "warm_up_epochs": [Interval(Integral, 1, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "bilevel_switch": [Interval(Integral, 1, None, closed="left")],
        "cv": ["cv_object"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        lam: float = 1.0,
        *,
        budget: float | None = None,
        targets: str = "exit_if_min",
        gate_reading: str = "stop",
        gate_class_weight: str | None = None,
        temperature_scaling: bool = True,
        decision: str = "deterministic",
        joint: bool = True,
        gradient: str = "partial",
        learning_rate: float = 0.01,
        l2: float = 3e-3,
        warm_up_epochs: int = 10,
        max_epochs: int = 15,
        early_stopping: bool = True,
        patience: int = 5,
        batch_size: int = 128,
        bilevel_switch: int = 5,
        cv: Any = 3,
        heads: Any = None,
        layout: ExitLayout | int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.lam = lam
        self.budget = budget
        self.targets = targets
        self.gate_reading = gate_reading
        self.gate_class_weight = gate_class_weight
        self.temperature_scaling = temperature_scaling
        self.decision = decision
        self.joint = joint
        self.gradient = gradient
        self.learning_rate = learning_rate
        self.l2 = l2
        self.warm_up_epochs = warm_up_epochs
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.patience = patience
        self.batch_size = batch_size
        self.bilevel_switch = bilevel_switch
        self.cv = cv
        self.heads = heads
        self.layout = layout
        self.random_state = random_state
        self.verbose = verbose

    def lambda_path(
        self,
        X: Any,
        y: ArrayLike,
        lams: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> LambdaPath:
        """Fit a policy for each of several prices, each from where the last one ended.

        Parameters
        ----------
        %(X_y)s
        lams : array-like of shape (n_prices,)
            Prices, in the order in which to fit them. `lam` and `budget` are not used.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; all count alike by default.
        groups : array-like of shape (n_samples,), default=None
            Group of each sample. Rows of a group are in the same fold.

        Returns
        -------
        LambdaPath
            The policies, and the accuracy and cost of each.

        Raises
        ------
        ValueError
            As ``fit`` does, and if a price is negative or not finite.
        """
        prices = check_array(lams, ensure_2d=False, ensure_all_finite=True, dtype=np.float64, input_name="lams").ravel()
        if prices.min() < 0:
            raise ValueError(f"lams={prices.tolist()} has a price below 0; pass prices of 0 or more.")
        first = clone(self).set_params(budget=None)
        first._validate_params()
        exits, first.classes_, labels, weight, numbers = first._validate_training_data(X, y, sample_weight, groups)
        trainer = first._make_trainer(exits, labels, weight, numbers) if first._trains_jointly(exits) else None
        with_logits = None if trainer else first._fit_heads(exits, labels, weight, numbers)
        policies = []
        for lam in prices.tolist():
            policy = copy.copy(first).set_params(lam=lam)
            if trainer is not None:
                with_logits = policy._train_jointly(trainer, exits, labels, weight)
            policies.append(policy._fit_on(cast(ExitArray, with_logits), labels, weight))
        warn_of_expensive_heads(policies[-1].layout_)
        costs = np.array([policy.exit_distribution_ @ policy.costs_ for policy in policies])
        accuracies = np.array([policy._fitting_accuracy() for policy in policies])
        return LambdaPath(prices, costs, accuracies, policies)

    def _fit_heads(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, groups: NDArray[np.int64] | None
    ) -> ExitArray:
        if self._trains_jointly(X):
            return self._train_jointly(self._make_trainer(X, labels, weight, groups), X, labels, weight)
        self.n_epochs_ = 0
        return super()._fit_heads(X, labels, weight, groups)

    def _trains_jointly(self, X: ExitArray) -> bool:
        n_exits = X.layout.n_exits
        return self.joint and n_exits > 1 and not all(X.layout.has_logits(k) for k in range(n_exits))

    def _make_trainer(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, groups: NDArray[np.int64] | None
    ) -> JointTrainer:
        if self.heads is not None:
            raise ValueError(
                "heads are given, but joint=True trains its own: pass joint=False with them, or heads=None."
            )
        check_two_classes(self.classes_)
        check_torch("JEIGatedEnsemble trains classifiers and gates jointly with")
        random_state = check_random_state(self.random_state)
        folds = np.empty(len(labels), dtype=np.int64)
        for fold, (_, held_out) in enumerate(cross_validation_splits(self.cv, labels, random_state, groups)):
            folds[held_out] = fold
        X = self._with_classes(X)
        rows = enough_rows(len(X), X.layout.n_exits * len(self.classes_))
        return JointTrainer(
            X,
            labels,
            weight,
            folds,
            temperatures=self._fit_exit_temperatures(X, labels, weight, rows),
            settings=JointTraining(**{field.name: getattr(self, field.name) for field in fields(JointTraining)}),
            random_state=random_state,
            verbose=bool(self.verbose),
        )

    def _train_jointly(
        self, trainer: JointTrainer, X: ExitArray, labels: NDArray[np.int64], weight: Floats
    ) -> ExitArray:
        """Fit the gates to the modules as they are, then train both; gives X with held-out logits."""
        self._fit_on(self._take_modules(trainer, X), labels, weight)
        trainer.start_gates(self.gates_)
        self.n_epochs_ = trainer.fit(self.lam_ * self.costs_)
        return self._take_modules(trainer, X)

    def _take_modules(self, trainer: JointTrainer, X: ExitArray) -> ExitArray:
        """Keep the modules that learned from all rows; gives X with what the other copies say of held-out rows."""
        X = self._with_classes(X)
        self.heads_ = ExitHeads._from_networks(X, self.classes_, trainer.networks())
        copies = [trainer.networks(fold) for fold in range(trainer.n_copies - 1)]
        held_out = [TransformedLogits(X, ExitHeads._from_networks(X, self.classes_, copy)) for copy in copies]
        source: OverlaidSource = MergedLogits(X, held_out, trainer.folds, np.arange(len(X)))
        if fit_in_memory(len(X), len(trainer.trained), len(self.classes_)):
            source = LogitsSource(X, {k: source.read_logits(k, slice(None)) for k in trainer.trained})
        return ExitArray(source, self.heads_.layout_out_)

    def fit_policy(self, X: ExitArray, labels: NDArray[np.int64], weight: Floats) -> None:
        n_samples, n_exits = len(X), X.layout.n_exits
        self._draws = SampleDraws.fit(X, weight, check_random_state(self.random_state))
        enough = enough_rows(n_samples, sum(X.layout.n_logits))
        self.gate_temperatures_ = self._fit_exit_temperatures(X, labels, weight, enough)
        draws, confidence = np.empty((2, n_samples, n_exits))
        statistics = np.empty((n_samples, n_exits, N_STATISTICS))
        losses, correct = np.empty((n_samples, n_exits)), np.empty((n_samples, n_exits), dtype=bool)
        for k, rows, logits in walk_batches(own_logits, X, uses_features=no_features):
            if k == 0:
                draws[rows] = self._draws(logits)
            scaled = logits / self.gate_temperatures_[k]
            statistics[rows, k], confidence[rows, k] = gate_statistics(softmax(scaled)), log_odds(scaled)
            losses[rows, k] = logsumexp(scaled, axis=1) - scaled[np.arange(len(scaled)), labels[rows]]
            correct[rows, k] = np.argmax(scaled, axis=1) == labels[rows]
        prices = [float(self.lam)] if self.budget is None else _PRICES.tolist()
        path = [(lam, self._fit_gates(statistics, losses + lam * self.costs_, weight)) for lam in prices]
        self.fit_state_ = GateFitState(draws, statistics, confidence, correct, weight, path)
        self.apply_budget()

    def _fit_exit_temperatures(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, rows: NDArray[np.intp]
    ) -> Floats:
        """Temperature of each exit's logits in what the gates see, from some of the rows; 1 where there are none."""
        temperatures = np.ones(X.layout.n_exits)
        if self.temperature_scaling:
            for k in filter(X.layout.has_logits, range(X.layout.n_exits)):
                with silenced():  # at a bound, an exit knows nothing, which is what its gate should see
                    temperatures[k] = fit_temperature(cast(Any, read_logits(X, k, rows)), labels[rows], weight[rows])
        return temperatures

    def _fit_gates(self, statistics: Floats, priced_losses: Floats, weight: Floats) -> list[DenseNetwork]:
        targets = gate_targets(priced_losses, self.targets)
        weight = np.broadcast_to(weight[:, None], targets.shape)
        if self.gate_class_weight == "balanced":
            weight = balanced_weight(targets, weight)
        return [fit_gate(statistics[:, k], targets[:, k], weight[:, k], self.l2) for k in range(targets.shape[1])]

    def apply_budget(self) -> None:
        self.lam_, self.gates_ = min(self.fit_state_.path, key=self._distance_from_budget)
        self.set_thresholds(self.fitted_scores(), self.fit_state_.weight)

    def fitted_scores(self) -> Floats:
        return self._fitting_scores_of(self.gates_)

    def _distance_from_budget(self, priced_gates: tuple[float, list[DenseNetwork]]) -> float:
        """How far the mean cost is from the budget where the gates stop as they say."""
        if self.budget is None:
            return 0.0
        scores = self._fitting_scores_of(priced_gates[1])
        stops = exits_from_scores(scores, equal_thresholds(_THRESHOLD, scores.shape[1]))
        return abs(np.average(self.costs_[stops], weights=self.fit_state_.weight) - self.budget)

    def choose_thresholds(self, scores: Floats, weight: Floats) -> Floats:
        if self.budget is None:
            return equal_thresholds(_THRESHOLD, scores.shape[1])
        return shared_threshold(scores, self.costs_, self.budget, weight)

    def _fitting_accuracy(self) -> float:
        stops = exits_from_scores(self._fitting_scores_of(self.gates_), self.thresholds_)
        correct = self.fit_state_.correct[np.arange(len(stops)), stops]
        return float(np.average(correct, weights=self.fit_state_.weight))

    def _fitting_scores_of(self, gates: Sequence[DenseNetwork]) -> Floats:
        state, memory = self.fit_state_, {"draws": self.fit_state_.draws}
        scores = [
            self._score(k, state.statistics[:, k], state.confidence[:, k], gates, memory)
            for k in range(state.statistics.shape[1])
        ]
        return np.column_stack(scores)

    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        if k == 0:
            memory["draws"] = self._draws(logits)
        scaled = logits / float(self.gate_temperatures_[k])
        return self._score(k, gate_statistics(softmax(scaled)), log_odds(scaled), self.gates_, memory)

    def _score(
        self, k: int, statistics: Any, confidence: Any, gates: Sequence[DenseNetwork], memory: dict[str, Any]
    ) -> Any:
        """Log-odds of stopping, P(E_l); with samples drawn, P(E_l) less the draw."""
        if k == len(gates):
            return array_namespace(statistics).zeros_like(confidence)
        gate = gates[k](statistics)[..., 0]
        score = break_ties(leaving_log_odds(gate, memory, self.gate_reading), confidence)
        return score if self.decision == "deterministic" else sigmoid(score) - memory["draws"][:, k]
